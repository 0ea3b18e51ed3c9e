#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "bsfa/attention.hpp"

namespace bsfa::bench {

// Memory aligned as a workspace must be.
class AlignedMemory {
 public:
  AlignedMemory() = default;
  AlignedMemory(const AlignedMemory&) = delete;
  AlignedMemory& operator=(const AlignedMemory&) = delete;
  ~AlignedMemory();
  void reserve(std::size_t bytes);  // keeps the larger of what it has and this; contents are lost
  void* data() const { return data_; }

 private:
  void* data_ = nullptr;
  std::size_t bytes_ = 0;
};

float load(const void* data, DType dtype, std::int64_t index);

// Random q, k and v of one causal sequence in every dtype, contiguous [1, tokens, heads, dim].
class CausalProblem {
 public:
  CausalProblem(std::int64_t heads_q, std::int64_t heads_kv, std::int64_t head_dim,
                std::int64_t tokens);

  // q, k and v set; contiguous; causal.
  AttentionParams params(DType q, DType kv) const;

  // The largest |out - ref| over sampled rows, relative to the largest |ref| of a row, where ref is
  // computed in fp64 from the inputs as `dtype` holds them and over the blocks that `kept_mask`
  // [heads, q blocks, kv_blocks] names (null: all).
  double error_of(const std::function<float(std::int64_t, std::int64_t, std::int64_t)>& out,
                  DType dtype, const std::uint8_t* kept_mask, std::int64_t kv_blocks) const;

  std::int64_t heads_q, heads_kv, head_dim, tokens;

 private:
  struct Operand {
    std::vector<float> f32;
    std::vector<std::uint16_t> f16, bf16;
    const void* data(DType dtype) const;
  };
  Operand q_, k_, v_;
};

// For each head and query block the threshold that keeps about this share of its blocks.
std::vector<float> quantile_thresholds(const std::vector<float>& block_max, std::int64_t heads,
                                       std::int64_t q_blocks, std::int64_t kv_blocks,
                                       double density);

struct Peak {  // GFLOP/s of one core, multiply-adds in registers; 0: not in this machine
  double fp32 = 0;
  double bf16 = 0;
};
Peak measure_peak();

double median(std::vector<double> values);

template <typename F>
double seconds_of(F&& f) {
  const auto start = std::chrono::steady_clock::now();
  f();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// ggml's flash attention on the same fp16 keys and values, with queries in fp32.
class GgmlAttention {
 public:
  virtual ~GgmlAttention() = default;
  virtual void run() = 0;
  virtual float output(std::int64_t token, std::int64_t head, std::int64_t d) const = 0;
};
bool ggml_available();
std::unique_ptr<GgmlAttention> make_ggml_attention(const CausalProblem& problem, int threads);

}  // namespace bsfa::bench
