#include "bsfa/thresholds.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "bsfa/bsfa_c.h"
#include "bsfa/fingerprint.hpp"
#include "c_abi/zeroed.hpp"
#include "file_bytes.hpp"

namespace bsfa::test {
namespace {

const std::vector<std::int64_t> kBudgets{2, 4};

bsfa_thresholds_info table_info(const std::vector<float>& values) {
  auto info = zeroed<bsfa_thresholds_info>();
  info.budgets = kBudgets.data();
  info.num_budgets = 2;
  info.num_layers = 1;
  info.num_heads_q = 2;
  info.num_q_blocks = 2;
  info.softmax_scale = 0.125f;
  info.max_seqlen = 200;
  info.num_samples = 3;
  info.recommended_budget = 4;
  info.model = "tiny";
  info.producer = "by hand";
  info.values = values.data();
  return info;
}

TEST(CAbiThresholds, CreateSaveLoadAndRead) {
  const TemporaryDirectory directory;
  const std::string path = directory / "t";
  const std::vector<float> values = good_values();
  const bsfa_thresholds_info given = table_info(values);
  bsfa_thresholds* made = nullptr;
  ASSERT_EQ(bsfa_thresholds_create(&given, &made), BSFA_OK) << last_error();
  ASSERT_EQ(bsfa_thresholds_save(made, path.c_str()), BSFA_OK) << last_error();
  bsfa_thresholds_free(made);
  bsfa_thresholds_free(nullptr);

  bsfa_thresholds* loaded = nullptr;
  ASSERT_EQ(bsfa_thresholds_load(path.c_str(), &loaded), BSFA_OK) << last_error();
  auto info = zeroed<bsfa_thresholds_info>();
  ASSERT_EQ(bsfa_thresholds_get_info(loaded, &info), BSFA_OK) << last_error();
  EXPECT_EQ((std::vector<std::int64_t>(info.budgets, info.budgets + info.num_budgets)), kBudgets);
  EXPECT_EQ(info.num_layers, 1);
  EXPECT_EQ(info.num_heads_q, 2);
  EXPECT_EQ(info.num_q_blocks, 2);
  EXPECT_EQ(info.q_block, 128);
  EXPECT_EQ(info.kv_block, 64);
  EXPECT_EQ(info.softmax_scale, 0.125f);
  EXPECT_EQ(info.max_seqlen, 200);
  EXPECT_EQ(info.num_samples, 3);
  EXPECT_EQ(info.recommended_budget, 4);
  EXPECT_STREQ(info.model, "tiny");
  EXPECT_STREQ(info.producer, "by hand");
  EXPECT_EQ((std::vector<float>(info.values, info.values + 8)), values);

  bsfa_threshold_view view;
  ASSERT_EQ(bsfa_thresholds_view(loaded, 4, 0, &view), BSFA_OK) << last_error();
  EXPECT_EQ(view.data, info.values + 4);
  EXPECT_EQ(view.num_heads, 2);
  EXPECT_EQ(view.num_q_blocks, 2);
  EXPECT_EQ(view.stride_head, 2);
  EXPECT_EQ(view.stride_batch, 0);
  EXPECT_EQ(view.q_block, 128);
  EXPECT_EQ(view.kv_block, 64);
  EXPECT_EQ(bsfa_thresholds_view(loaded, 5, 0, &view), BSFA_INVALID_ARGUMENT);
  EXPECT_NE(last_error().find("budget is 5"), std::string::npos);

  EXPECT_EQ(bsfa_thresholds_check_model(loaded, "big", 1, 2, 0.125f), BSFA_OK);
  EXPECT_EQ(bsfa_thresholds_check_model(loaded, "big", 1, 3, 0.125f), BSFA_INVALID_ARGUMENT);
  EXPECT_NE(last_error().find("big has 3"), std::string::npos) << last_error();
  EXPECT_EQ(bsfa_thresholds_set_recommended_budget(loaded, 3), BSFA_INVALID_ARGUMENT);
  EXPECT_EQ(bsfa_thresholds_set_recommended_budget(loaded, 0), BSFA_OK);
  ASSERT_EQ(bsfa_thresholds_get_info(loaded, &info), BSFA_OK);
  EXPECT_EQ(info.recommended_budget, 0);
  bsfa_thresholds_free(loaded);
}

TEST(CAbiThresholds, RefusalsLeaveThePointerAlone) {
  const TemporaryDirectory directory;
  const std::string path = directory / "bad";
  auto* const untouched = reinterpret_cast<bsfa_thresholds*>(0x10);
  bsfa_thresholds* thresholds = untouched;
  EXPECT_EQ(bsfa_thresholds_load((directory / "none").c_str(), &thresholds), BSFA_IO);
  write_bytes(path, good_file().substr(0, 100));
  EXPECT_EQ(bsfa_thresholds_load(path.c_str(), &thresholds), BSFA_FORMAT);
  EXPECT_NE(last_error().find(path), std::string::npos);
  EXPECT_EQ(bsfa_thresholds_load(nullptr, &thresholds), BSFA_INVALID_ARGUMENT);
  EXPECT_EQ(last_error(), "path is null");
  EXPECT_EQ(bsfa_thresholds_load(path.c_str(), nullptr), BSFA_INVALID_ARGUMENT);

  const std::vector<float> values{1, 2, 3, 4, 5, 6, 7, std::nanf("")};
  bsfa_thresholds_info info = table_info(values);
  EXPECT_EQ(bsfa_thresholds_create(&info, &thresholds), BSFA_INVALID_ARGUMENT);
  EXPECT_NE(last_error().find("NaN"), std::string::npos);
  info.num_layers = INT64_MAX;
  EXPECT_EQ(bsfa_thresholds_create(&info, &thresholds), BSFA_INVALID_ARGUMENT);
  info = table_info(values);
  info.values = nullptr;
  EXPECT_EQ(bsfa_thresholds_create(&info, &thresholds), BSFA_INVALID_ARGUMENT);
  EXPECT_EQ(last_error(), "values is null");
  info = table_info(values);
  info.budgets = nullptr;
  EXPECT_EQ(bsfa_thresholds_create(&info, &thresholds), BSFA_INVALID_ARGUMENT);
  EXPECT_EQ(last_error(), "budgets is null");
  info.struct_size = 4;
  EXPECT_EQ(bsfa_thresholds_create(&info, &thresholds), BSFA_INVALID_ARGUMENT);
  EXPECT_EQ(thresholds, untouched);

  EXPECT_EQ(bsfa_thresholds_save(nullptr, path.c_str()), BSFA_INVALID_ARGUMENT);
  EXPECT_EQ(bsfa_thresholds_get_info(nullptr, &info), BSFA_INVALID_ARGUMENT);
  bsfa_threshold_view view;
  EXPECT_EQ(bsfa_thresholds_view(nullptr, 2, 0, &view), BSFA_INVALID_ARGUMENT);
}

TEST(CAbiThresholds, PredictedDensity) {
  double density = 0;
  EXPECT_EQ(bsfa_predicted_density(32, 8192, 0, 0, &density), BSFA_OK);
  EXPECT_EQ(density, predicted_density(32, 8192, {}));
  EXPECT_EQ(bsfa_predicted_density(32, 8192, 64, 128, &density), BSFA_OK);
  EXPECT_EQ(density, predicted_density(32, 8192, {64, 128}));
  EXPECT_EQ(bsfa_predicted_density(0, 8192, 0, 0, &density), BSFA_INVALID_ARGUMENT);
  EXPECT_EQ(bsfa_predicted_density(1, 8192, 0, 0, nullptr), BSFA_INVALID_ARGUMENT);
}

class CAbiCalibration : public testing::Test {
 protected:
  void SetUp() override { calibration_ = create(""); }

