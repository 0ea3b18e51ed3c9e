#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "cpu/isa_environment.hpp"
#include "support/attention_case.hpp"
#include "support/compare.hpp"
#include "support/sanitized.hpp"

// Scores as far out as fp32 holds them, and sums of a million weights.

namespace bsfa::testing {
namespace {

class CpuRange : public ::testing::TestWithParam<cpu::Isa> {
 protected:
  static void expect_matches_oracle(AttentionData& data) {
    SCOPED_TRACE(describe(data.c));
    ASSERT_EQ(run_case(data, "cpu"), "");
    EXPECT_EQ(compare_with_oracle(data, false), "");
  }

 private:
  ScopedIsa isa_{cpu::isa_name(GetParam())};
};

TEST_P(CpuRange, OneKeyIsAllThereIsAtAnyScore) {
  for (const float product : {0.0f, 1e9f, 3.9e9f, 5e10f, 1e20f, 1e30f, 3e38f}) {
    for (const float scale : {1.0f, 0.125f, 1e-3f, 0x1p-63f, 1e-30f}) {
      for (const float sign : {1.0f, -1.0f}) {
        AttentionCase c;
        c.seqlen_q = c.seqlen_k = 1;
        c.head_dim = 8;
        c.softmax_scale = scale;
        AttentionData data(c);
        data.set_products(1.0f, {sign * product});
        ASSERT_EQ(run_case(data, "cpu"), "");
        const float score = sign * product * scale;
        for (std::int64_t d = 0; d < 8; ++d) {
          EXPECT_EQ(data.get(data.out, c.q_dtype, 0, 0, 0, d),
                    data.get(data.v, c.kv_dtype, 0, 0, 0, d))
              << score;
        }
        EXPECT_NEAR(*static_cast<const float*>(data.lse.data()), score, 1e-6 * std::abs(score));
        EXPECT_NEAR(data.block_max[0], score, 1e-6 * std::abs(score));
      }
    }
  }
}

// Keys whose scores are whole steps of fp32 apart, at every magnitude, where the scale makes a step
// a difference of 1/2 in the exponent: PyTorch's softmax is right there.
TEST_P(CpuRange, NeighboursInFp32AreWeighedAgainstEachOther) {
  for (int exponent = -60; exponent <= 126; exponent += 6) {
    for (const float sign : {1.0f, -1.0f}) {
      AttentionCase c;
      c.seqlen_q = 3;
      c.seqlen_k = 200;
      c.head_dim = 8;
      c.softmax_scale = std::ldexp(0.5f, 23 - exponent);
      AttentionData data(c);
      std::mt19937 random(7);
      std::vector<float> keys;
      for (std::int64_t t = 0; t < c.seqlen_k; ++t) {
        const float steps = static_cast<float>(random() % 24);
        keys.push_back(sign * std::ldexp(1.0f + steps * 0x1p-23f, exponent / 2));
      }
      data.set_products(std::ldexp(1.0f, exponent - exponent / 2), keys);
      expect_matches_oracle(data);
    }
  }
}

// Scores of every sign and magnitude in one row, in every order: rises, falls, and both.
TEST_P(CpuRange, WideRows) {
  for (const float scale : {1.0f, 0.125f, 0x1p-100f, 0x1p-120f}) {
    for (const int order : {0, 1, 2}) {
      AttentionCase c;
      c.seqlen_q = 2;
      c.seqlen_k = 260;
      c.head_dim = 8;
      c.softmax_scale = scale;
      AttentionData data(c);
      std::vector<float> keys;
      for (int t = 0; t < 260; ++t) {
        const int n = order == 0 ? t : order == 1 ? 259 - t : t * 97 % 260;
        keys.push_back(n < 130 ? -std::ldexp(1.5f, 126 - n) : std::ldexp(1.5f, n - 133));
      }
      data.set_products(1.0f, keys);
      expect_matches_oracle(data);
    }
  }
}

TEST_P(CpuRange, TheLargestHalves) {
  for (const ComputeType compute : {ComputeType::kFloat32, ComputeType::kBFloat16}) {
    for (const int pattern : {0, 1, 2}) {
      AttentionCase c;
      c.seqlen_q = c.seqlen_k = 150;
      c.q_dtype = c.kv_dtype = DType::kFloat16;
      c.compute_type = compute;
      c.softmax_scale = 1.0f;
      AttentionData data(c);
      for (std::int64_t t = 0; t < 150; ++t) {
        for (std::int64_t d = 0; d < 64; ++d) {
          const bool negative = (pattern == 1 && t % 3 == 0) || (pattern == 2 && t < 140);
          data.set(data.q, c.q_dtype, 0, t, 0, d, 65504);
          data.set(data.k, c.kv_dtype, 0, t, 0, d, negative ? -65504.0f : 65504.0f);
        }
      }
      expect_matches_oracle(data);
    }
  }
}

TEST_P(CpuRange, SoftcapOfScoresThatOverflow) {
  // 3e38 * 10 is no fp32 number; capped it is.
  for (const float softcap : {3.0f, 1e10f}) {
    AttentionCase c;
    c.seqlen_q = 2;
    c.seqlen_k = 4;
    c.head_dim = 8;
    c.causal = false;
    c.softmax_scale = 10;
    c.softcap = softcap;
    AttentionData data(c);
    data.set_products(1.0f, {3e38f, -3e38f, 3e38f, 1.0f});
    expect_matches_oracle(data);
  }
}

TEST_P(CpuRange, SinksBesideScoresFarOut) {
  for (const float product : {1e10f, -1e10f, 3e38f, -3e38f}) {
    for (const float sink : {0.0f, 1e10f, -1e10f, 3e38f, -3e38f}) {
      AttentionCase c;
      c.seqlen_q = c.seqlen_k = 5;
      c.head_dim = 8;
      c.softmax_scale = 1;
      c.sinks = true;
      AttentionData data(c);
      data.sinks = {sink};
      data.set_products(1.0f, std::vector<float>(5, product));
      expect_matches_oracle(data);
    }
  }
}

TEST_P(CpuRange, GatedScoresFarOut) {
  AttentionCase c;
  c.seqlen_q = c.seqlen_k = 300;
  c.magnitude = 0x1p60f;
  c.policy = PolicyKind::kThreshold;
  c.density = 0.4;
  AttentionData data(c);
  expect_matches_oracle(data);
}

constexpr std::int64_t kManyKeys = kSanitized ? 1 << 17 : 1 << 20;

// One query over very many keys; scores are those of column 0.
struct LongRow {
  std::vector<float> q = std::vector<float>(8), k, v, out = std::vector<float>(8);
  float lse = 0;

