#pragma once

#include "core/problem.hpp"
#include "cpu/kernels.hpp"
#include "cpu/layout.hpp"

namespace bsfa::cpu {

// The call, with these kernels. `round_bf16`: operands are rounded to bf16 first.
// `layout`: that of this call; problem.workspace holds at least its total.
void run_attention(const Problem& problem, const KernelSet& kernels, const WorkspaceLayout& layout,
                   bool round_bf16);

}  // namespace bsfa::cpu
