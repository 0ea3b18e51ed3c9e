// bsfa info: what this build can do on this machine.

#include <bsfa/backends.hpp>
#include <iostream>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "build_info.hpp"
#include "command.hpp"
#include "source_tree.hpp"

namespace bsfa::cli {
namespace {

// The instruction sets of this machine that a kernel could use.
std::vector<std::pair<std::string, bool>> instruction_sets() {
#if defined(__x86_64__)
  return {{"avx2", __builtin_cpu_supports("avx2") != 0},
          {"fma", __builtin_cpu_supports("fma") != 0},
          {"avx512f", __builtin_cpu_supports("avx512f") != 0},
          {"avx512bw", __builtin_cpu_supports("avx512bw") != 0},
          {"avx512vl", __builtin_cpu_supports("avx512vl") != 0},
          {"avx512bf16", __builtin_cpu_supports("avx512bf16") != 0}};
#else
  return {};
#endif
}

const char* device_name(DeviceType device) { return device == DeviceType::kCpu ? "cpu" : "cuda"; }

void info(bool json) {
  const auto sets = instruction_sets();
  const unsigned threads = std::thread::hardware_concurrency();
  if (json) {
    nlohmann::json result{{"version", version()},
                          {"build",
                           {{"compiler", kCompiler},
                            {"type", kBuildType},
                            {"sanitizers", kSanitizers},
                            {"processor", kProcessor},
                            {"llama_cpp", kHasEngine}}},
                          {"threads", threads}};
    add_commit(result);
    nlohmann::json& listed = result["backends"] = nlohmann::json::array();
    for (const BackendInfo& backend : backends()) {
      listed.push_back({{"name", backend.name},
                        {"device", device_name(backend.device)},
                        {"available", backend.available},
                        {"description", backend.description}});
    }
    nlohmann::json& found = result["instruction_sets"] = nlohmann::json::object();
    for (const auto& [name, present] : sets) found[name] = present;
    print_json(result);
    return;
  }
  std::cout << "bsfa " << version();
  if (const SourceTree tree = source_tree(); !tree.commit.empty()) {
    std::cout << ", commit " << tree.commit.substr(0, 12) << (tree.changed ? " with changes" : "");
  }
  std::cout << "\n\nBackends\n";
  for (const BackendInfo& backend : backends()) {
    std::string name = backend.name;
    name.resize(std::max<std::size_t>(name.size(), 12), ' ');
    std::cout << "  " << name << " " << device_name(backend.device)
              << (backend.available ? "   " : "   NOT AVAILABLE HERE: ") << backend.description
              << "\n";
  }
  std::cout << "\nThis machine\n  threads           " << threads << "\n  instruction sets ";
  bool any = false;
  for (const auto& [name, present] : sets) {
    if (!present) continue;
    std::cout << " " << name;
    any = true;
  }
  std::cout << (any ? "" : " the baseline alone") << "\n\nThis build\n  compiler          "
            << kCompiler << ", " << kBuildType << ", " << kProcessor;
  if (kSanitizers[0] != '\0') std::cout << ", sanitizers " << kSanitizers;
  std::cout << "\n  run, calibrate, bench  "
            << (kHasEngine ? "with llama.cpp" : "not in this build (configured without llama.cpp)")
            << "\n";
}

}  // namespace

void add_info(CLI::App& app) {
  const auto json = std::make_shared<bool>(false);
  CLI::App* verb =
      app.add_subcommand("info", "This build: version, backends, and what the machine offers them");
  add_json_flag(*verb, *json);
  verb->callback([json] { info(*json); });
}

}  // namespace bsfa::cli
