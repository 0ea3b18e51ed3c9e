// bsfa_bench_cpu: the CPU backend against itself (dense, gated, precisions), against the machine's
// measured peak and, where the build found it, ggml's flash attention. Everything runs in one
// process and in turns; a result is checked before it is timed. bench/cpu_vs_torch.py adds PyTorch.

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <iostream>
#include <string>
#include <vector>

#include "cpu_contestants.hpp"

namespace bsfa::bench {
namespace {

struct Options {
  std::int64_t heads_q = 9;
  std::int64_t heads_kv = 3;
  std::int64_t head_dim = 64;
  std::int64_t tokens = 4096;
  int threads = 1;
  int repeats = 5;
  std::string json;
};

int usage(const char* program) {
  std::cerr << "usage: " << program
            << " [--heads Q/KV] [--dim D] [--tokens N] [--threads T] [--repeats R] [--json FILE]\n"
               "Causal attention of N tokens; medians over R rounds, contestants in turn.\n";
  return 2;
}

bool parse(int argc, char** argv, Options* options) {
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string name = argv[i];
    const std::string value = argv[i + 1];
    if (name == "--heads") {
      const auto slash = value.find('/');
      if (slash == std::string::npos) return false;
      options->heads_q = std::atoll(value.substr(0, slash).c_str());
      options->heads_kv = std::atoll(value.substr(slash + 1).c_str());
    } else if (name == "--dim") {
      options->head_dim = std::atoll(value.c_str());
    } else if (name == "--tokens") {
      options->tokens = std::atoll(value.c_str());
    } else if (name == "--threads") {
      options->threads = std::atoi(value.c_str());
    } else if (name == "--repeats") {
      options->repeats = std::atoi(value.c_str());
    } else if (name == "--json") {
      options->json = value;
    } else {
      return false;
    }
  }
  return argc % 2 == 1 && options->heads_q > 0 && options->heads_kv > 0 &&
         options->heads_q % options->heads_kv == 0 && options->head_dim > 0 &&
         options->tokens > 0 && options->threads > 0 && options->repeats > 0;
}

struct Row {
  double time, low, high, gflops, density, of_limit, error;
};

int run(const Options& o) {
  CpuContestants contestants(o.heads_q, o.heads_kv, o.head_dim, o.tokens, o.threads);
  const std::vector<Contestant>& all = contestants.all();
  std::vector<Row> rows(all.size());
  for (std::size_t i = 0; i < all.size(); ++i) {
    all[i].run();  // warm-up, and what is checked
    rows[i].error = all[i].error();
    if (!(rows[i].error < 0.03)) {
      std::cerr << all[i].name << ": relative error " << rows[i].error
                << " on the sampled rows; nothing is timed\n";
      return 1;
    }
  }
  std::vector<std::vector<double>> seconds(all.size());
  for (int round = 0; round < o.repeats; ++round) {
    for (std::size_t i = 0; i < all.size(); ++i) seconds[i].push_back(seconds_of(all[i].run));
  }
  const Peak peak = measure_peak();
  const std::string kernel = contestants.kernel();
  const double kernel_peak = kernel == "avx512_bf16" ? peak.bf16 : peak.fp32;
  std::printf(
      "causal, %lld tokens, %lld/%lld heads of %lld, %d thread(s), kernel %s; peak of one core: "
      "fp32 %.0f, bf16 dot %.0f GFLOP/s\n",
      static_cast<long long>(o.tokens), static_cast<long long>(o.heads_q),
      static_cast<long long>(o.heads_kv), static_cast<long long>(o.head_dim), o.threads,
      kernel.c_str(), peak.fp32, peak.bf16);
  std::printf("%-22s %9s %9s %9s %8s %8s %8s %8s %9s\n", "", "median ms", "min", "max", "GFLOP/s",
              "of peak", "rel.err", "density", "of limit");
  std::string json;
  for (std::size_t i = 0; i < all.size(); ++i) {
    Row& row = rows[i];
    row.time = median(seconds[i]);
    row.low = *std::min_element(seconds[i].begin(), seconds[i].end());
    row.high = *std::max_element(seconds[i].begin(), seconds[i].end());
    row.gflops = contestants.flops() / row.time * 1e-9;
    row.density = all[i].density();
    // Of 2 / (1 + density), the most that not computing the values can bring.
    row.of_limit = all[i].gated ? rows[0].time / row.time / (2 / (1 + row.density)) : 0;
    std::printf("%-22s %9.2f %9.2f %9.2f %8.1f %8.2f %8.1e %8.3f", all[i].name.c_str(),
                row.time * 1e3, row.low * 1e3, row.high * 1e3, row.gflops,
                row.gflops / kernel_peak / o.threads, row.error, row.density);
    if (all[i].gated) std::printf(" %9.3f", row.of_limit);
    std::printf("\n");
    char line[512];
    std::snprintf(line, sizeof line,
                  "%s  {\"name\": \"%s\", \"median_ms\": %.3f, \"min_ms\": %.3f, "
                  "\"max_ms\": %.3f, \"gflops\": %.1f, \"relative_error\": %.2e, "
                  "\"density\": %.4f, \"of_limit\": %.4f}",
                  i > 0 ? ",\n" : "", all[i].name.c_str(), row.time * 1e3, row.low * 1e3,
                  row.high * 1e3, row.gflops, row.error, row.density, row.of_limit);
    json += line;
  }
  std::string memory;
  std::printf("workspace:");
  for (const std::int64_t tokens : {4096, 16384, 65536}) {
    const std::size_t bytes = contestants.workspace_bytes(tokens);
    std::printf(" %lldK %.1f MiB", static_cast<long long>(tokens / 1024),
                static_cast<double>(bytes) / (1 << 20));
    memory +=
        (memory.empty() ? "\"" : ", \"") + std::to_string(tokens) + "\": " + std::to_string(bytes);
  }
  std::printf("\n");
  if (o.json.empty()) return 0;
  std::ofstream file(o.json);
  file << "{\"benchmark\": \"bsfa_bench_cpu\", \"tokens\": " << o.tokens << ", \"heads\": \""
       << o.heads_q << "/" << o.heads_kv << "\", \"head_dim\": " << o.head_dim
       << ", \"threads\": " << o.threads << ", \"rounds\": " << o.repeats << ", \"kernel\": \""
       << kernel << "\",\n \"peak_fp32_gflops_core\": " << peak.fp32
       << ", \"peak_bf16_dot_gflops_core\": " << peak.bf16 << ", \"workspace_bytes\": {" << memory
       << "},\n \"results\": [\n"
       << json << "]}\n";
  file.close();
  if (file) return 0;
  std::cerr << "could not write " << o.json << "\n";
  return 1;
}

}  // namespace
}  // namespace bsfa::bench

int main(int argc, char** argv) {
  bsfa::bench::Options options;
  if (!bsfa::bench::parse(argc, argv, &options)) return bsfa::bench::usage(argv[0]);
  try {
    return bsfa::bench::run(options);
  } catch (const std::exception& error) {
    std::cerr << "bsfa_bench_cpu: " << error.what() << "\n";
    return 1;
  }
}
