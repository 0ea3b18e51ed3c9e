#pragma once

#include <string>
#include <vector>

#include "io/safetensors.hpp"

// The metadata field `checksum` of both kinds of file: "sha256:" and the digest of the metadata
// fields that this library reads, sorted by name, each as its name, a zero byte, its value and a
// zero byte, and then of the data, from the end of the header to the end of the file. Fields that
// others add are not covered, so that they may.

namespace bsfa {

// Sets the field.
void add_checksum(StringMap* metadata, const std::vector<TensorToWrite>& tensors);

// Refuses a file that has the field and does not agree with it. Reads all of its data.
Status verify_checksum(const std::string& file, const SafetensorsReader& reader);

}  // namespace bsfa
