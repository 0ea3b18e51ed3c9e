#pragma once

#include <gtest/gtest.h>

#include <cstdlib>
#include <string>

#include "cpu/isa.hpp"

namespace bsfa::testing {

// BSFA_CPU_ISA for as long as this object lives.
class ScopedIsa {
 public:
  explicit ScopedIsa(const std::string& name) {
    const char* before = std::getenv("BSFA_CPU_ISA");
    had_ = before != nullptr;
    if (had_) before_ = before;
    setenv("BSFA_CPU_ISA", name.c_str(), 1);
  }
  ~ScopedIsa() {
    if (had_) {
      setenv("BSFA_CPU_ISA", before_.c_str(), 1);
    } else {
      unsetenv("BSFA_CPU_ISA");
    }
  }
  ScopedIsa(const ScopedIsa&) = delete;
  ScopedIsa& operator=(const ScopedIsa&) = delete;

 private:
  bool had_ = false;
  std::string before_;
};

inline std::string isa_test_name(const ::testing::TestParamInfo<cpu::Isa>& test) {
  return cpu::isa_name(test.param);
}

}  // namespace bsfa::testing
