#pragma once

#include "bsfa/calibration.hpp"

namespace bsfa {

// What is wrong with the parameters on any device: shapes, strides, budgets, grid. Not the data.
Status check_select_thresholds(const SelectThresholdsParams& params);

// For parameters that passed the check and lie in host memory. Cost: one pass over the maxima and
// O(columns) for all budgets together.
void select_thresholds_on_host(const SelectThresholdsParams& params);

}  // namespace bsfa
