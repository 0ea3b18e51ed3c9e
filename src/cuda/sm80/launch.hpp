#pragma once

#include "bsfa/error.hpp"
#include "core/problem.hpp"
#include "cuda/sm80/config.cuh"

namespace bsfa::cuda::sm80 {

// Runs a problem that the backend's `plan` accepts with a given pipeline (tests run the pipelines
// of other cards through this).
Status run_with_stages(const Problem& problem, Stages stages);

}  // namespace bsfa::cuda::sm80
