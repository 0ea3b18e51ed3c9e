#include <gtest/gtest.h>

#include <limits>
#include <nlohmann/json.hpp>

#include "bsfa/calibration.hpp"
#include "run_program.hpp"

namespace bsfa::test {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

// One sample of `tokens` tokens whose thresholds are `value`, 8 less for the larger budget.
void save_part(const std::string& path, std::int64_t tokens, float value,
               const std::string& model = "tiny", std::int64_t heads = 3,
               const std::string& fingerprint = "") {
  Calibration calibration({{2, 4}, {128, 64}, 0.125f, 0, model, 0, "test", {}, fingerprint}, 2,
                          heads);
  const std::int64_t blocks = (tokens + 127) / 128;
  std::vector<float> values(static_cast<std::size_t>(2 * heads * blocks), value - 8);
  std::fill_n(values.begin(), heads * blocks, value);
  calibration.begin_sample("s", tokens);
  for (const std::int64_t layer : {0, 1}) {
    calibration.add(layer, 0, tokens,
                    {values.data(), {2, heads, blocks}, {heads * blocks, blocks, 1}});
  }
  calibration.end_sample();
  calibration.save(path);
}

// A GGUF header with the fields that matter and two that do not.
std::string gguf(std::uint32_t layers, std::uint32_t heads, std::uint32_t embedding,
                 std::uint32_t context) {
  const auto word = [](std::uint32_t value) { return little_endian(value).substr(0, 4); };
  const auto text = [](const std::string& value) { return little_endian(value.size()) + value; };
  const auto count = [&](const std::string& key, std::uint32_t value) {
    return text(key) + word(4) + word(value);
  };
  const std::string tokens =
      text("tokenizer.tokens") + word(9) + word(8) + little_endian(2) + text("a") + text("bc");
  std::string head_counts = text("x.attention.head_count") + word(9) + word(4) +
                            little_endian(layers);  // one for each layer
  for (std::uint32_t layer = 0; layer < layers; ++layer) head_counts += word(heads);
  return "GGUF" + word(3) + little_endian(0) + little_endian(7) + text("general.architecture") +
         word(8) + text("x") + tokens + text("x.rope") + word(6) + word(0x3f800000) +
         count("x.block_count", layers) + head_counts + count("x.embedding_length", embedding) +
         count("x.context_length", context);
}

void expect_failure(const ProgramRun& run, int code, const std::vector<std::string>& parts) {
  EXPECT_EQ(run.exit_code, code) << run.err;
  EXPECT_EQ(run.out, "");
  for (const std::string& part : parts) {
    EXPECT_NE(run.err.find(part), std::string::npos) << "'" << part << "' is not in: " << run.err;
  }
}

class CliThresholds : public testing::Test {
 protected:
  void SetUp() override {
    save_part(one_, 700, 10);
    save_part(two_, 300, 20);
  }

  // Both merged into a threshold file.
  void make_table(const std::string& more = "") {
    const ProgramRun run =
        run_program("thresholds merge --out " + table_ + " " + more + " " + one_ + " " + two_);
    ASSERT_EQ(run.exit_code, 0) << run.err;
  }

