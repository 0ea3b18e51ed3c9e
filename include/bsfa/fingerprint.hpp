#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "bsfa/export.hpp"

// Which weights thresholds were made for; docs/method.md "Fingerprints".

namespace bsfa {

// What a fingerprint sees of one tensor.
struct WeightSample {
  std::string name;
  std::vector<std::int64_t> shape;
  std::string bytes;  // some of its values, as the kind of source says
};

// "<source>:<32 hexadecimal digits>". `source` names the kind of model source ("gguf", "torch"):
// lower-case letters and digits. The order of the tensors does not matter. Throws Error.
BSFA_API std::string weight_fingerprint(const std::string& source,
                                        std::vector<WeightSample> tensors);

}  // namespace bsfa
