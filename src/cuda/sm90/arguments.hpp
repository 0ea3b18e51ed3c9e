#pragma once

#include <cuda.h>

#include "cuda/common/params.hpp"

namespace bsfa::cuda::sm90 {

// 128 query rows (one gate block) by 64 keys (one gate block), so that a decision is about exactly
// what one step computes. Two consumer warpgroups of 64 rows hold Q, two score tiles and the output
// in registers. Rejected: steps of 128 keys (two decisions a step; no registers left to score ahead
// while a vote is out), 256 rows (the output alone takes 128 registers a thread).
inline constexpr int kBlockM = 128;
inline constexpr int kBlockN = 64;

// Kernel argument.
struct Arguments {
  CUtensorMap q, k, v;  // [64 columns, row, chunk, head, batch]
  KernelParams params;
};

}  // namespace bsfa::cuda::sm90
