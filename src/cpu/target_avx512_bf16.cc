// AVX-512 with bf16 dot products, for words of two bf16 numbers. fp32 words take the AVX-512 set.
#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "cpu/kernels.hpp"
#include "cpu/unroll.hpp"

namespace bsfa::cpu::avx512_bf16 {
namespace {
#include "cpu/scalar-inl.h"
#include "cpu/simd_avx512-inl.h"
// One after the other.
#include "cpu/kernels-inl.h"

struct BFloat16Words {
  using Element = std::uint16_t;
  static constexpr int kElements = 2;
  static F multiply_add(F sum, F a, F b) { return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b); }
  static void store(Element* p, F x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), (__m256i)_mm512_cvtneps_pbh(x));
  }
  static Element from_float(float x) { return float_to_bfloat(x); }
};

}  // namespace

const KernelSet kBFloat16Kernels = Kernels<BFloat16Words>::set("avx512_bf16");

}  // namespace bsfa::cpu::avx512_bf16
