#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include "cuda/sm80/config.cuh"

namespace bsfa::cuda::sm80 {

// Launches the kernel of one dtype and head_dim. `vectors`: every row of q, k and v starts on 16
// bytes.
template <typename T, int kHeadDim>
cudaError_t launch_form(Form form, bool vectors, const Arguments& args, int num_tiles,
                        cudaStream_t stream);

}  // namespace bsfa::cuda::sm80
