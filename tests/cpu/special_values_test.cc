#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "cpu/isa_environment.hpp"
#include "support/attention_case.hpp"
#include "support/compare.hpp"

// NaN and infinity. (Whatever lies past the end of a tensor or in its padding is NaN in every
// test.)

namespace bsfa::testing {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

class CpuSpecialValues : public ::testing::TestWithParam<cpu::Isa> {
 protected:
  static AttentionCase small() {
    AttentionCase c;
    c.seqlen_q = c.seqlen_k = 300;
    c.policy = PolicyKind::kThreshold;
    c.density = 0.2;
    return c;
  }
  static void expect_matches_oracle(AttentionData& data) {
    ASSERT_EQ(run_case(data, "cpu"), "");
    EXPECT_EQ(compare_with_oracle(data, false), "");
  }

 private:
  ScopedIsa isa_{cpu::isa_name(GetParam())};
};

TEST_P(CpuSpecialValues, ANanKeyKeepsTheBlocksThatSeeIt) {
  for (const DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
    for (const float nan : {kNan, -kNan}) {
      for (const std::int64_t key : {3, 299}) {
        AttentionCase c = small();
        c.kv_dtype = c.q_dtype = dtype;
        AttentionData data(c);
        std::fill(data.thresholds.begin(), data.thresholds.end(), kInfinity);
        data.set(data.k, dtype, 0, key, 0, 5, nan);
        expect_matches_oracle(data);
        for (std::int64_t i = key / 128; i < 3; ++i) {
          EXPECT_EQ(data.kept_mask[static_cast<std::size_t>(i * data.kv_blocks + key / 64)], 1);
          EXPECT_TRUE(
              std::isnan(data.block_max[static_cast<std::size_t>(i * data.kv_blocks + key / 64)]));
        }
        EXPECT_TRUE(std::isnan(data.get(data.out, dtype, 0, 299, 0, 0)));
        if (key > 0) {
          EXPECT_FALSE(std::isnan(data.get(data.out, dtype, 0, key - 1, 0, 0)));
        }
      }
    }
  }
}

TEST_P(CpuSpecialValues, ANanQueryReachesItsRowAlone) {
  AttentionData data(small());
  data.set(data.q, DType::kFloat32, 0, 200, 0, 63, kNan);
  expect_matches_oracle(data);
  EXPECT_TRUE(std::isnan(data.get(data.out, DType::kFloat32, 0, 200, 0, 0)));
  EXPECT_FALSE(std::isnan(data.get(data.out, DType::kFloat32, 0, 199, 0, 0)));
  EXPECT_FALSE(std::isnan(data.get(data.out, DType::kFloat32, 0, 201, 0, 0)));
}

TEST_P(CpuSpecialValues, AValueReachesOnlyTheRowsThatSeeIt) {
  for (const float value : {kNan, kInfinity}) {
    for (const ComputeType compute : {ComputeType::kFloat32, ComputeType::kBFloat16}) {
      for (const std::int64_t key : {0, 64, 131, 299}) {
        AttentionCase c = small();
        c.policy = PolicyKind::kDense;
        c.compute_type = compute;
        AttentionData data(c);
        data.set(data.v, DType::kFloat32, 0, key, 0, 7, value);
        ASSERT_EQ(run_case(data, "cpu"), "");
        for (std::int64_t t = 0; t < 300; ++t) {
          EXPECT_EQ(std::isfinite(data.get(data.out, DType::kFloat32, 0, t, 0, 7)), t < key) << t;
          EXPECT_TRUE(std::isfinite(data.get(data.out, DType::kFloat32, 0, t, 0, 8))) << t;
        }
      }
    }
  }
}

TEST_P(CpuSpecialValues, InfiniteScores) {
  // +inf makes the row NaN, as inf - inf does; -inf is a weight of 0.
  AttentionCase c = small();
  c.policy = PolicyKind::kDense;
  AttentionData data(c);
  for (std::int64_t d = 0; d < 64; ++d) data.set(data.k, DType::kFloat32, 0, 70, 0, d, 0);
  data.set(data.k, DType::kFloat32, 0, 70, 0, 0, kInfinity);
  for (std::int64_t t = 0; t < 300; ++t) {
    data.set(data.q, DType::kFloat32, 0, t, 0, 0, t % 2 == 0 ? 1.0f : -1.0f);
  }
  expect_matches_oracle(data);
  EXPECT_TRUE(std::isnan(data.get(data.out, DType::kFloat32, 0, 80, 0, 0)));
  EXPECT_TRUE(std::isfinite(data.get(data.out, DType::kFloat32, 0, 81, 0, 0)));
}

TEST_P(CpuSpecialValues, RowsWhoseScoresAreAllMinusInfinity) {
  AttentionCase c = small();
  c.seqlen_q = c.seqlen_k = 100;
  c.policy = PolicyKind::kDense;
  AttentionData data(c);
  for (std::int64_t t = 0; t < 100; ++t) data.set(data.k, DType::kFloat32, 0, t, 0, 0, -kInfinity);
  for (std::int64_t t = 0; t < 100; ++t) data.set(data.q, DType::kFloat32, 0, t, 0, 0, 1);
  expect_matches_oracle(data);
}

INSTANTIATE_TEST_SUITE_P(Isa, CpuSpecialValues, ::testing::ValuesIn(isas_to_test()), isa_test_name);

}  // namespace
}  // namespace bsfa::testing
