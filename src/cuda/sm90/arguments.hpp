#pragma once

#include <cuda.h>

#include "cuda/common/params.hpp"

namespace bsfa::cuda::sm90 {

// A tile is one gate query block; a step computes two neighbouring gate key/value blocks, each with
// a decision of its own. Rejected, by measurement (docs/kernels.md): steps of 64 keys, whose fixed
// costs the tensor cores' short queue does not hide; 256 rows, whose output alone takes 128
// registers a thread.
inline constexpr int kBlockM = 128;
inline constexpr int kBlockN = 64;  // of the gate
inline constexpr int kPairN = 2 * kBlockN;

// Kernel argument.
struct Arguments {
  CUtensorMap q, k, v;  // [64 columns, row, chunk, head, batch]
  KernelParams params;
};

}  // namespace bsfa::cuda::sm90
