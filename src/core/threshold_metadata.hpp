#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "bsfa/thresholds.hpp"

// What a calibration and a threshold table agree on.

namespace bsfa {

// "4, 8, 16"; of a long list the first and how many there are.
std::string list_text(const std::vector<std::int64_t>& values);

// budgets, block, softmax_scale and recommended_budget: what a calibration needs from its caller.
Status check_calibration_metadata(const ThresholdMetadata& metadata);

// The same, and max_seqlen and num_samples.
Status check_threshold_metadata(const ThresholdMetadata& metadata);

// Query blocks of a sample of `seqlen` tokens.
std::int64_t num_q_blocks_of(std::int64_t seqlen, BlockShape block);

}  // namespace bsfa
