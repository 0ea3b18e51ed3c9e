// The rules of `thresholds merge`, and who a calibration belongs to.

#include <gtest/gtest.h>

#include <limits>

#include "bsfa/calibration.hpp"
#include "file_bytes.hpp"

namespace bsfa::test {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
const std::string kOne = "torch:" + std::string(32, '1'), kTwo = "torch:" + std::string(32, '2'),
                  kGguf = "gguf:" + std::string(32, '1');

// One sample of 300 tokens whose thresholds are `value`.
Calibration part(float value, const std::string& fingerprint = "", std::int64_t tokens = 300,
                 const std::string& model = "tiny") {
  Calibration calibration({{2}, {128, 64}, 0.125f, 0, model, 0, "test", {}, fingerprint}, 1, 1);
  const std::int64_t blocks = (tokens + 127) / 128;
  const std::vector<float> values(static_cast<std::size_t>(blocks), value);
  calibration.begin_sample("s", tokens);
  calibration.add(0, 0, tokens, {values.data(), {1, 1, blocks}, {blocks, blocks, 1}});
  calibration.end_sample();
  return calibration;
}

class MergeFiles : public testing::Test {
 protected:
  void SetUp() override {
    part(10).save(one_);
    part(20).save(two_);
  }
  void refused(const MergeFilesParams& params, const std::vector<std::string>& words) {
    const std::size_t entries = directory_.num_entries();
    const Status status = error_of([&] { merge_files(params); });
    EXPECT_EQ(status.code, ErrorCode::kInvalidArgument) << status.message;
    for (const std::string& word : words) {
      EXPECT_NE(status.message.find(word), std::string::npos) << status.message;
    }
    EXPECT_EQ(directory_.num_entries(), entries) << "something was written";
  }

