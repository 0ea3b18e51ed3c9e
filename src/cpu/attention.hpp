#pragma once

#include "core/problem.hpp"
#include "cpu/kernels.hpp"

namespace bsfa::cpu {

// The call, with these kernels. `round_bf16`: operands are rounded to bf16 first.
// problem.workspace holds at least workspace_layout(problem, kernels).total bytes.
void run_attention(const Problem& problem, const KernelSet& kernels, bool round_bf16);

}  // namespace bsfa::cpu
