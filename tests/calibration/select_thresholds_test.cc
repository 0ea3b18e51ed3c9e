#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <random>

#include "bsfa/attention.hpp"
#include "bsfa/calibration.hpp"
#include "core/gate.hpp"
#include "file_bytes.hpp"

namespace bsfa::test {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
const float kNan = std::nanf("");

struct Selection {
  std::vector<float> block_max, thresholds;
  std::vector<std::int64_t> budgets;
  SelectThresholdsParams params;

  Selection(std::int64_t heads, std::int64_t rows, std::int64_t columns,
            std::vector<std::int64_t> the_budgets)
      : budgets(std::move(the_budgets)) {
    const auto num_budgets = static_cast<std::int64_t>(budgets.size());
    block_max.assign(static_cast<std::size_t>(heads * rows * columns), -kInf);
    thresholds.assign(static_cast<std::size_t>(num_budgets * heads * rows), 12345.0f);
    params.block_max = {block_max.data(), {heads, rows, columns}, {}};
    set_contiguous(params.block_max.shape, params.block_max.stride);
    params.thresholds = {thresholds.data(), {num_budgets, heads, rows}, {}};
    set_contiguous(params.thresholds.shape, params.thresholds.stride);
    params.budgets = budgets.data();
    params.num_budgets = num_budgets;
  }
};

// The definition, by sorting.
float slow_threshold(const std::vector<float>& row, std::int64_t i, std::int64_t first_kv_block,
                     BlockShape block, std::int64_t budget) {
  std::int64_t first = 0, end = static_cast<std::int64_t>(row.size());
  while (first < end && row[static_cast<std::size_t>(first)] == -kInf) ++first;
  while (end > first && row[static_cast<std::size_t>(end - 1)] == -kInf) --end;
  std::vector<double> values;
  for (std::int64_t c = first; c < end; ++c) {
    const float value = row[static_cast<std::size_t>(c)];
    if (!std::isfinite(value)) return kNan;
    const std::int64_t j = first_kv_block + c;
    const bool meets = j * block.kv < (i + 1) * block.q && (j + 1) * block.kv > i * block.q;
    if (!meets) values.push_back(value);
  }
  if (static_cast<std::int64_t>(values.size()) <= budget) return -kInf;
  std::sort(values.rbegin(), values.rend());
  const auto k = static_cast<std::size_t>(budget);
  return static_cast<float>((values[k - 1] + values[k]) / 2);
}

TEST(SelectThresholds, ByHand) {
  // Query block 3 of 128 rows: the diagonal is columns 6 and 7.
  Selection s(1, 1, 8, {1, 2, 5, 6});
  s.block_max = {5, 1, 4, 2, 3, 0, 100, 200};
  s.params.block_max.data = s.block_max.data();
  s.params.first_q_block = 3;
  select_thresholds(s.params);
  EXPECT_EQ(s.thresholds, (std::vector<float>{4.5f, 3.5f, 0.5f, -kInf}));
}

TEST(SelectThresholds, KeepsExactlyTheBudgetWhereMaximaDiffer) {
  Selection s(1, 1, 40, {1, 3, 7, 30});
  std::mt19937 random(1);
  for (std::size_t n = 0; n < 40; ++n) s.block_max[n] = static_cast<float>(n) - 17;
  std::shuffle(s.block_max.begin(), s.block_max.end(), random);
  s.params.first_q_block = 19;  // diagonal: columns 38, 39
  select_thresholds(s.params);
  for (std::size_t n = 0; n < s.budgets.size(); ++n) {
    std::int64_t kept = 0;
    for (std::int64_t j = 0; j < 38; ++j) {
      kept += keep_block(s.block_max[static_cast<std::size_t>(j)], s.thresholds[n], false) ? 1 : 0;
    }
    EXPECT_EQ(kept, s.budgets[n]);
  }
}

TEST(SelectThresholds, EqualsTheDefinitionOnRandomShapes) {
  std::mt19937 random(7);
  ThreadPool pool(3);
  const auto pick = [&](std::int64_t low, std::int64_t high) {
    return std::uniform_int_distribution<std::int64_t>(low, high)(random);
  };
  std::int64_t finite = 0, dense = 0, refused = 0;
  for (int round = 0; round < 600; ++round) {
    std::vector<std::int64_t> budgets{pick(1, 4)};
    while (static_cast<int>(budgets.size()) < 1 + round % 6) {
      budgets.push_back(budgets.back() + pick(1, 9));
    }
    Selection s(pick(1, 4), pick(1, 6), pick(1, 60), budgets);
    s.params.block = {64 * pick(1, 2), 64 * pick(1, 2)};
    s.params.first_q_block = pick(0, 20);
    s.params.first_kv_block = pick(0, 3);
    const auto [heads, rows, columns] = s.params.block_max.shape;
    std::normal_distribution<float> normal;
    for (std::int64_t r = 0; r < heads * rows; ++r) {
      // Visible: a run of columns; what is before a window or behind the diagonal stays -inf.
      const std::int64_t begin = pick(0, 3) == 0 ? pick(0, columns) : 0;
      const std::int64_t end = pick(begin, columns);
      const float step = pick(0, 1) == 0 ? 0.0f : 0.5f;  // half of the rows have many ties
      for (std::int64_t c = begin; c < end; ++c) {
        const float value = normal(random);
        s.block_max[static_cast<std::size_t>(r * columns + c)] =
            step > 0 ? std::round(value / step) * step : value;
      }
      if (end > begin && pick(0, 9) == 0) {
        const float bad[] = {kNan, kInf, -kInf};
        s.block_max[static_cast<std::size_t>(r * columns + pick(begin, end - 1))] = bad[pick(0, 2)];
      }
    }
    s.params.executor = round % 2 == 0 ? &pool : nullptr;
    select_thresholds(s.params);
    for (std::size_t b = 0; b < budgets.size(); ++b) {
      for (std::int64_t r = 0; r < heads * rows; ++r) {
        const auto from = s.block_max.begin() + r * columns;
        const float expected =
            slow_threshold({from, from + columns}, s.params.first_q_block + r % rows,
                           s.params.first_kv_block, s.params.block, budgets[b]);
        const float got =
            s.thresholds[b * static_cast<std::size_t>(heads * rows) + static_cast<std::size_t>(r)];
        if (std::isnan(expected)) {
          EXPECT_TRUE(std::isnan(got)) << "round " << round << " row " << r;
          ++refused;
        } else {
          ASSERT_EQ(got, expected) << "round " << round << " row " << r << " budget " << budgets[b];
          ++(expected == -kInf ? dense : finite);
        }
      }
    }
  }
  // The cases are worth something only if all three outcomes are among them.
  EXPECT_GT(finite, 1000);
  EXPECT_GT(dense, 1000);
  EXPECT_GT(refused, 100);
}

TEST(SelectThresholds, StridesAreHonouredAndNothingElseIsWritten) {
  Selection plain(2, 3, 20, {2, 5});
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  for (float& value : plain.block_max) value = normal(random);
  plain.params.first_q_block = 8;
  select_thresholds(plain.params);

  // Columns two apart, rows innermost in the result.
  std::vector<float> wide(2 * 3 * 41, kNan);
  for (std::size_t n = 0; n < plain.block_max.size(); ++n) {
    wide[n / 20 * 41 + n % 20 * 2] = plain.block_max[n];
  }
  std::vector<float> result(64, 777.0f);
  SelectThresholdsParams params = plain.params;
  params.block_max = {wide.data(), {2, 3, 20}, {3 * 41, 41, 2}};
  params.thresholds = {result.data(), {2, 2, 3}, {1, 2, 6}};
  select_thresholds(params);
  for (std::size_t b = 0; b < 2; ++b) {
    for (std::size_t h = 0; h < 2; ++h) {
      for (std::size_t i = 0; i < 3; ++i) {
        EXPECT_EQ(result[b + 2 * h + 6 * i], plain.thresholds[b * 6 + h * 3 + i]);
        result[b + 2 * h + 6 * i] = 777.0f;
      }
    }
  }
  EXPECT_EQ(std::count(result.begin(), result.end(), 777.0f), 64);
}

TEST(SelectThresholds, TheMidpointOfTheLargestNumbersIsFinite) {
  Selection s(1, 1, 6, {1});
  const float big = std::numeric_limits<float>::max();
  s.block_max = {big, big, 0, 0, 1, 1};
  s.params.block_max.data = s.block_max.data();
  s.params.first_q_block = 2;
  select_thresholds(s.params);
  EXPECT_EQ(s.thresholds[0], big);
}

TEST(SelectThresholds, EmptyShapesAreFine) {
  Selection no_rows(3, 0, 5, {1});
  select_thresholds(no_rows.params);
  Selection no_columns(1, 2, 0, {1});
  select_thresholds(no_columns.params);
  EXPECT_EQ(no_columns.thresholds, (std::vector<float>{-kInf, -kInf}));
}

TEST(SelectThresholds, RefusalsNameTheArgument) {
  const auto expect_refused = [](const std::function<void(Selection&)>& spoil, const char* part,
                                 ErrorCode code = ErrorCode::kInvalidArgument) {
    Selection s(2, 3, 4, {1, 2});
    spoil(s);
    const std::vector<float> before = s.thresholds;
    const Status status = error_of([&] { select_thresholds(s.params); });
    EXPECT_EQ(status.code, code);
    EXPECT_NE(status.message.find(part), std::string::npos) << status.message;
    EXPECT_EQ(s.thresholds, before);
  };
  expect_refused([](Selection& s) { s.params.num_budgets = 0; }, "budgets");
  expect_refused([](Selection& s) { s.params.budgets = nullptr; }, "budgets is null");
  expect_refused([](Selection& s) { s.budgets[1] = 1; }, "budgets has 1 after 1");
  expect_refused([](Selection& s) { s.budgets[0] = 0; }, "budgets holds 0");
  expect_refused([](Selection& s) { s.params.block.kv = 32; }, "kv_block is 32");
  expect_refused([](Selection& s) { s.params.block_max.data = nullptr; }, "block_max.data is null");
  expect_refused([](Selection& s) { s.params.thresholds.shape[1] = 9; }, "expected [2 budgets");
  expect_refused([](Selection& s) { s.params.block_max.stride[2] = -1; }, "strides [12, 4, -1]");
  expect_refused([](Selection& s) { s.params.first_q_block = -1; }, "first_q_block");
  expect_refused([](Selection& s) { s.params.backend = "nope"; }, "backend is 'nope'");
  expect_refused([](Selection& s) { s.params.device.type = static_cast<DeviceType>(7); },
                 "device.type is 7");
  expect_refused([](Selection& s) { s.params.first_q_block = std::int64_t{1} << 40; },
                 "first_q_block is 1099511627776; accepted: 0 to 4194304");
  expect_refused([](Selection& s) { s.params.first_kv_block = INT64_MAX; }, "first_kv_block");
  expect_refused(
      [](Selection& s) {
        s.params.thresholds.data =
            reinterpret_cast<float*>(reinterpret_cast<char*>(s.params.thresholds.data) + 1);
      },
      "thresholds is not aligned");
  expect_refused(
      [](Selection& s) {
        s.params.budgets = reinterpret_cast<const std::int64_t*>(
            reinterpret_cast<const char*>(s.params.budgets) + 4);
      },
      "budgets is not aligned");
  expect_refused([](Selection& s) { s.params.thresholds.stride[2] = 0; },
                 "its elements overlap on axis 2");
  expect_refused([](Selection& s) { s.params.thresholds.stride[0] = 5; },
                 "its elements overlap on axis 0; expected a stride there of at least 6");
  expect_refused(
      [](Selection& s) { s.params.thresholds.data = s.block_max.data() + s.block_max.size() - 1; },
      "thresholds shares memory with block_max");
}

// Extents whose product wraps around came back as done, with nothing written.
TEST(SelectThresholds, ExtentsThatWrapAroundAreRefused) {
  for (int axis = 0; axis < 3; ++axis) {
    for (const std::int64_t extent : {std::int64_t{1} << 40, std::int64_t{1} << 62}) {
      Selection s(2, 3, 4, {1, 2});
      const std::vector<float> before = s.thresholds;
      s.params.block_max.shape[axis] = extent;
      std::fill_n(s.params.block_max.stride, 3, 0);
      if (axis < 2) s.params.thresholds.shape[axis + 1] = extent;
      const Status status = error_of([&] { select_thresholds(s.params); });
      EXPECT_EQ(status.code, ErrorCode::kInvalidArgument) << axis << " " << extent;
      EXPECT_NE(status.message.find("accepted: "), std::string::npos) << status.message;
      EXPECT_EQ(s.thresholds, before);
    }
  }
  Selection square(1, 1, 1, {1});
  square.params.block_max.shape[0] = square.params.block_max.shape[1] = std::int64_t{1} << 32;
  square.params.thresholds.shape[1] = square.params.thresholds.shape[2] = std::int64_t{1} << 32;
  std::fill_n(square.params.block_max.stride, 3, 0);
  std::fill_n(square.params.thresholds.stride, 3, 0);
  EXPECT_EQ(error_of([&] { select_thresholds(square.params); }).code, ErrorCode::kInvalidArgument);
}

TEST(SelectThresholds, AnExecutorWithoutWorkersIsRefused) {
  struct None final : Executor {
    int workers;
    explicit None(int count) : workers(count) {}
    int max_workers() const override { return workers; }
    void parallel_for(std::int64_t, Body, void*) override {}
  };
  for (const int workers : {0, -1, 4097}) {
    None none(workers);
    Selection s(2, 3, 4, {1, 2});
    s.params.executor = &none;
    EXPECT_EQ(error_of([&] { select_thresholds(s.params); }).message,
              "executor has max_workers() " + std::to_string(workers) + "; accepted: 1 to 4096");
  }
}

// The method as a whole: maxima of a real call, gated with the thresholds chosen from them, keep
// the budget in every row.
TEST(SelectThresholds, ACallGatedByItsOwnMaximaKeepsTheBudget) {
  const std::int64_t seqlen = 1100, heads = 2, dim = 8, budget = 3;
  std::vector<float> q(static_cast<std::size_t>(seqlen * heads * dim)), k(q.size() / 2), v(k),
      out(q);
  std::mt19937 random(5);
  std::normal_distribution<float> normal;
  for (auto* values : {&q, &k, &v}) {
    for (float& value : *values) value = normal(random);
  }
  AttentionParams call;
  call.q = contiguous<const void*>(q.data(), DType::kFloat32, 1, seqlen, heads, dim);
  call.k = contiguous<const void*>(k.data(), DType::kFloat32, 1, seqlen, 1, dim);
  call.v = contiguous<const void*>(v.data(), DType::kFloat32, 1, seqlen, 1, dim);
  call.out = contiguous<void*>(out.data(), DType::kFloat32, 1, seqlen, heads, dim);
  call.causal = true;
  call.backend = "reference";
  const AttentionPlan plan = plan_attention(call);
  ASSERT_TRUE(plan.status.ok()) << plan.status.message;
  Selection s(heads, plan.q_blocks, plan.kv_blocks, {budget});
  call.block_max = {s.block_max.data(), {1, heads, plan.q_blocks, plan.kv_blocks}, {}};
  set_contiguous(call.block_max.shape, call.block_max.stride);
  attention_forward(call);
  select_thresholds(s.params);

  std::vector<std::uint8_t> mask(s.block_max.size());
  call.block_max = {};
  call.kept_mask = {mask.data(), {1, heads, plan.q_blocks, plan.kv_blocks}, {}};
  set_contiguous(call.kept_mask.shape, call.kept_mask.stride);
  call.policy = Policy::threshold(
      {s.thresholds.data(), heads, plan.q_blocks, plan.q_blocks, 0, BlockShape{}});
  attention_forward(call);
  for (std::int64_t head = 0; head < heads; ++head) {
    for (std::int64_t i = 0; i < plan.q_blocks; ++i) {
      const auto row = mask.begin() + (head * plan.q_blocks + i) * plan.kv_blocks;
      const std::int64_t visible = std::min(2 * (i + 1), plan.kv_blocks);
      EXPECT_EQ(std::count(row, row + plan.kv_blocks, 1),
                std::min(visible, budget + visible - 2 * i))
          << "head " << head << " block " << i;
    }
  }
}

}  // namespace
}  // namespace bsfa::test
