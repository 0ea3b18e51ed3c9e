#pragma once

#include <cstring>
#include <string>

#include "bsfa/bsfa_c.h"

namespace bsfa::test {

// A struct of the C ABI as its users begin with it.
template <typename T>
T zeroed() {
  T value;
  std::memset(&value, 0, sizeof(value));
  value.struct_size = sizeof(value);
  return value;
}

inline std::string last_error() { return bsfa_last_error(); }

}  // namespace bsfa::test
