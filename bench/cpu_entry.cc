// The contestants of `bsfa bench kernel`, and ggml, behind plain functions, for
// bench/cpu_vs_torch.py.

#include <exception>
#include <string>

#include "kernel/contestants.hpp"
#include "kernel/peak.hpp"
#include "source_tree.hpp"
#ifdef BSFA_BENCH_GGML
#include "cpu_ggml.hpp"
#endif

#define BSFA_ENTRY extern "C" __attribute__((visibility("default")))

using bsfa::DType;
using bsfa::bench::KernelContestants;

namespace {
thread_local std::string last_error;
}

BSFA_ENTRY void* bsfa_bench_create(std::int64_t heads_q, std::int64_t heads_kv,
                                   std::int64_t head_dim, std::int64_t tokens, int threads) try {
  auto contestants = std::make_unique<KernelContestants>(
      bsfa::bench::KernelShape{heads_q, heads_kv, head_dim, tokens, threads},
      std::vector<double>{0.5, 0.24, 0.1});
#ifdef BSFA_BENCH_GGML
  contestants->add(bsfa::bench::make_ggml_contestant(contestants->problem(), threads));
#endif
  return contestants.release();
} catch (const std::exception& error) {
  last_error = error.what();
  return nullptr;
}

// What this was built from (source_tree.hpp): the commit, and whether files of it had been changed.
BSFA_ENTRY const char* bsfa_bench_commit() {
  static const std::string commit = bsfa::source_tree().commit;
  return commit.c_str();
}

BSFA_ENTRY int bsfa_bench_changed() { return bsfa::source_tree().changed ? 1 : 0; }

BSFA_ENTRY const char* bsfa_bench_error() { return last_error.c_str(); }

BSFA_ENTRY void bsfa_bench_destroy(void* handle) { delete static_cast<KernelContestants*>(handle); }

BSFA_ENTRY int bsfa_bench_count(void* handle) {
  return static_cast<int>(static_cast<KernelContestants*>(handle)->all().size());
}

BSFA_ENTRY const char* bsfa_bench_name(void* handle, int i) {
  return static_cast<KernelContestants*>(handle)->all()[static_cast<std::size_t>(i)].name.c_str();
}

BSFA_ENTRY int bsfa_bench_run(void* handle, int i) try {
  static_cast<KernelContestants*>(handle)->all()[static_cast<std::size_t>(i)].run();
  return 0;
} catch (const std::exception& error) {
  last_error = error.what();
  return 1;
}

BSFA_ENTRY double bsfa_bench_relative_error(void* handle, int i) {
  return static_cast<KernelContestants*>(handle)->all()[static_cast<std::size_t>(i)].error();
}

BSFA_ENTRY double bsfa_bench_density(void* handle, int i) {
  return static_cast<KernelContestants*>(handle)->all()[static_cast<std::size_t>(i)].density();
}

BSFA_ENTRY std::size_t bsfa_bench_workspace(void* handle, std::int64_t tokens) {
  return static_cast<KernelContestants*>(handle)->workspace_bytes(tokens);
}

// The fp32 numbers that every precision was rounded from; which: 0 q, 1 k, 2 v.
BSFA_ENTRY const float* bsfa_bench_data(void* handle, int which) {
  const bsfa::AttentionParams p =
      static_cast<KernelContestants*>(handle)->problem().params(DType::kFloat32, DType::kFloat32);
  return static_cast<const float*>(which == 0 ? p.q.data : which == 1 ? p.k.data : p.v.data);
}

// Relative error of somebody else's output [tokens, heads, dim] in fp32, computed from inputs in
// `dtype` (0 fp32, 1 fp16, 2 bf16).
BSFA_ENTRY double bsfa_bench_check(void* handle, const float* out, int dtype) {
  const auto& problem = static_cast<KernelContestants*>(handle)->problem();
  return problem.error_of(
      [&](std::int64_t t, std::int64_t h, std::int64_t d) {
        return out[(t * problem.heads_q + h) * problem.head_dim + d];
      },
      static_cast<DType>(dtype));
}

BSFA_ENTRY double bsfa_bench_peak(int bf16) {
  const bsfa::bench::Peak peak = bsfa::bench::measure_peak();
  return bf16 != 0 ? peak.bf16 : peak.fp32;
}

BSFA_ENTRY const char* bsfa_bench_kernel(void* handle) {
  thread_local std::string name;
  name = static_cast<KernelContestants*>(handle)->kernel();
  return name.c_str();
}
