// The command line on the real model: calibrate, run and bench in turn, and the refusals that need
// a model.

#include <gtest/gtest.h>

#include <bsfa/calibration.hpp>
#include <bsfa/thresholds.hpp>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "run_program.hpp"

namespace bsfa::test {
namespace {

using nlohmann::json;

const std::string kModel = " --model '" BSFA_TEST_MODEL "' --threads 2";
const std::string kPrompt = " --prompt-file '" BSFA_TEST_TEXT "'";

// A threshold file of the model from two short samples, made once by the command line itself.
class CliModel : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    directory_ = new TemporaryDirectory;
    std::ifstream text(BSFA_TEST_TEXT);
    std::string part(2600, ' ');
    json list = json::array();
    for (int i = 0; i < 2; ++i) {
      text.read(part.data(), std::ssize(part));
      list.push_back({{"input_text", part}, {"task_name", "tales"}});
    }
    std::ofstream(*directory_ / "data.json") << list;
    calibration_ =
        run_program("calibrate" + kModel + " --data " + (*directory_ / "data.json") +
                    " --budgets 2,1 --recommend 2 --max-tokens 600 --model-name tales" + " --out " +
                    thresholds() + " --partial " + (*directory_ / "partial") + " --json");
  }
  static void TearDownTestSuite() { delete directory_; }

  static std::string thresholds() { return *directory_ / "thresholds"; }

  static TemporaryDirectory* directory_;
  static ProgramRun calibration_;
};

TemporaryDirectory* CliModel::directory_ = nullptr;
ProgramRun CliModel::calibration_;

TEST_F(CliModel, CalibrateWritesAFileThatSaysWhatItIs) {
  ASSERT_EQ(calibration_.exit_code, 0) << calibration_.err;
  const json report = json::parse(calibration_.out);
  EXPECT_EQ(report["num_samples"], 2);
  const ThresholdTable table = ThresholdTable::load(thresholds());
  EXPECT_EQ(table.metadata().budgets, (std::vector<std::int64_t>{1, 2}));
  EXPECT_EQ(table.metadata().recommended_budget, 2);
  EXPECT_EQ(table.metadata().num_samples, 2);
  EXPECT_EQ(table.metadata().model, "tales");
  EXPECT_EQ(table.metadata().softmax_scale, 0.125F);
  EXPECT_EQ(table.metadata().max_seqlen, report["max_seqlen"]);
  EXPECT_TRUE(table.metadata().fingerprint.starts_with("gguf:")) << table.metadata().fingerprint;
  EXPECT_EQ(Calibration::load(*directory_ / "partial").metadata().fingerprint,
            table.metadata().fingerprint);
  EXPECT_EQ(table.num_layers(), 30);
  EXPECT_EQ(table.num_heads_q(), 9);
  EXPECT_EQ(table.num_q_blocks(), (table.metadata().max_seqlen + 127) / 128);
  // A larger budget lets more through; the first query block has nothing to leave out.
  const ThresholdView one = table.view(1, 3), two = table.view(2, 3);
  for (std::int64_t head = 0; head < 9; ++head) {
    EXPECT_EQ(one.data[head * one.stride_head], -std::numeric_limits<float>::infinity());
    for (std::int64_t block = 2; block < table.num_q_blocks(); ++block) {
      EXPECT_GE(one.data[head * one.stride_head + block], two.data[head * two.stride_head + block]);
    }
  }
  EXPECT_EQ(Calibration::load(*directory_ / "partial").num_samples(), 2);
}

TEST_F(CliModel, RunReportsEveryContestant) {
  const ProgramRun run = run_program(
      "run" + kModel + kPrompt + " --thresholds " + thresholds() +
      " --prompt-tokens 580 --question 'Who is this about?' --runs 2 --answer-tokens 4" +
      " --compare stock,dense,sliding_window --json");
  ASSERT_EQ(run.exit_code, 0) << run.err;
  const json report = json::parse(run.out);
  EXPECT_EQ(report["budget"], 2);
  ASSERT_EQ(report["lengths"].size(), 1U);
  const json& length = report["lengths"][0];
  EXPECT_NEAR(length["prompt_tokens"].get<double>(), 580, 8);
  ASSERT_EQ(length["contestants"].size(), 4U);
  const char* const names[] = {"stock", "dense", "sliding_window", "bsfa"};
  for (std::size_t i = 0; i < 4; ++i) {
    const json& contestant = length["contestants"][i];
    EXPECT_EQ(contestant["name"], names[i]);
    EXPECT_EQ(contestant["ttft_runs"].size(), 2U);
    EXPECT_GT(contestant["ttft_seconds"].get<double>(), 0);
    EXPECT_GT(contestant["attention_share"].get<double>(), 0);
    EXPECT_LT(contestant["attention_share"].get<double>(), 1);
    EXPECT_EQ(contestant["layers"].size(), i == 0 ? 0U : 30U) << contestant["name"];
  }
  EXPECT_EQ(length["contestants"][1]["density"], 1.0);
  EXPECT_LT(length["contestants"][2]["density"].get<double>(), 1);
  EXPECT_LT(length["contestants"][3]["density"].get<double>(), 1);
  EXPECT_GT(length["contestants"][3]["density"].get<double>(), 0);
  EXPECT_TRUE(length["gains"].contains("kernel_ttft"));
  EXPECT_TRUE(length["gains"].contains("method_ttft"));
  EXPECT_FALSE(length["verdict"].get<std::string>().empty());
}

