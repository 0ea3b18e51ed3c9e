// A build without llama.cpp says so, whatever the arguments.

#include <gtest/gtest.h>

#include "run_program.hpp"

namespace bsfa::test {
namespace {

TEST(CliAbsent, TheVerbsSayWhatIsMissing) {
  for (const char* verb : {"run", "calibrate", "bench needle", "bench logits"}) {
    for (const char* arguments : {"", " --model x --anything y"}) {
      const ProgramRun run = run_program(std::string(verb) + arguments);
      EXPECT_EQ(run.exit_code, 2) << verb;
      EXPECT_NE(run.err.find("setup_llama.sh"), std::string::npos) << run.err;
    }
  }
}

}  // namespace
}  // namespace bsfa::test