  // Runs it with `compute` and returns what went wrong.
  std::string run(std::int64_t keys, ComputeType compute) {
    AttentionParams p;
    p.q = contiguous<const void*>(q.data(), DType::kFloat32, 1, 1, 1, 8);
    p.k = contiguous<const void*>(k.data(), DType::kFloat32, 1, keys, 1, 8);
    p.v = contiguous<const void*>(v.data(), DType::kFloat32, 1, keys, 1, 8);
    // One row for all keys, where only one was given.
    if (k.size() == 8) p.k.stride[1] = 0;
    if (v.size() == 8) p.v.stride[1] = 0;
    p.out = contiguous<void*>(out.data(), DType::kFloat32, 1, 1, 1, 8);
    p.lse = {&lse, {1, 1, 1}, {1, 1, 1}};
    p.causal = true;
    p.softmax_scale = 1;
    p.compute_type = compute;
    p.backend = "cpu";
    const std::size_t bytes = workspace_size(p);
    std::vector<std::uint8_t> memory(bytes + 256);
    p.workspace = reinterpret_cast<void*>((reinterpret_cast<std::uintptr_t>(memory.data()) + 255) /
                                          256 * 256);
    p.workspace_bytes = bytes;
    try {
      attention_forward(p);
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  }
};

TEST_P(CpuRange, UniformAttentionOverAMillionKeys) {
  for (const ComputeType compute : {ComputeType::kFloat32, ComputeType::kBFloat16}) {
    LongRow row;
    row.k.assign(8, 0.0f);
    row.v.assign(8, 0.1f);
    ASSERT_EQ(row.run(kManyKeys, compute), "");
    const float expected = compute == ComputeType::kBFloat16 ? 0x1.9ap-4f : 0.1f;
    for (const float x : row.out) EXPECT_NEAR(x, expected, 5e-6 * expected);
    EXPECT_NEAR(row.lse, std::log(static_cast<double>(kManyKeys)), 5e-6);
  }
}

TEST_P(CpuRange, ValuesOfAMillionKeys) {
  LongRow row;
  row.k.assign(8, 0.0f);
  row.v.resize(static_cast<std::size_t>(kManyKeys * 8));
  std::mt19937 random(3);
  double sum[8] = {};
  for (std::size_t i = 0; i < row.v.size(); ++i) {
    row.v[i] = std::uniform_real_distribution<float>(0, 1)(random);
    sum[i % 8] += static_cast<double>(row.v[i]);
  }
  ASSERT_EQ(row.run(kManyKeys, ComputeType::kFloat32), "");
  for (std::size_t d = 0; d < 8; ++d) {
    const double expected = sum[d] / static_cast<double>(kManyKeys);
    EXPECT_NEAR(row.out[d], expected, 5e-6 * expected);
  }
}

TEST_P(CpuRange, AMaximumThatRisesAMillionTimes) {
  LongRow row;
  row.q[0] = 1;
  row.v.assign(8, 0.1f);
  row.k.assign(static_cast<std::size_t>(kManyKeys * 8), 0.0f);
  const double step = 3.0 / static_cast<double>(kManyKeys);
  double sum = 0;
  for (std::int64_t t = 0; t < kManyKeys; ++t) {
    const auto score = static_cast<float>(step * static_cast<double>(t));
    row.k[static_cast<std::size_t>(t * 8)] = score;
    sum += std::exp(static_cast<double>(score));
  }
  ASSERT_EQ(row.run(kManyKeys, ComputeType::kFloat32), "");
  for (const float x : row.out) EXPECT_NEAR(x, 0.1f, 5e-7);
  EXPECT_NEAR(row.lse, std::log(sum), 5e-6);
}

INSTANTIATE_TEST_SUITE_P(Isa, CpuRange, ::testing::ValuesIn(isas_to_test()), isa_test_name);

}  // namespace
}  // namespace bsfa::testing
