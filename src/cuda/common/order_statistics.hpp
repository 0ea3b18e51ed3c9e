#pragma once

#include "bsfa/calibration.hpp"

namespace bsfa::cuda {

// select_thresholds on a CUDA device (docs/method.md, "Calibration"), enqueued on params.stream.
Status select_thresholds(const SelectThresholdsParams& params);

}  // namespace bsfa::cuda