TEST_F(CliModel, RunPrintsATableAndWarnsOnceBeyondTheCalibratedLength) {
  const ProgramRun run =
      run_program("run" + kModel + kPrompt + " --thresholds " + thresholds() +
                  " --prompt-tokens 700,760 --runs 1 --answer-tokens 2 --compare dense --by-layer");
  ASSERT_EQ(run.exit_code, 0) << run.err;
  for (const char* part : {"dense", "bsfa", "TTFT", "density by layer", "the method", "verdict"}) {
    EXPECT_NE(run.out.find(part), std::string::npos) << part << "\n" << run.out;
  }
  const std::size_t first = run.err.find("warning");
  ASSERT_NE(first, std::string::npos) << run.err;
  EXPECT_EQ(run.err.find("warning", first + 1), std::string::npos);
}

TEST_F(CliModel, ThresholdsOfOtherWeightsAreSaidOnce) {
  ThresholdTable table = ThresholdTable::load(thresholds());
  ThresholdMetadata metadata = table.metadata();
  metadata.fingerprint = "gguf:" + std::string(32, '1');
  const std::string other = *directory_ / "other_weights";
  ThresholdTable(metadata, table.num_layers(), table.num_heads_q(), table.num_q_blocks(),
                 table.values())
      .save(other);
  const std::string rest = " --prompt-tokens 300 --runs 1 --answer-tokens 1 --compare dense";
  const auto warnings = [&](const std::string& file) {
    const ProgramRun run = run_program("run" + kModel + kPrompt + rest + " --thresholds " + file);
    EXPECT_EQ(run.exit_code, 0) << run.err;
    return run.err;
  };
  EXPECT_EQ(warnings(thresholds()), "");
  EXPECT_EQ(warnings(other + " --allow-other-model"), "");
  const std::string said = warnings(other);
  const std::size_t first = said.find("warning");
  ASSERT_NE(first, std::string::npos) << said;
  EXPECT_NE(said.find(metadata.fingerprint), std::string::npos) << said;
  EXPECT_EQ(said.find("warning", first + 1), std::string::npos) << said;
  std::filesystem::remove(other);
}

TEST_F(CliModel, NeedleCountsDepths) {
  const ProgramRun run =
      run_program("bench needle" + kModel + kPrompt + " --thresholds " + thresholds() +
                  " --prompt-tokens 500 --depths 2 --budget 1,2 --json");
  ASSERT_EQ(run.exit_code, 0) << run.err;
  const json report = json::parse(run.out);
  EXPECT_EQ(report["cases"].size(), 2U);
  ASSERT_EQ(report["budgets"].size(), 2U);
  EXPECT_LT(report["budgets"][0]["density"].get<double>(),
            report["budgets"][1]["density"].get<double>());
}

TEST_F(CliModel, LogitsStayWithinStocksOwnDifferences) {
  const ProgramRun run = run_program("bench logits" + kModel + kPrompt + " --tokens 700 --json");
  ASSERT_EQ(run.exit_code, 0) << run.err;
  const json report = json::parse(run.out);
  EXPECT_EQ(report["exact_within_stock"], true) << run.out;
  EXPECT_EQ(report["bf16_tokens_agree_beyond_error"], true) << run.out;
}

