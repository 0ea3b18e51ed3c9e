#pragma once

#include <cstdint>

#include "bsfa/attention.hpp"
#include "core/geometry.hpp"

namespace bsfa {

// AttentionParams after validation, and what follows from them: what a backend works from. A
// backend still refuses what it does not serve, but never checks again what is wrong for all of
// them. `softmax_scale` has a value. Positions, lengths and the gate grid are read from
// `sequences`.
struct Problem : AttentionParams {
  std::int64_t num_heads_q = 0;
  std::int64_t num_heads_kv = 0;
  std::int64_t group = 1;  // num_heads_q / num_heads_kv
  std::int64_t head_dim = 0;
  std::int64_t head_dim_v = 0;
  SequenceLayout sequences;
  std::int64_t q_blocks = 0;   // extent of kept_mask and block_max
  std::int64_t kv_blocks = 0;  // likewise
  int workers = 1;             // most that the executor runs at a time
};

// The precision in which a call multiplies: kBFloat16, kFloat16 or kFloat32. `has_float16_unit`
// says whether the backend multiplies fp16 as such; otherwise native fp16 is promoted to fp32.
DType multiply_dtype(const Problem& problem, bool has_float16_unit);

// Checks shapes, dtypes and the contract of each member (never data on a device; on the CPU the
// per-sequence arrays and page tables too, since a wrong one would read outside the tensors). What
// passes is within bsfa/limits.hpp: no product of extents, positions or strides can overflow, and
// positions, keys and blocks fit 32 bits.
Status make_problem(const AttentionParams& params, Problem* problem);

// Most that the executor of a call runs at a time; none, or another device, counts as one.
int workers_of(const AttentionParams& params);

// The problem of a call that is the one `planned` was made from on other pointers (same_call): what
// lies behind the pointers is checked as by make_problem, nothing else.
Status move_problem(const Problem& planned, const AttentionParams& params, Problem* problem);

// Refuses results and a workspace of `workspace_bytes` that share memory with each other or with
// what the call reads, and data that is not aligned. Beside make_problem, since a plan may be made
// with pointers that only stand for those of the call.
Status check_memory(const Problem& problem, std::size_t workspace_bytes);

}  // namespace bsfa
