#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "core/geometry.hpp"
#include "cuda/common/ptx.cuh"

// Softmax and mask of one thread's share of 64 keys of a score tile in the layout that wgmma and
// mma.sync have in common: s[4c .. 4c+1] are columns 8c + 2t .. + 1 of the first of two rows,
// s[4c+2 .. 4c+3] of the row 8 below; t = thread % 4. Scores are those before softmax_scale.

namespace bsfa::cuda {

inline constexpr float kLog2e = 1.44269504088896340736f;
inline constexpr float kLn2 = 0.69314718055994530942f;

// The columns [low, high) that a thread's two rows see, relative to its own first column.
struct VisibleColumns {
  int low[2];
  int high[2];
};

// What comes before the columns that the rows see becomes -inf.
__device__ __forceinline__ void mask_before(float* s, const int (&low)[2]) {
#pragma unroll
  for (int i = 0; i < 32; ++i) {
    if (i / 4 * 8 + i % 2 < low[i / 2 % 2]) s[i] = -INFINITY;
  }
}

// And what comes after.
__device__ __forceinline__ void mask_after(float* s, const int (&high)[2]) {
#pragma unroll
  for (int i = 0; i < 32; ++i) {
    if (i / 4 * 8 + i % 2 >= high[i / 2 % 2]) s[i] = -INFINITY;
  }
}

// The largest score of each of the two rows; NaN if any is NaN.
__device__ __forceinline__ void row_maxima(const float* s, float (&maximum)[2]) {
#pragma unroll
  for (int row = 0; row < 2; ++row) {
    float m[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) m[i] = max_nan(s[4 * i + 2 * row], s[4 * i + 2 * row + 1]);
#pragma unroll
    for (int i = 4; i < 8; ++i) {
      m[i - 4] = max_nan(m[i - 4], max_nan(s[4 * i + 2 * row], s[4 * i + 2 * row + 1]));
    }
    maximum[row] = max_nan(max_nan(m[0], m[1]), max_nan(m[2], m[3]));
  }
}

// Floats as integers of the same order, so that a maximum over a warp is one instruction; above all
// NaN as max_nan gives it.
__device__ __forceinline__ int ordered_bits(float value) {
  const int bits = __float_as_int(value);
  return bits ^ ((bits >> 31) & 0x7fffffff);
}

__device__ __forceinline__ float from_ordered_bits(int bits) {
  return __int_as_float(bits ^ ((bits >> 31) & 0x7fffffff));
}

__device__ __forceinline__ float quad_max(float x) {
  x = max_nan(x, __shfl_xor_sync(0xffffffffu, x, 1));
  return max_nan(x, __shfl_xor_sync(0xffffffffu, x, 2));
}

__device__ __forceinline__ float quad_sum(float x) {
  x += __shfl_xor_sync(0xffffffffu, x, 1);
  return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) {
    x = max_nan(x, __shfl_xor_sync(0xffffffffu, x, mask));
  }
  return x;
}

template <typename T>
__device__ __forceinline__ std::uint32_t pack(float low, float high) {
  std::uint32_t result;
  if constexpr (std::is_same_v<T, __half>) {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(high), "f"(low));
  } else {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(high), "f"(low));
  }
  return result;
}

// Whether scores of a row have to be centred, and then exponents have no shift. A row that has seen
// nothing has none either: all its scores are -inf.
__device__ __forceinline__ bool is_far(float reference, float far) {
  return fabsf(reference) >= far;
}

// Takes the references of rows that are far off their scores.
__device__ __forceinline__ void centre_far(float* s, const float (&reference)[2], float far) {
#pragma unroll
  for (int row = 0; row < 2; ++row) {
    if (!is_far(reference[row], far) || reference[row] == -INFINITY) continue;
#pragma unroll
    for (int c = 0; c < 8; ++c) {
      s[4 * c + 2 * row] -= reference[row];
      s[4 * c + 2 * row + 1] -= reference[row];
    }
  }
}

// The running softmax of a thread's two rows.
//
// Probabilities are exp2(score * scale_log2 - reference * scale_log2); the reference follows the
// running maximum only when that has outgrown it by kSoftmaxSlack, so that rescaling is rare. Rows
// whose reference is far from 0 (`far`, see kFarExponent) have it taken off first, by centre().
struct RunningSoftmax {
  float reference[2] = {-INFINITY, -INFINITY};
  float sum[2] = {0, 0};  // of this thread's columns

  // Moves the references to the maxima; `factor` is what earlier sums and outputs are worth now.
  __device__ __forceinline__ void follow(const float (&maximum)[2], float scale_log2,
                                         float (&factor)[2]) {
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      const float next = max_nan(reference[row], quad_max(maximum[row]));
      // Both may be -inf (nothing seen so far): then nothing changes.
      factor[row] =
          next == reference[row] ? 1.0f : exp2_approx((reference[row] - next) * scale_log2);
      reference[row] = next;
      sum[row] *= factor[row];
    }
  }

  // Takes the references of rows that are far off their scores.
  __device__ __forceinline__ void centre(float* s, float far) const {
    centre_far(s, reference, far);
  }

  // Scores, centred where that is needed, become probabilities, packed in pairs in the first 16
  // registers: the A operand of P V.
  template <typename T>
  __device__ __forceinline__ void exponentiate(float* s, float scale_log2, float far) {
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      const float shift = is_far(reference[row], far) ? 0.0f : reference[row] * scale_log2;
      float partial[2] = {0, 0};
#pragma unroll
      for (int c = 0; c < 8; ++c) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          float& x = s[4 * c + 2 * row + e];
          x = exp2_approx(fmaf(x, scale_log2, -shift));
          partial[e] += x;
        }
      }
      sum[row] += partial[0] + partial[1];
    }
#pragma unroll
    for (int i = 0; i < 16; ++i) s[i] = __uint_as_float(pack<T>(s[2 * i], s[2 * i + 1]));
  }
};

}  // namespace bsfa::cuda
