#pragma once

#include <cuda.h>

#include "bsfa/error.hpp"
#include "bsfa/tensor.hpp"

namespace bsfa::cuda::sm90 {

// The copy engine's view of a [batch, row, head, head_dim] tensor of 16-bit elements, as
// [64 columns, row, chunk of 64 columns, head, batch], and a box of `rows` rows of one head. What
// lies outside the tensor is read as zeros.
Status encode_tensor_map(const char* name, const TensorView& tensor, int rows, CUtensorMap* map);

// Whether encode_tensor_map can describe the tensor, and if not why.
Status check_tensor_map(const char* name, const TensorView& tensor);

}  // namespace bsfa::cuda::sm90
