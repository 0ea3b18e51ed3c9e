// bsfa bench kernel: what it reports, not how fast anything is.

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "run_program.hpp"

namespace bsfa::test {
namespace {

TEST(CliBench, KernelReportsEveryContestant) {
  const ProgramRun run = run_program(
      "bench kernel --heads 2/1 --head-dim 32 --tokens 512,700 --density 0.5,0.25 --rounds 3 "
      "--json");
  ASSERT_EQ(run.exit_code, 0) << run.err;
  const auto report = nlohmann::json::parse(run.out);
  EXPECT_EQ(report["rounds"], 3);
  ASSERT_EQ(report["shapes"].size(), 2U);
  for (const auto& shape : report["shapes"]) {
    EXPECT_EQ(shape["heads_q"], 2);
    EXPECT_EQ(shape["heads_kv"], 1);
    EXPECT_EQ(shape["head_dim"], 32);
    EXPECT_FALSE(shape["kernel"].get<std::string>().empty());
    ASSERT_EQ(shape["contestants"].size(), 6U);
    double last_density = 1.01;
    for (const auto& entry : shape["contestants"]) {
      const auto& time = entry["milliseconds"];
      EXPECT_GT(time["min"].get<double>(), 0);
      EXPECT_LE(time["min"], time["median"]);
      EXPECT_LE(time["median"], time["max"]);
      EXPECT_GT(entry["gflops"].get<double>(), 0);
      EXPECT_LT(entry["relative_error"].get<double>(), 0.03);
      const auto density = entry["density"].get<double>();
      if (entry.contains("gain_over_dense")) {
        EXPECT_LT(density, last_density);
        EXPECT_GT(entry["gain_of_limit"].get<double>(), 0);
        last_density = density;
      } else {
        EXPECT_EQ(density, 1.0);
      }
    }
    EXPECT_NEAR(shape["contestants"][4]["density"].get<double>(), 0.5, 0.1);
  }
  EXPECT_EQ(report["shapes"][0]["tokens"], 512);
  EXPECT_EQ(report["shapes"][1]["tokens"], 700);
  // fp32 is what the oracle differs least from.
  EXPECT_LT(report["shapes"][0]["contestants"][3]["relative_error"].get<double>(), 1e-4);
}

TEST(CliBench, KernelPrintsATable) {
  const ProgramRun run = run_program("bench kernel --heads 1/1 --tokens 256 --rounds 1");
  ASSERT_EQ(run.exit_code, 0) << run.err;
  for (const char* word : {"bsfa bf16 ", "bsfa f32 ", "gated 0.24", "256 tokens", "oracle"}) {
    EXPECT_NE(run.out.find(word), std::string::npos) << word << "\n" << run.out;
  }
}

TEST(CliBench, RefusesBadShapes) {
  const std::pair<const char*, const char*> cases[] = {
      {"--heads 3/2", "--heads"},   {"--heads 8", "--heads"},   {"--heads 8/0", "--heads"},
      {"--heads 8/2x", "--heads"},  {"--tokens 1", "--tokens"}, {"--density 1.5", "--density"},
      {"--threads 0", "--threads"}, {"--rounds 0", "--rounds"}, {"--head-dim 12", "head_dim"},
  };
  for (const auto& [arguments, message] : cases) {
    const ProgramRun run = run_program(std::string("bench kernel ") + arguments);
    EXPECT_EQ(run.exit_code, 2) << arguments;
    EXPECT_NE(run.err.find(message), std::string::npos) << arguments << ": " << run.err;
    EXPECT_EQ(run.out, "");
  }
}

}  // namespace
}  // namespace bsfa::test
