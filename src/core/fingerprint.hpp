#pragma once

#include <string>

#include "bsfa/error.hpp"
#include "bsfa/fingerprint.hpp"

namespace bsfa {

// Refuses what is neither empty nor "<source>:<hexadecimal digits>".
Status check_fingerprint(const std::string& fingerprint);

// Whether both are there and of one kind of source: only then do they say anything about each
// other.
bool comparable_fingerprints(const std::string& a, const std::string& b);

}  // namespace bsfa
