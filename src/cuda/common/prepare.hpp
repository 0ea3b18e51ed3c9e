#pragma once

#include <cuda_runtime_api.h>

#include "bsfa/error.hpp"
#include "cuda/common/params.hpp"

namespace bsfa::cuda {

// What has to stand in memory before an attention kernel runs, on device memory like it.
struct PrepareParams {
  KernelParams kernel;
  Form form;
  int kv_blocks;                 // columns of kept_mask and block_max
  std::int64_t* visible_blocks;  // [sequence, head] or null
  std::int64_t visible_stride[2];
  std::int64_t packed_rows;  // rows of out in a packed call, which may be more than it has; else 0
  int head_dim_v;
};

// Sets kept_blocks, visible_blocks and kept_mask to what they are where there is no gate (a gated
// kernel starts from 0), block_max to -inf, and rows of a packed call that belong to no sequence to
// 0 and -inf.
Status prepare(const PrepareParams& params, cudaStream_t stream);

}  // namespace bsfa::cuda
