#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "cpu/kernels.hpp"
#include "cpu/unroll.hpp"

namespace bsfa::cpu::avx2 {
namespace {
#include "cpu/scalar-inl.h"
#include "cpu/simd_avx2-inl.h"
// One after the other.
#include "cpu/kernels-inl.h"
}  // namespace

const KernelSet kFloat32Kernels = Kernels<Float32Words>::set("avx2");

}  // namespace bsfa::cpu::avx2
