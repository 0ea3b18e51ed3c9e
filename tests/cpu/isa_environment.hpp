#pragma once

#include <gtest/gtest.h>

#include <cstdlib>
#include <ostream>
#include <string>
#include <vector>

#include "cpu/isa.hpp"
#include "support/sanitized.hpp"

namespace bsfa::cpu {

// How the tests print their parameter.
inline void PrintTo(Isa isa, std::ostream* stream) { *stream << isa_name(isa); }

}  // namespace bsfa::cpu

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

// All of this machine; under the thread sanitizer the best one, since how threads share work is the
// same for all.
inline std::vector<cpu::Isa> isas_to_test() {
  const std::vector<cpu::Isa>& all = cpu::available_isas();
  return kThreadSanitizer ? std::vector<cpu::Isa>{all.back()} : all;
}

inline std::string isa_test_name(const ::testing::TestParamInfo<cpu::Isa>& test) {
  return cpu::isa_name(test.param);
}

}  // namespace bsfa::testing
