#pragma once

#include <string>

#include "bsfa/thresholds.hpp"
#include "io/safetensors.hpp"

// ThresholdMetadata as the strings of a file's header.

namespace bsfa {

StringMap metadata_to_strings(const char* format, const ThresholdMetadata& metadata);

// `file` is for messages; `format` is the value that the field of that name must have.
Status metadata_from_strings(const std::string& file, const char* format, const StringMap& strings,
                             ThresholdMetadata* metadata);

// The field `samples` of a partial calibration; a file may lack it.
void sample_ids_to_strings(const std::vector<std::string>& ids, StringMap* strings);
Status sample_ids_from_strings(const std::string& file, const StringMap& strings,
                               std::vector<std::string>* ids);

}  // namespace bsfa
