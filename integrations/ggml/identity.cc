#include "identity.hpp"

#include <bsfa/error.hpp>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <mutex>
#include <set>
#include <sstream>
#include <vector>

#include "gguf_header.hpp"

namespace bsfa::ggml {
namespace {

// The file that an address is mapped from; "" if none is. Linux says so; elsewhere nobody does.
std::string mapped_file(const void* address) {
  const auto wanted = reinterpret_cast<std::uintptr_t>(address);
  std::ifstream maps("/proc/self/maps");
  std::string line;
  while (std::getline(maps, line)) {
    // begin-end permissions offset device inode path
    std::istringstream fields(line);
    std::uintptr_t begin = 0, end = 0;
    char dash = 0;
    if (!(fields >> std::hex >> begin >> dash >> end) || wanted < begin || wanted >= end) continue;
    std::string permissions, offset, device, inode, path;
    fields >> permissions >> offset >> device >> inode;
    std::getline(fields >> std::ws, path);
    return path;
  }
  return "";
}

// One warning for each thing there is to say, however many contexts and layers find it.
void warn_once(const std::string& warning) {
  static std::mutex mutex;
  static std::set<std::string> said;
  const std::lock_guard lock(mutex);
  if (said.insert(warning).second) std::fprintf(stderr, "bsfa: warning: %s\n", warning.c_str());
}

std::string warning_for(const ThresholdTable& thresholds, const std::string& file) {
  std::string fingerprint;
  try {
    fingerprint = gguf::gguf_fingerprint(file);
  } catch (const Error&) {  // replaced since it was mapped; its name is left
  }
  return thresholds.other_model(file, fingerprint);
}

}  // namespace

std::string model_file_of(const ggml_tensor* node) {
  constexpr std::size_t kMostNodes = 256;  // the nearest weights are a few nodes away
  std::vector<const ggml_tensor*> waiting{node};
  std::set<const ggml_tensor*> seen{node};
  for (std::size_t n = 0; n < waiting.size() && n < kMostNodes; ++n) {
    const ggml_tensor* tensor = waiting[n];
    const bool leaf = tensor->op == GGML_OP_NONE && tensor->view_src == nullptr;
    if (leaf && tensor->data != nullptr) {
      const std::string file = mapped_file(tensor->data);
      if (file.ends_with(".gguf")) return file;
    }
    for (const ggml_tensor* source : tensor->src) {
      if (source != nullptr && seen.insert(source).second) waiting.push_back(source);
    }
  }
  return "";
}

void warn_of_other_model(const ThresholdTable& thresholds, const ggml_tensor* node) {
  const std::string file = model_file_of(node);
  if (file.empty()) return;
  const std::string warning = warning_for(thresholds, file);
  if (!warning.empty()) {
    warn_once(warning + " (BSFA_ALLOW_OTHER_MODEL=1 if that is meant)");
  }
}

}  // namespace bsfa::ggml
