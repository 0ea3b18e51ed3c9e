#pragma once

#include <optional>

#include "bsfa/calibration.hpp"
#include "bsfa/thresholds.hpp"
#include "io/byte_source.hpp"

// The readers of both kinds of file, from any source of bytes.

namespace bsfa {

constexpr const char* kThresholdFormat = "bsfa-thresholds";
constexpr const char* kCalibrationFormat = "bsfa-calibration";

Status read_threshold_table(const ByteSource& source, std::optional<ThresholdTable>* table);
Status read_calibration(const ByteSource& source, std::optional<Calibration>* calibration);

}  // namespace bsfa
