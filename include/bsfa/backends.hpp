#pragma once

#include <string>
#include <vector>

#include "bsfa/export.hpp"
#include "bsfa/tensor.hpp"

namespace bsfa {

struct BackendInfo {
  std::string name;         // accepted by AttentionParams::backend
  DeviceType device;        // of the tensors that it takes
  bool available;           // on this machine
  std::string description;  // what it was built with and what it found: instruction sets, cards
};

// Every backend in this build, the preferred one of each device first.
BSFA_API std::vector<BackendInfo> backends();

// "0.1.0"
BSFA_API const char* version();

}  // namespace bsfa