  TemporaryDirectory directory_;
  const std::string one_ = directory_ / "one.part";
  const std::string two_ = directory_ / "two.part";
  const std::string table_ = directory_ / "table.safetensors";
};

TEST_F(CliThresholds, MergeMakesTheMeanOfTheParts) {
  make_table("--recommend 4");
  const ThresholdTable table = ThresholdTable::load(table_);
  EXPECT_EQ(table.metadata().num_samples, 2);
  EXPECT_EQ(table.metadata().max_seqlen, 700);
  EXPECT_EQ(table.metadata().recommended_budget, 4);
  const ThresholdView view = table.view(2, 1);
  EXPECT_EQ(view.data[0], 15);  // both samples reach the first three blocks
  EXPECT_EQ(view.data[2], 15);
  EXPECT_EQ(view.data[3], 10);  // one reaches the rest
  EXPECT_EQ(view.data[5], 10);
  EXPECT_EQ(table.view(4, 0).data[0], 7);
}

TEST_F(CliThresholds, PartialMergesMergeAgain) {
  const std::string both = directory_ / "both.part", three = directory_ / "three.part";
  const ProgramRun partial =
      run_program("thresholds merge --json --partial --out " + both + " " + one_ + " " + two_);
  ASSERT_EQ(partial.exit_code, 0) << partial.err;
  EXPECT_EQ(nlohmann::json::parse(partial.out)["kind"], "partial calibration");
  save_part(three, 900, 30);
  const ProgramRun finished =
      run_program("thresholds merge --json --out " + table_ + " " + three + " " + both);
  ASSERT_EQ(finished.exit_code, 0) << finished.err;
  EXPECT_EQ(nlohmann::json::parse(finished.out)["num_samples"], 3);
  EXPECT_EQ(ThresholdTable::load(table_).view(2, 0).data[0], 20);
}

TEST_F(CliThresholds, MergeRefusesWhatDoesNotFit) {
  const std::string other = directory_ / "other.part", wide = directory_ / "wide.part";
  save_part(other, 300, 1, "another");
  save_part(wide, 300, 1, "tiny", 4);
  const std::string begin = "thresholds merge --out " + table_ + " " + one_ + " ";
  expect_failure(run_program(begin + other), 2, {other, "'another'", "'tiny'"});
  expect_failure(run_program(begin + wide), 2, {wide, "query heads is 4 in one and 3"});
  expect_failure(run_program(begin + one_), 2, {"given twice"});
  expect_failure(run_program(begin + (directory_ / "none")), 1, {"none", "No such file"});
  expect_failure(run_program(begin + "--recommend 3"), 2, {"recommended_budget is 3", "2, 4"});
  expect_failure(run_program(begin + "--recommend 4 --partial"), 2, {"--recommend"});
  expect_failure(run_program("thresholds merge --out " + one_ + " " + one_), 2, {"would be lost"});
  expect_failure(run_program("thresholds merge --out " + directory_ / "no/where" + " " + one_), 1,
                 {"no/where"});
  std::filesystem::create_symlink("one.part", directory_ / "link");
  std::filesystem::copy_file(one_, directory_ / "copy");
  expect_failure(run_program("thresholds merge --out " + (directory_ / "link") + " " + one_), 2,
                 {"would be lost"});
  expect_failure(run_program(begin + (directory_ / "link")), 2, {"same file"});
  expect_failure(run_program(begin + (directory_ / "copy")), 2, {"1 sample in common"});
  save_part(directory_ / "ones", 300, 1, "tiny", 3, "gguf:" + std::string(32, '1'));
  save_part(directory_ / "twos", 300, 2, "tiny", 3, "gguf:" + std::string(32, '2'));
  const std::string weights = "thresholds merge --out " + table_ + " " + (directory_ / "ones") +
                              " " + (directory_ / "twos");
  expect_failure(run_program(weights), 2, {"twos", "different weights"});
  EXPECT_EQ(directory_.num_entries(), 8u) << "something half written is left";
  EXPECT_EQ(run_program(weights + " --allow-other-model").exit_code, 0);
  const ProgramRun renamed = run_program(begin + other + " --model both");
  EXPECT_EQ(renamed.exit_code, 0) << renamed.err;
  EXPECT_EQ(ThresholdTable::load(table_).metadata().model, "both");
}

TEST_F(CliThresholds, ShowPrintsThePredictedDensity) {
  make_table();
  const ProgramRun json = run_program("thresholds show --json --length 1024 8192 -- " + table_);
  ASSERT_EQ(json.exit_code, 0) << json.err;
  const auto parsed = nlohmann::json::parse(json.out);
  EXPECT_EQ(parsed["kind"], "thresholds");
  EXPECT_EQ(parsed["num_layers"], 2);
  EXPECT_EQ(parsed["recommended_budget"], nullptr);
  ASSERT_EQ(parsed["budgets"].size(), 2u);
  EXPECT_EQ(parsed["budgets"][1]["budget"], 4);
  EXPECT_EQ(parsed["budgets"][1]["predicted"][1]["seqlen"], 8192);
  EXPECT_DOUBLE_EQ(parsed["budgets"][1]["predicted"][1]["predicted_density"],
                   predicted_density(4, 8192, {}));
  const ProgramRun text = run_program("thresholds show " + table_);
  EXPECT_EQ(text.exit_code, 0) << text.err;
  char expected[32];
  std::snprintf(expected, sizeof(expected), "%9.2f", predicted_density(2, 700, {}));
  EXPECT_NE(text.out.find(expected), std::string::npos) << text.out;
  EXPECT_NE(text.out.find("tiny"), std::string::npos);
}

TEST_F(CliThresholds, ShowTakesPartialCalibrationsToo) {
  const ProgramRun json = run_program("thresholds show --json " + one_);
  ASSERT_EQ(json.exit_code, 0) << json.err;
  EXPECT_EQ(nlohmann::json::parse(json.out)["kind"], "partial calibration");
}

TEST_F(CliThresholds, BadFilesAreRefusedWithAMessage) {
  const std::string bad = directory_ / "bad";
  make_table();
  const std::string whole = read_bytes(table_);
  for (const char* verb : {"show ", "check "}) {
    write_bytes(bad, whole.substr(0, whole.size() - 5));
    expect_failure(run_program(std::string("thresholds ") + verb + bad), 2, {bad, "bytes"});
    write_bytes(bad, "hello, this is no safetensors file");
    expect_failure(run_program(std::string("thresholds ") + verb + bad), 2, {bad, "header"});
    write_bytes(bad, "");
    expect_failure(run_program(std::string("thresholds ") + verb + bad), 2, {bad, "0 bytes"});
    expect_failure(run_program(std::string("thresholds ") + verb + (directory_ / "none")), 1,
                   {"none", "No such file"});
    expect_failure(run_program(std::string("thresholds ") + verb), 2, {"file"});
  }
  // A damaged partial calibration is described as one.
  const std::string part = read_bytes(one_);
  write_bytes(bad, part.substr(0, part.size() - 8) + std::string(8, '\xff'));
  expect_failure(run_program("thresholds show " + bad), 2, {bad, "'checksum'", "damaged"});
  expect_failure(run_program("thresholds check " + one_), 2, {"bsfa-calibration"});
}

TEST_F(CliThresholds, CheckComparesWithTheModel) {
  make_table();
  const std::string model = directory_ / "model.gguf";
  const std::string check = "thresholds check " + table_ + " --model " + model;
  write_bytes(model, gguf(2, 3, 192, 8192));  // head_dim 64, scale 0.125
  const ProgramRun good = run_program(check + " --json");
  ASSERT_EQ(good.exit_code, 0) << good.err;
  EXPECT_EQ(nlohmann::json::parse(good.out)["ok"], true);
  EXPECT_NE(good.out.find("8192 tokens"), std::string::npos) << "no note on the longer context";
  write_bytes(model, gguf(30, 3, 192, 8192));
  expect_failure(run_program(check), 2, {table_, "2 layers", "30"});
  write_bytes(model, gguf(2, 9, 576, 8192));
  expect_failure(run_program(check), 2, {"3 query heads", "9"});
  write_bytes(model, gguf(2, 3, 384, 8192));
  expect_failure(run_program(check), 2, {"softmax_scale 0.125"});
  const std::string header = gguf(2, 3, 192, 8192);
  for (std::size_t size = 0; size < header.size(); size += 7) {
    write_bytes(model, header.substr(0, size));
    expect_failure(run_program(check), 2, {model, "truncated"});
  }
  write_bytes(model, "GGML" + header.substr(4));
  expect_failure(run_program(check), 2, {model, "not a GGUF file"});
  expect_failure(run_program("thresholds check " + table_ + " --model " + (directory_ / "none")), 1,
                 {"none"});
}

TEST_F(CliThresholds, CheckComparesWithWhatIsSaid) {
  make_table();
  const std::string check = "thresholds check " + table_;
  EXPECT_EQ(run_program(check + " --layers 2 --heads 3 --softmax-scale 0.125 --budget 4").exit_code,
            0);
  expect_failure(run_program(check + " --layers 3"), 2, {"2 layers", "3"});
  expect_failure(run_program(check + " --heads 9"), 2, {"3 query heads", "9"});
  expect_failure(run_program(check + " --softmax-scale 0.1"), 2, {"softmax_scale"});
  expect_failure(run_program(check + " --budget 32"), 2, {"budget is 32", "2, 4"});
}

TEST_F(CliThresholds, ABudgetThatLeavesNothingOutIsNoted) {
  const std::string dense = directory_ / "dense.part";
  save_part(dense, 256, -kInf);
  ASSERT_EQ(run_program("thresholds merge --out " + table_ + " " + dense).exit_code, 0);
  const ProgramRun run = run_program("thresholds check " + table_);
  EXPECT_EQ(run.exit_code, 0);
  EXPECT_NE(run.out.find("budget 4 leaves nothing out"), std::string::npos) << run.out;
}

TEST(CliHelp, EveryVerbExplainsItself) {
  for (const char* verb :
       {"thresholds", "thresholds show", "thresholds merge", "thresholds check", "info"}) {
    const ProgramRun run = run_program(std::string(verb) + " --help");
    EXPECT_EQ(run.exit_code, 0);
    EXPECT_GT(run.out.size(), 100u) << verb;
  }
  expect_failure(run_program("thresholds"), 2, {"subcommand"});
  expect_failure(run_program("thresholds melt"), 2, {});
}

}  // namespace
}  // namespace bsfa::test
