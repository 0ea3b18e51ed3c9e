// The instruction set that every machine of the architecture has.
#include <cstddef>
#include <cstdint>

#include "cpu/kernels.hpp"
#include "cpu/unroll.hpp"

namespace bsfa::cpu::baseline {
namespace {
#include "cpu/scalar-inl.h"
#include "cpu/simd_baseline-inl.h"
// One after the other.
#include "cpu/kernels-inl.h"
}  // namespace

const KernelSet kFloat32Kernels = Kernels<Float32Words>::set("baseline");

}  // namespace bsfa::cpu::baseline