TEST_F(CliModel, RefusalsThatNeedTheModel) {
  const std::string other = *directory_ / "other";
  ThresholdTable({{2}, {128, 64}, 0.125F, 256, "other", 1, "test", {}}, 2, 3, 2,
                 std::vector<float>(2 * 3 * 2, 0.0F))
      .save(other);
  const struct {
    std::string arguments;
    int exit_code;
    const char* message;
  } cases[] = {
      {"run" + kModel + kPrompt + " --thresholds " + thresholds(), 2, "context"},
      {"run" + kModel + kPrompt + " --thresholds " + other + " --prompt-tokens 300", 2, "other"},
      {"run" + kModel + kPrompt + " --thresholds " + thresholds() + " --prompt-tokens 300" +
           " --budget 3",
       2, "3"},
      {"run" + kModel + kPrompt + " --thresholds " + thresholds() + " --prompt-tokens 9", 2,
       "--prompt-tokens"},
      {"run" + kModel + kPrompt + " --thresholds " + thresholds() + " --prompt-tokens 300" +
           " --compare fast",
       2, "--compare"},
      {"calibrate" + kModel + " --data " + (*directory_ / "data.json") +
           " --max-tokens 99999 --out " + (*directory_ / "none"),
       2, "--max-tokens"},
      {"bench logits" + kModel + kPrompt + " --tokens 100000", 2, "--tokens"},
  };
  for (const auto& entry : cases) {
    const ProgramRun run = run_program(entry.arguments);
    EXPECT_EQ(run.exit_code, entry.exit_code) << entry.arguments << "\n" << run.err;
    EXPECT_NE(run.err.find(entry.message), std::string::npos) << entry.arguments << "\n" << run.err;
  }
  EXPECT_FALSE(std::filesystem::exists(*directory_ / "none"));
}

// The exit code and what the program says on stderr, begun by the shell command `prefix`.
std::pair<int, std::string> run_with(const std::string& prefix, const std::string& arguments) {
  const std::string command = prefix + " '" BSFA_PROGRAM "' " + arguments + " 2>&1 >/dev/null";
  FILE* pipe = popen(command.c_str(), "r");
  if (pipe == nullptr) return {-1, "popen failed"};
  std::string text;
  for (int c; (c = std::fgetc(pipe)) != EOF;) text.push_back(static_cast<char>(c));
  return {WEXITSTATUS(pclose(pipe)), text};
}

TEST_F(CliModel, NoRoomForTheOutputLeavesNothing) {
  const std::string out = *directory_ / "full";
  std::ofstream(out) << "before";
  const auto count = [] {
    return std::distance(std::filesystem::directory_iterator(*directory_ / ""),
                         std::filesystem::directory_iterator());
  };
  const auto files = count();
  const auto [code, text] =
      run_with("trap '' XFSZ; ulimit -f 1; exec", "calibrate" + kModel + " --data " +
                                                      (*directory_ / "data.json") +
                                                      " --samples 1 --max-tokens 300 --out " + out);
  EXPECT_EQ(code, 1);
  EXPECT_NE(text.find(out), std::string::npos) << text;
  EXPECT_EQ(count(), files);
  EXPECT_EQ(read_bytes(out), "before");
}

TEST_F(CliModel, ResultsThatCannotBeWrittenAreAFailure) {
  for (const std::string& verb :
       {"run" + kModel + kPrompt + " --thresholds " + thresholds() +
            " --prompt-tokens 300 --runs 1 --answer-tokens 1 --compare dense",
        "bench logits" + kModel + kPrompt + " --tokens 64 --json"}) {
    const std::string command = "'" BSFA_PROGRAM "' " + verb + " 2>&1 >/dev/full";
    FILE* pipe = popen(command.c_str(), "r");
    ASSERT_NE(pipe, nullptr);
    std::string text;
    for (int c; (c = std::fgetc(pipe)) != EOF;) text.push_back(static_cast<char>(c));
    EXPECT_EQ(WEXITSTATUS(pclose(pipe)), 1) << verb;
    EXPECT_NE(text.find("standard output cannot be written"), std::string::npos) << text;
  }
}

TEST_F(CliModel, AModuleThatIsMisconfiguredIsNotLoaded) {
  for (const char* setting : {"BSFA_MODE=sparse", "BSFA_COMPUTE=fp8", "BSFA_THRESHOLDS=/none",
                              "BSFA_NUM_THREADS=4294967297", "BSFA_CPU_ISA=avx215"}) {
    const auto [code, text] =
        run_with(std::string("env ") + setting, "bench logits" + kModel + kPrompt + " --tokens 64");
    EXPECT_EQ(code, 1) << setting;
    EXPECT_NE(text.find("not loaded"), std::string::npos) << setting << "\n" << text;
  }
}

}  // namespace
}  // namespace bsfa::test
