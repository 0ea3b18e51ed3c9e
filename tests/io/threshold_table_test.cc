#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>

#include "bsfa/thresholds.hpp"
#include "file_bytes.hpp"

namespace bsfa::test {
namespace {

ThresholdMetadata metadata() { return {{2, 4}, {128, 64}, 0.125f, 200, "tiny", 3, "p", 4}; }

std::vector<float> counting(std::int64_t count) {
  std::vector<float> values;
  for (std::int64_t n = 0; n < count; ++n) values.push_back(static_cast<float>(n));
  return values;
}

void expect_refused(const std::function<void()>& call, const std::string& part) {
  const Status status = error_of(call);
  EXPECT_EQ(status.code, ErrorCode::kInvalidArgument);
  EXPECT_NE(status.message.find(part), std::string::npos)
      << "'" << part << "' is not in: " << status.message;
}

TEST(ThresholdTable, ViewsAreTheRightSlices) {
  const ThresholdTable table(metadata(), 3, 5, 2, counting(2 * 3 * 5 * 2));
  for (std::int64_t b = 0; b < 2; ++b) {
    for (std::int64_t layer = 0; layer < 3; ++layer) {
      const ThresholdView view = table.view(b == 0 ? 2 : 4, layer);
      EXPECT_EQ(view.num_heads, 5);
      EXPECT_EQ(view.num_q_blocks, 2);
      EXPECT_EQ(view.block, (BlockShape{128, 64}));
      EXPECT_EQ(view.stride_batch, 0);
      for (std::int64_t head = 0; head < 5; ++head) {
        for (std::int64_t i = 0; i < 2; ++i) {
          EXPECT_EQ(view.data[head * view.stride_head + i],
                    static_cast<float>(((b * 3 + layer) * 5 + head) * 2 + i));
        }
      }
    }
  }
}

TEST(ThresholdTable, UnknownBudgetsAndLayersAreNamed) {
  const ThresholdTable table(metadata(), 3, 5, 2, counting(60));
  expect_refused([&] { table.view(3, 0); }, "budget is 3; these thresholds have 2, 4");
  expect_refused([&] { table.view(2, 3); }, "layer is 3");
  expect_refused([&] { table.view(2, -1); }, "layer is -1");
}

TEST(ThresholdTable, TheConstructorIsAsStrictAsTheReader) {
  const auto make = [](const ThresholdMetadata& m, std::int64_t layers, std::int64_t blocks,
                       std::vector<float> values) {
    return [=] { ThresholdTable(m, layers, 1, blocks, values); };
  };
  expect_refused(make(metadata(), 1, 3, counting(6)), "shape [2, 1, 1, 3]");
  expect_refused(make(metadata(), 1, 2, counting(5)), "values has 5 elements; expected 4");
  expect_refused(make(metadata(), 0, 2, {}), "shape [2, 0, 1, 2]");
  expect_refused(make(metadata(), 1, 2, {1, 2, 3, std::nanf("")}), "NaN at budget 4, layer 0");
  ThresholdMetadata bad = metadata();
  bad.budgets = {4, 2};
  expect_refused(make(bad, 1, 2, counting(4)), "budgets has 2 after 4");
}

TEST(ThresholdTable, TheRecommendedBudgetIsOneOfTheBudgets) {
  ThresholdTable table(metadata(), 1, 1, 2, counting(4));
  table.set_recommended_budget(2);
  EXPECT_EQ(table.metadata().recommended_budget, 2);
  expect_refused([&] { table.set_recommended_budget(3); }, "recommended_budget is 3");
  EXPECT_EQ(table.metadata().recommended_budget, 2);
  table.set_recommended_budget(std::nullopt);
  EXPECT_FALSE(table.metadata().recommended_budget.has_value());
}

TEST(ThresholdTable, AnotherModelIsRefused) {
  const TemporaryDirectory directory;
  const std::string path = directory / "t";
  ThresholdTable(metadata(), 3, 5, 2, counting(60)).save(path);
  const ThresholdTable table = ThresholdTable::load(path);
  table.check_model("big.gguf", 3, 5, 0.125f);
  table.check_model("big.gguf", 3, 5, 0.1250001f);
  expect_refused([&] { table.check_model("big.gguf", 4, 5, 0.125f); },
                 path + ": made for 'tiny' with 3 layers; big.gguf has 4");
  expect_refused([&] { table.check_model("big.gguf", 3, 6, 0.125f); }, "5 query heads");
  expect_refused([&] { table.check_model("big.gguf", 3, 5, 0.1251f); }, "softmax_scale 0.125");
  expect_refused([&] { table.check_model("big.gguf", 3, 5, std::nanf("")); }, "softmax_scale");
}

// Counted one block at a time.
double counted_density(std::int64_t budget, std::int64_t seqlen, BlockShape block) {
  double kept = 0, visible = 0;
  for (std::int64_t i = 0; i * block.q < seqlen; ++i) {
    const std::int64_t last_row = std::min((i + 1) * block.q, seqlen) - 1;
    std::int64_t others = 0, diagonal = 0;
    for (std::int64_t j = 0; j * block.kv <= last_row; ++j) {
      const bool meets = j * block.kv < (i + 1) * block.q && (j + 1) * block.kv > i * block.q;
      ++(meets ? diagonal : others);
    }
    kept += static_cast<double>(std::min(budget, others) + diagonal);
    visible += static_cast<double>(others + diagonal);
  }
  return kept / visible;
}

TEST(PredictedDensity, EqualsCountingBlocks) {
  for (const BlockShape block : {BlockShape{128, 64}, {64, 64}, {64, 128}, {128, 128}}) {
    for (const std::int64_t seqlen : {1, 63, 64, 65, 128, 129, 1000, 4096, 8191}) {
      for (const std::int64_t budget : {1, 4, 32, 1000}) {
        EXPECT_DOUBLE_EQ(predicted_density(budget, seqlen, block),
                         counted_density(budget, seqlen, block))
            << budget << " " << seqlen << " " << block.q << "x" << block.kv;
      }
    }
  }
}

TEST(PredictedDensity, ThePapersFigures) {
  EXPECT_NEAR(predicted_density(64, 32768, {}), 0.24, 0.01);
  EXPECT_NEAR(predicted_density(192, 65536, {}), 0.35, 0.01);
  EXPECT_NEAR(predicted_density(512, 131072, {}), 0.44, 0.01);
}

TEST(PredictedDensity, Edges) {
  EXPECT_EQ(predicted_density(4, 0, {}), 1.0);
  EXPECT_EQ(predicted_density(4, 100, {}), 1.0);
  expect_refused([] { predicted_density(0, 100, {}); }, "budgets holds 0");
  expect_refused([] { predicted_density(1, -1, {}); }, "seqlen is -1");
  expect_refused([] { predicted_density(1, INT64_MAX, {}); }, "seqlen is 9223372036854775807");
  expect_refused([] { predicted_density(1, 100, {100, 64}); }, "q_block is 100");
}

}  // namespace
}  // namespace bsfa::test