  TemporaryDirectory directory_;
  const std::string one_ = directory_ / "one", two_ = directory_ / "two", out_ = directory_ / "out";
};

TEST_F(MergeFiles, MakesThresholdsOrSums) {
  const Calibration sum = merge_files({{one_, two_}, out_, false, "", 2, false});
  EXPECT_EQ(sum.num_samples(), 2);
  const ThresholdTable table = ThresholdTable::load(out_);
  EXPECT_EQ(table.values(), (std::vector<float>{15, 15, 15}));
  EXPECT_EQ(table.metadata().recommended_budget, 2);
  merge_files({{one_, two_}, out_, true, "renamed"});
  EXPECT_EQ(Calibration::load(out_).finish().values(), table.values());
  EXPECT_EQ(Calibration::load(out_).metadata().model, "renamed");
}

TEST_F(MergeFiles, SumsAreNotReplacedByThresholds) {
  const std::string before = read_bytes(one_);
  std::filesystem::create_symlink("one", directory_ / "soft");
  std::filesystem::create_hard_link(one_, directory_ / "hard");
  for (const std::string& out : {one_, directory_ / "soft", directory_ / "hard"}) {
    refused({{one_}, out}, {"out is", "would be lost"});
    refused({{two_, one_}, out}, {"would be lost"});
  }
  EXPECT_EQ(read_bytes(one_), before);
  // The sum again may take the place of one of its parts: nothing is lost.
  merge_files({{one_, two_}, one_, true});
  EXPECT_EQ(Calibration::load(one_).num_samples(), 2);
  // And a second time it would count the other part twice.
  refused({{one_, two_}, one_, true}, {two_, "1 sample in common"});
}

TEST_F(MergeFiles, NothingCountsTwice) {
  std::filesystem::create_symlink("one", directory_ / "soft");
  std::filesystem::create_hard_link(one_, directory_ / "hard");
  std::filesystem::copy_file(one_, directory_ / "copy");
  refused({{one_, one_}, out_}, {one_, "given twice"});
  refused({{one_, two_, directory_ / "soft"}, out_}, {"same file as", one_});
  refused({{one_, directory_ / "hard"}, out_}, {"same file as", one_});
  refused({{one_, directory_ / "copy"}, out_}, {"copy", "1 sample in common"});
  merge_files({{one_, two_}, directory_ / "both", true});
  refused({{directory_ / "both", two_}, out_}, {two_, "in common"});
  // Samples without a finite threshold add nothing, and may look alike.
  part(-kInf, "", 128).save(directory_ / "short");
  std::filesystem::copy_file(directory_ / "short", directory_ / "short2");
  EXPECT_EQ(merge_files({{directory_ / "short", directory_ / "short2", one_}, out_}).num_samples(),
            3);
}

TEST_F(MergeFiles, SumsWithoutSampleIdentifiersAreCompared) {
  // As an older version wrote them.
  const std::string header =
      R"({"__metadata__":{"format":"bsfa-calibration","version":"1","budgets":"[2]",)"
      R"("q_block":"128","kv_block":"64","softmax_scale":"0.125","max_seqlen":"100",)"
      R"("model":"tiny","num_samples":"1","producer":"p"},)"
      R"("sums":{"dtype":"F64","shape":[1,1,1,1],"data_offsets":[0,8]},)"
      R"("finite":{"dtype":"I64","shape":[1,1,1,1],"data_offsets":[8,16]},)"
      R"("reached":{"dtype":"I64","shape":[1],"data_offsets":[16,24]}})";
  const auto data = [](double sum) {
    return raw(std::vector<double>{sum}) + raw(std::vector<std::int64_t>{1, 1});
  };
  write_bytes(directory_ / "old", container(header, data(3)));
  write_bytes(directory_ / "old2", container(header, data(3)));
  write_bytes(directory_ / "old3", container(header, data(4)));
  refused({{directory_ / "old", directory_ / "old2"}, out_}, {"old2", "in common"});
  EXPECT_EQ(merge_files({{directory_ / "old", directory_ / "old3"}, out_}).num_samples(), 2);
}

TEST_F(MergeFiles, OtherWeightsAreRefusedUnlessMeant) {
  part(1, kOne).save(directory_ / "a");
  part(2, kTwo).save(directory_ / "b");
  part(3, kOne).save(directory_ / "c");
  part(4, kGguf).save(directory_ / "d");
  const std::string a = directory_ / "a", b = directory_ / "b", c = directory_ / "c",
                    d = directory_ / "d";
  refused({{a, b}, out_}, {b, "different weights", kOne, kTwo, "allow_other_model"});
  const auto merged = [&](const std::vector<std::string>& parts, bool allow = false) {
    return merge_files({parts, out_, false, "", {}, allow}).metadata().fingerprint;
  };
  EXPECT_EQ(merged({a, c}), kOne);
  EXPECT_EQ(ThresholdTable::load(out_).metadata().fingerprint, kOne);
  EXPECT_EQ(merged({a, b}, true), "");
  // What is not known of one part, or cannot be compared, is not said of the sum.
  EXPECT_EQ(merged({a, one_}), "");
  EXPECT_EQ(merged({one_, a}), "");
  EXPECT_EQ(merged({a, d}), "");
  EXPECT_EQ(ThresholdTable::load(out_).metadata().fingerprint, "");
}

TEST_F(MergeFiles, BadParametersWriteNothing) {
  refused({{}, out_}, {"parts is empty"});
  refused({{one_}, out_, true, "", 2}, {"recommended_budget is 2", "partial"});
  refused({{one_}, out_, false, "", 3}, {"recommended_budget is 3"});
  part(1, "", 300, "another").save(directory_ / "another");
  refused({{one_, directory_ / "another"}, out_}, {"another", "'tiny'"});
  const Status missing = error_of([&] { merge_files({{one_, directory_ / "none"}, out_}); });
  EXPECT_EQ(missing.code, ErrorCode::kIo);
}

TEST(CalibrationOfNothing, IsNeitherSavedNorFinished) {
  const TemporaryDirectory directory;
  // 300 tokens leave two blocks over at budget 2: a gated layer has a threshold there.
  const Calibration windowed = part(-kInf);
  const Status finished = error_of([&] { (void)windowed.finish(); });
  EXPECT_EQ(finished.code, ErrorCode::kInvalidArgument);
  EXPECT_NE(finished.message.find("nothing was calibrated"), std::string::npos) << finished.message;
  EXPECT_NE(error_of([&] { windowed.save(directory / "part"); }).message, "");
  EXPECT_EQ(directory.num_entries(), 0u);
  // A text that fits into the budget has none either, and is a sample like any other.
  const Calibration fits = part(-kInf, "", 256);
  fits.save(directory / "part");
  EXPECT_EQ(Calibration::load(directory / "part").finish().values(),
            (std::vector<float>{-kInf, -kInf}));
}

TEST(OtherModel, FingerprintsDecideBeforeNames) {
  const auto table = [](const std::string& model, const std::string& fingerprint) {
    return ThresholdTable({{2}, {128, 64}, 0.125f, 128, model, 1, "p", {}, fingerprint}, 1, 1, 1,
                          {0});
  };
  const ThresholdTable known = table("org/Model-8B", kOne);
  EXPECT_EQ(known.other_model("something else", kOne), "");
  const std::string differs = known.other_model("org/Model-8B", kTwo);
  EXPECT_NE(differs.find("'org/Model-8B'"), std::string::npos) << differs;
  EXPECT_NE(differs.find(kOne), std::string::npos) << differs;
  EXPECT_NE(differs.find(kTwo), std::string::npos) << differs;
  // Not comparable: names.
  for (const std::string& unknown : {std::string(), kGguf}) {
    for (const char* alike :
         {"Model-8B", "/models/org/model-8b/", "x/MODEL_8B-q8_0.gguf", "", "model-8b-instruct"}) {
      EXPECT_EQ(known.other_model(alike, unknown), "") << alike;
    }
    const std::string other = known.other_model("org/Model-70B", unknown);
    EXPECT_NE(other.find("org/Model-70B"), std::string::npos) << other;
    EXPECT_NE(other.find("no fingerprints to compare"), std::string::npos) << other;
  }
  EXPECT_EQ(table("unknown", "").other_model("Model", ""), "");
  EXPECT_EQ(table("", "").other_model("Model", ""), "");
  EXPECT_EQ(error_of([&] { (void)known.other_model("", "torch:xyz"); }).code,
            ErrorCode::kInvalidArgument);
}

}  // namespace
}  // namespace bsfa::test
