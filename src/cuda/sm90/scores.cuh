#pragma once

// The largest score of a thread as an integer.

namespace bsfa::cuda::sm90 {

// The bits of the largest of a thread's 32 scores if that is positive or NaN, else 0.
//
// Floats that are not negative have the order of their bits, NaN above all (the one NaN,
// 0x7fffffff, that products give), and of integers there is a maximum of three in one instruction,
// of floats only of two.
__device__ __forceinline__ int positive_bits(const float* s) {
  const auto bits = [s](int i) { return __float_as_int(s[i]); };
  int m[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    m[i] = __vimax3_s32(bits(i), bits(4 + i), bits(8 + i));
    m[i] = __vimax3_s32(m[i], bits(12 + i), bits(16 + i));
    m[i] = __vimax3_s32(m[i], bits(20 + i), bits(24 + i));
  }
  m[0] = __vimax3_s32(m[0], bits(28), bits(29));
  m[1] = __vimax3_s32(m[1], bits(30), bits(31));
  return __vimax3_s32_relu(max(m[0], m[1]), m[2], m[3]);
}

}  // namespace bsfa::cuda::sm90
