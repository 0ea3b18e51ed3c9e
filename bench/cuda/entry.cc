#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <string>

#include "bsfa/attention.hpp"
#include "bsfa/calibration.hpp"

// A flat C door to the library for bench/cuda/*.py, so that peers and kernels run in one process on
// one set of tensors.

static std::string backend;  // empty: the library chooses

extern "C" {

// For all later calls.
__attribute__((visibility("default"))) void bench_use_backend(const char* name) { backend = name; }

struct BenchCall {
  const void* q;  // [1, seqlen, heads_q, head_dim], contiguous, as k, v and out
  const void* k;
  const void* v;
  void* out;
  float* lse;                    // [heads_q, seqlen] or null
  const float* thresholds;       // [heads_q, q blocks] or null: dense
  std::int64_t* kept_blocks;     // [heads_q] or null
  std::int64_t* visible_blocks;  // likewise
  float* block_max;              // [heads_q, q blocks, kv blocks] or null
  void* stream;
  void* workspace;
  std::int64_t seqlen;
  std::int64_t heads_q;
  std::int64_t heads_kv;
  std::int64_t head_dim;
  std::int64_t causal;
  std::int64_t bf16;
  std::int64_t workspace_bytes;
};

// 0, or -1 with the reason in `message`.
__attribute__((visibility("default"))) int bench_attention(const BenchCall* call, char* message,
                                                           std::int64_t message_size) {
  try {
    using namespace bsfa;
    const DType dtype = call->bf16 != 0 ? DType::kBFloat16 : DType::kFloat16;
    const std::int64_t n = call->seqlen;
    AttentionParams params;
    params.q = contiguous(call->q, dtype, 1, n, call->heads_q, call->head_dim);
    params.k = contiguous(call->k, dtype, 1, n, call->heads_kv, call->head_dim);
    params.v = contiguous(call->v, dtype, 1, n, call->heads_kv, call->head_dim);
    params.out = contiguous(call->out, dtype, 1, n, call->heads_q, call->head_dim);
    params.causal = call->causal != 0;
    const auto give = [](auto* data, auto& view, auto... shape) {
      if (data == nullptr) return;
      view = {data, {shape...}, {}};
      set_contiguous(view.shape, view.stride);
    };
    const std::int64_t one = 1;
    const std::int64_t q_blocks = (n + 127) / 128;
    const std::int64_t kv_blocks = (n + 63) / 64;
    give(call->lse, params.lse, one, call->heads_q, n);
    give(call->kept_blocks, params.kept_blocks, one, call->heads_q);
    give(call->visible_blocks, params.visible_blocks, one, call->heads_q);
    give(call->block_max, params.block_max, one, call->heads_q, q_blocks, kv_blocks);
    if (call->thresholds != nullptr) {
      ThresholdView table;
      table.data = call->thresholds;
      table.num_heads = call->heads_q;
      table.num_q_blocks = q_blocks;
      table.stride_head = q_blocks;
      params.policy = Policy::threshold(table);
    }
    params.device = {DeviceType::kCuda, 0};
    params.backend = backend;
    params.stream = call->stream;
    params.workspace = call->workspace;
    params.workspace_bytes = static_cast<std::size_t>(call->workspace_bytes);
    attention_forward(params);
    return 0;
  } catch (const std::exception& error) {
    std::snprintf(message, static_cast<std::size_t>(message_size), "%s", error.what());
    return -1;
  }
}

// Thresholds [budgets, heads, q blocks] of block maxima [heads, q blocks, kv blocks].
__attribute__((visibility("default"))) int bench_select(const float* block_max, float* thresholds,
                                                        std::int64_t heads, std::int64_t q_blocks,
                                                        std::int64_t kv_blocks,
                                                        const std::int64_t* budgets,
                                                        std::int64_t num_budgets, void* stream,
                                                        char* message, std::int64_t message_size) {
  try {
    bsfa::SelectThresholdsParams params;
    params.block_max = {block_max, {heads, q_blocks, kv_blocks}, {}};
    bsfa::set_contiguous(params.block_max.shape, params.block_max.stride);
    params.thresholds = {thresholds, {num_budgets, heads, q_blocks}, {}};
    bsfa::set_contiguous(params.thresholds.shape, params.thresholds.stride);
    params.budgets = budgets;
    params.num_budgets = num_budgets;
    params.device = {bsfa::DeviceType::kCuda, 0};
    params.stream = stream;
    bsfa::select_thresholds(params);
    return 0;
  } catch (const std::exception& error) {
    std::snprintf(message, static_cast<std::size_t>(message_size), "%s", error.what());
    return -1;
  }
}

}  // extern "C"