  static bsfa_calibration* create(const char* fingerprint) {
    auto config = zeroed<bsfa_calibration_config>();
    config.budgets = kBudgets.data();
    config.num_budgets = 2;
    config.num_layers = 1;
    config.num_heads_q = 1;
    config.softmax_scale = 0.125f;
    config.model = "tiny";
    config.fingerprint = fingerprint;
    bsfa_calibration* calibration = nullptr;
    EXPECT_EQ(bsfa_calibration_create(&config, &calibration), BSFA_OK) << last_error();
    return calibration;
  }
  void TearDown() override { bsfa_calibration_free(calibration_); }

  static bsfa_status add_to(bsfa_calibration* calibration, const std::vector<float>& values) {
    const bsfa_const_f32_view view{values.data(), {2, 1, 1, 0}, {1, 1, 1, 0}};
    if (bsfa_calibration_begin_sample(calibration, "s", 100) != BSFA_OK) return BSFA_RUNTIME;
    if (const bsfa_status status = bsfa_calibration_add(calibration, 0, 0, 100, &view);
        status != BSFA_OK) {
      return status;
    }
    return bsfa_calibration_end_sample(calibration);
  }
  bsfa_status add_sample(const std::vector<float>& values) { return add_to(calibration_, values); }

  std::int64_t num_samples() {
    std::int64_t samples = -1;
    EXPECT_EQ(bsfa_calibration_num_samples(calibration_, &samples), BSFA_OK);
    return samples;
  }

