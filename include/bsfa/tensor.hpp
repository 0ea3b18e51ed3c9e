#pragma once

#include <cstdint>

#include "bsfa/export.hpp"

namespace bsfa {

enum class DType : int { kFloat32 = 0, kFloat16 = 1, kBFloat16 = 2 };
enum class DeviceType : int { kCpu = 0, kCuda = 1 };

struct Device {
  DeviceType type = DeviceType::kCpu;
  int index = 0;  // CUDA device ordinal; 0 on the CPU
  friend bool operator==(const Device&, const Device&) = default;
};

// A strided view of up to four axes; strides count elements, not bytes. Views own nothing.
// Pointer is `const void*` for inputs and `void*` for outputs.
template <typename Pointer>
struct BasicTensorView {
  Pointer data = nullptr;
  DType dtype = DType::kFloat32;
  std::int64_t shape[4] = {0, 0, 0, 0};
  std::int64_t stride[4] = {0, 0, 0, 0};
};

using TensorView = BasicTensorView<const void*>;
using OutputView = BasicTensorView<void*>;

// A strided view of a fixed element type and rank, for statistics and tables.
template <typename T, int kRank>
struct StridedView {
  T* data = nullptr;
  std::int64_t shape[kRank] = {};
  std::int64_t stride[kRank] = {};

  explicit operator bool() const { return data != nullptr; }
};

// Dense row-major strides for `shape`.
template <int kRank>
constexpr void set_contiguous(const std::int64_t (&shape)[kRank], std::int64_t (&stride)[kRank]) {
  std::int64_t step = 1;
  for (int axis = kRank - 1; axis >= 0; --axis) {
    stride[axis] = step;
    step *= shape[axis];
  }
}

// A dense row-major [d0, d1, d2, d3] tensor; for attention [batch, seqlen, heads, head_dim].
template <typename Pointer>
BasicTensorView<Pointer> contiguous(Pointer data, DType dtype, std::int64_t d0, std::int64_t d1,
                                    std::int64_t d2, std::int64_t d3) {
  BasicTensorView<Pointer> view{data, dtype, {d0, d1, d2, d3}, {}};
  set_contiguous(view.shape, view.stride);
  return view;
}

constexpr std::int64_t dtype_size(DType dtype) { return dtype == DType::kFloat32 ? 4 : 2; }
BSFA_API const char* dtype_name(DType dtype);  // "float32", "float16", "bfloat16"

}  // namespace bsfa
