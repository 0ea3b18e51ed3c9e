#pragma once

#include <string>
#include <vector>

#include "core/status.hpp"
#include "cpu/kernels.hpp"

namespace bsfa::cpu {

// Instruction sets in ascending order; kernels exist for each on the architecture that has it.
enum class Isa { kBaseline, kAvx2, kAvx512, kAvx512Bf16 };

const char* isa_name(Isa isa);

// Those of this machine (processor and operating system), ascending.
const std::vector<Isa>& available_isas();

// What BSFA_CPU_ISA names, else the one that is fastest here for bf16 (`bfloat16`) or fp32
// products. A name that is unknown or not available here is refused.
Status choose_isa(bool bfloat16, Isa* isa);

// The kernels for bf16 or fp32 products. Where the instruction set has no bf16 product, bf16
// numbers are multiplied as fp32 ones, which is exact.
const KernelSet& kernels_of(Isa isa, bool bfloat16);

}  // namespace bsfa::cpu
