#include "cuda/sm90/tensor_map.hpp"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>

#include "core/status.hpp"
#include "cuda/common/device.hpp"

namespace bsfa::cuda::sm90 {
namespace {

using Encode = CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*,
                            const cuuint64_t*, const cuuint32_t*, const cuuint32_t*,
                            CUtensorMapInterleave, CUtensorMapSwizzle, CUtensorMapL2promotion,
                            CUtensorMapFloatOOBfill);

constexpr std::int64_t kMaxStrideBytes = std::int64_t{1} << 40;

// From the driver that is there, so that the library also loads where there is none.
Encode encode_function() {
  static const Encode function = [] {
    void* entry = nullptr;
    cudaDriverEntryPointQueryResult result;
    if (cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000, cudaEnableDefault,
                                         &result) != cudaSuccess ||
        result != cudaDriverEntryPointSuccess) {
      cudaGetLastError();
      return Encode{nullptr};
    }
    return reinterpret_cast<Encode>(entry);
  }();
  return function;
}

}  // namespace

Status check_tensor_map(const char* name, const TensorView& tensor) {
  if (reinterpret_cast<std::uintptr_t>(tensor.data) % 16 != 0) {
    return unsupported(name, " is not aligned to 16 bytes, which cuda-sm90 needs");
  }
  const char* axes[3] = {"batch", "seqlen", "heads"};
  for (int axis = 0; axis < 3; ++axis) {
    const std::int64_t bytes = tensor.stride[axis] * dtype_size(tensor.dtype);
    if (tensor.shape[axis] > 1 && (bytes <= 0 || bytes % 16 != 0 || bytes >= kMaxStrideBytes)) {
      return unsupported(name, " has a stride of ", bytes, " bytes on axis ", axes[axis],
                         "; cuda-sm90 accepts positive multiples of 16 below 2^40");
    }
    if (tensor.shape[axis] > INT32_MAX) {
      return unsupported(name, " has ", tensor.shape[axis], " entries on axis ", axes[axis],
                         "; cuda-sm90 accepts fewer than 2^31");
    }
  }
  return {};
}

Status encode_tensor_map(const char* name, const TensorView& tensor, int rows, CUtensorMap* map) {
  const Encode encode = encode_function();
  if (encode == nullptr) {
    return {ErrorCode::kRuntime, "the CUDA driver here has no cuTensorMapEncodeTiled"};
  }
  const std::int64_t chunks = tensor.shape[3] / 64;
  // An axis of one entry is never stepped over; its stride may be anything.
  const auto stride = [&](int axis) {
    return static_cast<cuuint64_t>(tensor.shape[axis] > 1 ? 2 * tensor.stride[axis] : 16);
  };
  const auto extent = [&](int axis) {
    return static_cast<cuuint64_t>(std::max<std::int64_t>(tensor.shape[axis], 1));
  };
  const cuuint64_t extents[5] = {64, extent(1), static_cast<cuuint64_t>(chunks), extent(2),
                                 extent(0)};
  const cuuint64_t strides[4] = {stride(1), 128, stride(2), stride(0)};
  const cuuint32_t box[5] = {64, static_cast<cuuint32_t>(rows), static_cast<cuuint32_t>(chunks), 1,
                             1};
  const cuuint32_t steps[5] = {1, 1, 1, 1, 1};
  const CUtensorMapDataType type = tensor.dtype == DType::kFloat16
                                       ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16
                                       : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
  const CUresult result =
      encode(map, type, 5, const_cast<void*>(tensor.data), extents, strides, box, steps,
             CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS) {
    return {ErrorCode::kRuntime, text("cuTensorMapEncodeTiled refused ", name, " with CUresult ",
                                      static_cast<int>(result))};
  }
  return {};
}

}  // namespace bsfa::cuda::sm90
