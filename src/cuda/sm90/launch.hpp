#pragma once

#include <cuda_runtime_api.h>

#include "bsfa/error.hpp"
#include "cuda/sm90/arguments.hpp"

namespace bsfa::cuda::sm90 {

// Enqueues the kernel that writes arguments.tiles.
Status list_tiles(const Arguments& arguments, Form form, cudaStream_t stream);

// Enqueues one attention kernel; defined for each type, form and head_dim in instantiations/, and
// for tiles with and without lists of blocks.
template <typename T, Form kForm, int kHeadDim, bool kSelected>
Status launch_attention(const Arguments& arguments, int multiprocessors, cudaStream_t stream);

}  // namespace bsfa::cuda::sm90
