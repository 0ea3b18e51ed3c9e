#pragma once

#include "core/backend.hpp"

// The sampled selector of cuda-sm90, see Backend.

namespace bsfa::cuda::sm90 {

Status plan_selection(const SelectionProblem& problem, SelectionPlan* plan);
Status select_blocks(const SelectionProblem& problem);

}  // namespace bsfa::cuda::sm90
