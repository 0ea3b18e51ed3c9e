#pragma once

#include <cstdint>
#include <type_traits>

#include "core/geometry.hpp"
#include "core/problem.hpp"
#include "cpu/kernels.hpp"

// Where rows of the operands lie, and how scores are scaled.

namespace bsfa::cpu {

inline constexpr float kLog2E = 1.44269504088896341f;

static_assert(static_cast<int>(DType::kFloat32) == 0 && static_cast<int>(DType::kFloat16) == 1 &&
              static_cast<int>(DType::kBFloat16) == 2);  // as SourceRows::dtype

template <typename T>
T* at(void* base, std::size_t offset) {
  return reinterpret_cast<T*>(static_cast<char*>(base) + offset);
}

template <typename Pointer>
Pointer element(Pointer data, DType dtype, std::int64_t index) {
  using Byte =
      std::conditional_t<std::is_const_v<std::remove_pointer_t<Pointer>>, const char, char>;
  return static_cast<Byte*>(data) + index * dtype_size(dtype);
}

// The rows of a head from tensor row `row` on.
inline SourceRows source_rows(const TensorView& tensor, std::int64_t batch, std::int64_t row,
                              std::int64_t head) {
  const std::int64_t index =
      batch * tensor.stride[0] + row * tensor.stride[1] + head * tensor.stride[2];
  return {element(tensor.data, tensor.dtype, index), tensor.stride[1],
          static_cast<int>(tensor.dtype)};
}

// When scores are scaled. As they are stored they are those before softmax_scale where that can come
// late, in one product with log2(e); a softcap wants it early, and so does a scale with which a
// difference of scores or the product could leave the range of fp32 although no score does.
struct ScoreScale {
  bool early;
  float late;  // what a stored score is multiplied by
  float log2;  // the same for exp2

  explicit ScoreScale(const Problem& problem) {
    constexpr float kLeastLate = 0x1p-64f;
    constexpr float kMostLate = 0x1p64f;
    const float scale = *problem.softmax_scale;
    early = problem.softcap > 0 || scale < kLeastLate || scale > kMostLate;
    late = early ? 1.0f : scale;
    log2 = late * kLog2E;
  }
};

}  // namespace bsfa::cpu
