// The configuration by environment and by the C interface: what is refused, and with what message.

#include "settings.hpp"

#include <gtest/gtest.h>

#include <bsfa/error.hpp>
#include <cstdlib>
#include <filesystem>
#include <string>

namespace bsfa::ggml {
namespace {

class SettingsTest : public testing::Test {
 protected:
  void SetUp() override { clear(); }
  void TearDown() override {
    clear();
    std::filesystem::remove(file_);
  }

  static void clear() {
    for (const char* name : {"BSFA_MODE", "BSFA_COMPUTE", "BSFA_BUDGET", "BSFA_THRESHOLDS",
                             "BSFA_NUM_THREADS", "BSFA_STATS", "BSFA_BACKEND", "BSFA_CPU_ISA"}) {
      unsetenv(name);
    }
  }

  std::string threshold_file(bool recommend) {
    ThresholdMetadata metadata;
    metadata.budgets = {4, 8};
    metadata.softmax_scale = 0.125F;
    metadata.max_seqlen = 256;
    metadata.model = "test";
    metadata.num_samples = 1;
    metadata.producer = "test";
    if (recommend) metadata.recommended_budget = 8;
    file_ = testing::TempDir() + "settings_test_" + std::to_string(recommend) + ".safetensors";
    ThresholdTable(metadata, 2, 3, 2, std::vector<float>(2 * 2 * 3 * 2, 0.0F)).save(file_);
    return file_;
  }

  // The message with which the environment is refused.
  static std::string refusal() {
    try {
      (void)settings_from_environment();
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  }

  std::string file_;
};

TEST_F(SettingsTest, DenseIsTheDefault) {
  const Settings settings = settings_from_environment();
  EXPECT_EQ(settings.mode, BSFA_GGML_DENSE);
  EXPECT_EQ(settings.compute, BSFA_GGML_BF16);
  EXPECT_EQ(settings.num_threads, 0);
}

TEST_F(SettingsTest, AThresholdFileMeansTheThresholdPolicy) {
  setenv("BSFA_THRESHOLDS", threshold_file(true).c_str(), 1);
  setenv("BSFA_COMPUTE", "exact", 1);
  Settings settings = settings_from_environment();
  EXPECT_EQ(settings.mode, BSFA_GGML_THRESHOLD);
  EXPECT_EQ(settings.compute, BSFA_GGML_EXACT);
  EXPECT_EQ(settings.budget, 8);  // the recommended one
  ASSERT_NE(settings.thresholds, nullptr);
  setenv("BSFA_BUDGET", "4", 1);
  settings = settings_from_environment();
  EXPECT_EQ(settings.budget, 4);
}

TEST_F(SettingsTest, RefusalsNameTheVariable) {
  const std::pair<const char*, const char*> cases[] = {
      {"BSFA_MODE", "sparse"},
      {"BSFA_COMPUTE", "fp8"},
      {"BSFA_BUDGET", "many"},
      {"BSFA_BUDGET", "-1"},
      {"BSFA_BUDGET", "4x"},
      {"BSFA_NUM_THREADS", "0"},
      {"BSFA_NUM_THREADS", "two"},
      {"BSFA_BACKEND", "abacus"},
      {"BSFA_NUM_THREADS", "4294967297"},
      {"BSFA_NUM_THREADS", "4097"},
      {"BSFA_BUDGET", "9223372036854775808"},
      {"BSFA_BUDGET", "536870913"},
      {"BSFA_STATS", "18446744073709551617"},
      {"BSFA_STATS", "2"},
      {"BSFA_CPU_ISA", "sse9"},
  };
  for (const auto& [name, value] : cases) {
    clear();
    setenv(name, value, 1);
    const std::string message = refusal();
    EXPECT_NE(message.find(value), std::string::npos) << name << ": " << message;
    EXPECT_NE(message.find("accepted"), std::string::npos) << name << ": " << message;
  }
}

// A name that is misspelt is no shape that nobody serves; where nothing is computed here it is none
// of the module's business.
TEST_F(SettingsTest, AnInstructionSetThatIsNoneIsSaidToBeNone) {
  setenv("BSFA_CPU_ISA", "avx215", 1);
  EXPECT_NE(refusal().find("BSFA_CPU_ISA is 'avx215'; accepted here: baseline"), std::string::npos)
      << refusal();
  setenv("BSFA_MODE", "off", 1);
  EXPECT_EQ(refusal(), "");
  bsfa_ggml_config config{};
  config.mode = BSFA_GGML_DENSE;
  EXPECT_THROW(settings_from_config(config, {}), Error);
}

TEST_F(SettingsTest, WhatTheEnvironmentHoldsIsNotPrintedAsItIs) {
  setenv("BSFA_MODE", "\x1b[2J\xff", 1);
  EXPECT_EQ(refusal().rfind("BSFA_MODE is '\\x1b[2J\\xff'; accepted", 0), 0u) << refusal();
  setenv("BSFA_MODE", std::string(100000, 'x').c_str(), 1);
  EXPECT_LT(refusal().size(), 300u);
}

TEST_F(SettingsTest, ThresholdsAreNeverIgnored) {
  setenv("BSFA_THRESHOLDS", threshold_file(true).c_str(), 1);
  setenv("BSFA_MODE", "dense", 1);
  EXPECT_NE(refusal(), "");
  setenv("BSFA_MODE", "threshold", 1);
  EXPECT_EQ(refusal(), "");
  unsetenv("BSFA_THRESHOLDS");
  EXPECT_NE(refusal().find("BSFA_THRESHOLDS"), std::string::npos);
}

TEST_F(SettingsTest, BadFilesAndBudgets) {
  setenv("BSFA_THRESHOLDS", "/nonexistent/file", 1);
  EXPECT_NE(refusal().find("/nonexistent/file"), std::string::npos);
  setenv("BSFA_THRESHOLDS", threshold_file(true).c_str(), 1);
  setenv("BSFA_BUDGET", "5", 1);
  EXPECT_NE(refusal().find("5"), std::string::npos);
  std::filesystem::remove(file_);
  setenv("BSFA_THRESHOLDS", threshold_file(false).c_str(), 1);
  unsetenv("BSFA_BUDGET");
  EXPECT_NE(refusal().find("BSFA_BUDGET"), std::string::npos);
}

TEST_F(SettingsTest, TheInterfaceRefusesToo) {
  bsfa_ggml_config config{};
  config.mode = BSFA_GGML_CALIBRATE;  // without a callback
  EXPECT_THROW(settings_from_config(config, {}), Error);
  config.mode = 17;
  EXPECT_THROW(settings_from_config(config, {}), Error);
  config.mode = BSFA_GGML_SLIDING_WINDOW;
  config.budget = -1;
  EXPECT_THROW(settings_from_config(config, {}), Error);
  config.budget = 2;
  Settings base;
  base.num_threads = 3;
  EXPECT_EQ(settings_from_config(config, base).num_threads, 3);
}

}  // namespace
}  // namespace bsfa::ggml