  bsfa_calibration* calibration_ = nullptr;
};

TEST_F(CAbiCalibration, SamplesSumUpMergeAndFinish) {
  const TemporaryDirectory directory;
  const std::string path = directory / "part";
  ASSERT_EQ(add_sample({3, 1}), BSFA_OK) << last_error();
  ASSERT_EQ(bsfa_calibration_save(calibration_, path.c_str()), BSFA_OK) << last_error();
  ASSERT_EQ(add_sample({5, 2}), BSFA_OK) << last_error();
  bsfa_calibration* other = nullptr;
  ASSERT_EQ(bsfa_calibration_load(path.c_str(), &other), BSFA_OK) << last_error();
  EXPECT_EQ(bsfa_calibration_merge(calibration_, other), BSFA_INVALID_ARGUMENT);
  EXPECT_NE(last_error().find("1 sample in common"), std::string::npos) << last_error();
  bsfa_calibration_free(other);
  other = create("");
  ASSERT_EQ(add_to(other, {3, 1.5f}), BSFA_OK) << last_error();
  ASSERT_EQ(bsfa_calibration_merge(calibration_, other), BSFA_OK) << last_error();
  bsfa_calibration_free(other);
  EXPECT_EQ(num_samples(), 3);
  bsfa_thresholds* thresholds = nullptr;
  ASSERT_EQ(bsfa_calibration_finish(calibration_, &thresholds), BSFA_OK) << last_error();
  auto info = zeroed<bsfa_thresholds_info>();
  ASSERT_EQ(bsfa_thresholds_get_info(thresholds, &info), BSFA_OK);
  EXPECT_EQ(info.values[0], 11.0f / 3);
  EXPECT_EQ(info.values[1], 1.5f);
  EXPECT_EQ(info.max_seqlen, 100);
  EXPECT_EQ(std::string(info.producer), std::string("bsfa ") + bsfa_version());
  bsfa_thresholds_free(thresholds);
}

TEST_F(CAbiCalibration, FilesAreMergedByTheLibrarysRules) {
  const TemporaryDirectory directory;
  const std::string ones = "torch:" + std::string(32, '1'), twos = "torch:" + std::string(32, '2');
  const std::string a = directory / "a", b = directory / "b", out = directory / "out";
  const auto save = [](const std::string& path, const std::string& print, float value) {
    bsfa_calibration* part = create(print.c_str());
    EXPECT_EQ(add_to(part, {value, 1}), BSFA_OK) << last_error();
    EXPECT_EQ(bsfa_calibration_save(part, path.c_str()), BSFA_OK) << last_error();
    bsfa_calibration_free(part);
  };
  save(a, ones, 1);
  save(b, twos, 2);
  const char* const parts[] = {a.c_str(), b.c_str()};
  auto params = zeroed<bsfa_merge_files_params>();
  params.parts = parts;
  params.num_parts = 2;
  params.out = out.c_str();
  EXPECT_EQ(bsfa_merge_files(&params), BSFA_INVALID_ARGUMENT);
  EXPECT_NE(last_error().find("different weights"), std::string::npos) << last_error();
  save(b, ones, 2);
  params.recommended_budget = 4;
  params.model = "renamed";
  ASSERT_EQ(bsfa_merge_files(&params), BSFA_OK) << last_error();
  bsfa_thresholds* thresholds = nullptr;
  ASSERT_EQ(bsfa_thresholds_load(out.c_str(), &thresholds), BSFA_OK) << last_error();
  auto info = zeroed<bsfa_thresholds_info>();
  ASSERT_EQ(bsfa_thresholds_get_info(thresholds, &info), BSFA_OK);
  EXPECT_EQ(info.values[0], 1.5f);
  EXPECT_EQ(info.recommended_budget, 4);
  EXPECT_STREQ(info.model, "renamed");
  EXPECT_EQ(info.fingerprint, ones);
  char warning[256] = "x";
  EXPECT_EQ(bsfa_thresholds_other_model(thresholds, "m", ones.c_str(), warning, sizeof warning),
            BSFA_OK);
  EXPECT_STREQ(warning, "");
  EXPECT_EQ(bsfa_thresholds_other_model(thresholds, "m", twos.c_str(), warning, sizeof warning),
            BSFA_OK);
  EXPECT_NE(std::string(warning).find("the weights of 'm'"), std::string::npos) << warning;
  EXPECT_EQ(bsfa_thresholds_other_model(thresholds, "m", twos.c_str(), warning, 8), BSFA_OK);
  EXPECT_LT(std::string(warning).size(), 8u);
  EXPECT_EQ(bsfa_thresholds_other_model(thresholds, "m", twos.c_str(), warning, 0),
            BSFA_INVALID_ARGUMENT);
  bsfa_thresholds_free(thresholds);
  params.out = b.c_str();
  EXPECT_EQ(bsfa_merge_files(&params), BSFA_INVALID_ARGUMENT);
  EXPECT_NE(last_error().find("would be lost"), std::string::npos) << last_error();
  params.num_parts = 0;
  EXPECT_EQ(bsfa_merge_files(&params), BSFA_INVALID_ARGUMENT);
  params.num_parts = 2;
  params.parts = nullptr;
  EXPECT_EQ(bsfa_merge_files(&params), BSFA_INVALID_ARGUMENT);
  EXPECT_EQ(last_error(), "parts is null");
}

TEST(CAbiFingerprint, IsThatOfTheLibrary) {
  const std::int64_t shape[] = {2, 3};
  bsfa_weight_sample tensors[2]{};
  tensors[0] = {"b.weight", shape, 2, "abc", 3};
  tensors[1].name = "a";
  char fingerprint[64];
  ASSERT_EQ(bsfa_weight_fingerprint("torch", tensors, 2, fingerprint, sizeof fingerprint), BSFA_OK)
      << last_error();
  EXPECT_EQ(std::string(fingerprint),
            weight_fingerprint("torch", {{"a", {}, ""}, {"b.weight", {2, 3}, "abc"}}));
  EXPECT_EQ(bsfa_weight_fingerprint("torch", tensors, 2, fingerprint, 10), BSFA_INVALID_ARGUMENT);
  EXPECT_NE(last_error().find("size is 10"), std::string::npos) << last_error();
  EXPECT_EQ(bsfa_weight_fingerprint("torch", tensors, 0, fingerprint, 64), BSFA_INVALID_ARGUMENT);
  EXPECT_EQ(bsfa_weight_fingerprint("torch", nullptr, 2, fingerprint, 64), BSFA_INVALID_ARGUMENT);
}

TEST_F(CAbiCalibration, ARefusedSampleLeavesNoTrace) {
  EXPECT_EQ(add_sample({3, std::nanf("")}), BSFA_INVALID_ARGUMENT);
  EXPECT_NE(last_error().find("sample 's'"), std::string::npos) << last_error();
  EXPECT_EQ(num_samples(), 0);
  bsfa_thresholds* thresholds = nullptr;
  EXPECT_EQ(bsfa_calibration_finish(calibration_, &thresholds), BSFA_INVALID_ARGUMENT);
  ASSERT_EQ(bsfa_calibration_begin_sample(calibration_, "s", 100), BSFA_OK);
  EXPECT_EQ(bsfa_calibration_begin_sample(calibration_, "t", 100), BSFA_INVALID_ARGUMENT);
  EXPECT_EQ(bsfa_calibration_drop_sample(calibration_), BSFA_OK);
  EXPECT_EQ(bsfa_calibration_end_sample(calibration_), BSFA_INVALID_ARGUMENT);
  EXPECT_EQ(add_sample({3, 1}), BSFA_OK) << last_error();
}

TEST_F(CAbiCalibration, NullsAreNamed) {
  EXPECT_EQ(bsfa_calibration_begin_sample(calibration_, nullptr, 100), BSFA_INVALID_ARGUMENT);
  EXPECT_EQ(last_error(), "name is null");
  EXPECT_EQ(bsfa_calibration_add(calibration_, 0, 0, 1, nullptr), BSFA_INVALID_ARGUMENT);
  EXPECT_EQ(last_error(), "thresholds is null");
  EXPECT_EQ(bsfa_calibration_merge(calibration_, nullptr), BSFA_INVALID_ARGUMENT);
  EXPECT_EQ(last_error(), "other is null");
  EXPECT_EQ(bsfa_calibration_end_sample(nullptr), BSFA_INVALID_ARGUMENT);
  EXPECT_EQ(last_error(), "calibration is null");
  EXPECT_EQ(bsfa_calibration_create(nullptr, &calibration_), BSFA_INVALID_ARGUMENT);
  EXPECT_EQ(last_error(), "config is null");
  EXPECT_EQ(bsfa_select_thresholds(nullptr), BSFA_INVALID_ARGUMENT);
  EXPECT_EQ(last_error(), "params is null");
  bsfa_calibration_free(nullptr);
}

// Where memory does not suffice, that is said, and nothing leaves as an exception.
TEST_F(CAbiCalibration, ASampleBeyondMemoryIsRefused) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "the sanitizer's allocator ends the process instead";
#endif
  auto large = zeroed<bsfa_calibration_config>();
  const std::int64_t budget = 1;
  large.budgets = &budget;
  large.num_budgets = 1;
  large.num_layers = 1 << 12;
  large.num_heads_q = 1 << 10;
  large.softmax_scale = 1;
  bsfa_calibration* calibration = nullptr;
  ASSERT_EQ(bsfa_calibration_create(&large, &calibration), BSFA_OK) << last_error();
  EXPECT_EQ(bsfa_calibration_begin_sample(calibration, "s", 1 << 29), BSFA_RUNTIME);
  EXPECT_EQ(last_error(), "out of memory");
  bsfa_calibration_free(calibration);
  EXPECT_EQ(bsfa_calibration_begin_sample(calibration_, "s", INT64_MAX / 4), BSFA_INVALID_ARGUMENT);
  EXPECT_EQ(last_error(), "sample 's' has 2305843009213693951 tokens; accepted: 1 to 536870912");
  EXPECT_EQ(add_sample({3, 1}), BSFA_OK) << last_error();
}

}  // namespace
}  // namespace bsfa::test
