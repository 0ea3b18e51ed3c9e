#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
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

// A gated result's thresholds [heads, q blocks] and the blocks that it kept [heads, q blocks, kv
// blocks].
struct GateResult {
  const float* thresholds = nullptr;
  const std::uint8_t* kept_mask = nullptr;
};

// Random q, k and v of one causal sequence in every dtype, contiguous [1, tokens, heads, dim].
class CausalProblem {
 public:
  CausalProblem(std::int64_t heads_q, std::int64_t heads_kv, std::int64_t head_dim,
                std::int64_t tokens);

  // q, k and v set; contiguous; causal.
  AttentionParams params(DType q, DType kv) const;

  // Compares a result with the fp64 oracle, from the inputs as `dtype` holds them, on four query
  // blocks of different heads: the largest |out - oracle| relative to the largest |oracle| of a
  // row. Infinite where a number is not finite, or a gated result (thresholds given) keeps other
  // blocks than the oracle, unless the block's maximum is as close to its threshold as rounding
  // goes.
  double error_of(const std::function<float(std::int64_t, std::int64_t, std::int64_t)>& out,
                  DType dtype, const GateResult& gate = {}) const;

  std::int64_t q_blocks() const { return (tokens + 127) / 128; }
  std::int64_t kv_blocks() const { return (tokens + 63) / 64; }

  const std::int64_t heads_q, heads_kv, head_dim, tokens;

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

}  // namespace bsfa::bench
