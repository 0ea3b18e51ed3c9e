#pragma once

#include <cstdint>

#include "core/block_lists.hpp"
#include "core/geometry.hpp"

// What every kernel family of the CUDA backend is launched with, besides its operands.

namespace bsfa::cuda {

// What a kernel does about the gate, chosen at compile time.
enum class Form : int {
  kDense = 0,       // every block of the range is computed; no trace of a gate
  kGated = 1,       // blocks below their threshold are dropped after their scores
  kCalibrating = 2  // dense, and the maximum of every block is written
};

// By how many powers of two a running maximum may outgrow the reference of a softmax. Any reference
// gives the same result as long as nothing overflows: 2^8 is far from the largest fp16.
inline constexpr float kSoftmaxSlack = 8;

// From this exponent on, a power of two, scores are too far from 0 for the fused form of the
// exponents: a score times the scale minus the rounded product of the reference and the scale keeps
// what was lost in rounding, up to half a unit of the product's last place (here 2^-2, the same for
// all scores of a row). Such scores have their reference taken off before they are scaled.
inline constexpr float kFarExponent = 1 << 22;

struct KernelParams {
  SequenceLayout sequences;    // per-sequence arrays live on the device
  std::int64_t window_blocks;  // sliding_window policy: blocks before the always-kept; < 0: none
  int num_heads_q;             //
  int group;                   // query heads of one key/value head
  int q_blocks;                // most query blocks that a sequence touches
  int section_kv_heads;        // key/value heads worked on at a time, so that they stay in L2
  float softmax_scale;         //
  float scale_log2;            // softmax_scale * log2(e)
  float slack;                 // kSoftmaxSlack in scores before softmax_scale
  float far;                   // kFarExponent likewise
  float cap;                   // > 0: softcap likewise; a score s becomes cap * tanh(s / cap)
  float inverse_cap;           // 1 / cap
  bool zero_value_tail;        // rows of V past a sequence's end may hold anything
  const float* sinks;          // [num_heads_q] or null

  void* out;                   // [batch, row, head, head_dim]
  std::int64_t out_stride[3];  // elements: batch, row, head
  float* lse;                  // [batch, head, row] or null
  std::int64_t lse_stride[3];  // elements: batch, head, row

  const float* thresholds;           // [sequence, head, query block], scaled scores; kGated
  std::int64_t threshold_stride[2];  // elements: sequence, head
  int threshold_blocks;              // query blocks in the table

  std::int64_t* kept_blocks;    // [sequence, head] or null
  std::int64_t kept_stride[2];  // elements
  std::uint8_t* kept_mask;      // [sequence, head, query block, kv block] or null
  std::int64_t mask_stride[4];  // elements
  float* block_max;             // like kept_mask; kCalibrating
  std::int64_t max_stride[4];   // elements

  int* tile_counter;  // workspace; tiles handed out past the first of each CTA

  BlockLists lists;  // none: every block of the range is visited
};

}  // namespace bsfa::cuda
