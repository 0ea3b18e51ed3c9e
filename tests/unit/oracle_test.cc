#include "reference/oracle.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "core/numeric.hpp"
#include "core/tiles.hpp"

// The oracle against numbers worked out by hand and against properties that need no kernel.

namespace bsfa {
namespace {

struct Case {
  std::vector<float> q, k, v, out, table;
  AttentionParams params;

  Case(std::int64_t seqlen_q, std::int64_t seqlen_k, std::int64_t dim, unsigned seed) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    const auto fill = [&](std::vector<float>& values, std::int64_t count) {
      values.resize(static_cast<std::size_t>(count));
      for (float& value : values) value = normal(random);
    };
    fill(q, seqlen_q * dim);
    fill(k, seqlen_k * dim);
    fill(v, seqlen_k * dim);
    out.resize(q.size());
    params.q = contiguous<const void*>(q.data(), DType::kFloat32, 1, seqlen_q, 1, dim);
    params.k = contiguous<const void*>(k.data(), DType::kFloat32, 1, seqlen_k, 1, dim);
    params.v = contiguous<const void*>(v.data(), DType::kFloat32, 1, seqlen_k, 1, dim);
    params.out = contiguous<void*>(out.data(), DType::kFloat32, 1, seqlen_q, 1, dim);
    params.causal = true;
  }

  OracleHead run() const {
    Problem problem;
    const Status status = make_problem(params, &problem);
    EXPECT_TRUE(status.ok()) << status.message;
    return oracle_head(problem, 0, 0, DType::kFloat32);
  }
};

TEST(Oracle, TwoTokensByHand) {
  Case c(2, 2, 1, 1);
  c.q = {1, 2};
  c.k = {3, 0.5f};
  c.v = {10, 20};
  const OracleHead head = c.run();
  EXPECT_DOUBLE_EQ(head.out[0], 10);
  EXPECT_DOUBLE_EQ(head.lse[0], 3);
  const double weight = 1 / (1 + std::exp(6.0 - 1.0));  // of the second key
  EXPECT_NEAR(head.out[1], 10 + 10 * weight, 1e-12);
  EXPECT_NEAR(head.lse[1], std::log(std::exp(6.0) + std::exp(1.0)), 1e-12);
  EXPECT_DOUBLE_EQ(head.block_max[0], 6);
  EXPECT_EQ(head.kept_blocks, 1);
  EXPECT_EQ(head.visible_blocks, 1);
}

TEST(Oracle, ASkippedBlockIsAsIfItWereMaskedOut) {
  Case c(130, 200, 4, 2);
  c.params.causal = false;
  c.params.q_offset = 0;
  const OracleHead dense = c.run();
  ASSERT_EQ(dense.q_blocks, 2);
  ASSERT_EQ(dense.kv_blocks, 4);
  // A threshold between the two largest maxima of the blocks off the diagonal of query block 0.
  const double a = dense.block_max[2], b = dense.block_max[3];
  c.table = {static_cast<float>((a + b) / 2), -std::numeric_limits<float>::infinity()};
  c.params.policy = Policy::threshold({c.table.data(), 1, 2, 2, 0, {}});
  const OracleHead gated = c.run();
  EXPECT_EQ(gated.kept, (std::vector<std::uint8_t>{1, 1, a > b, b > a, 1, 1, 1, 1}));
  const std::int64_t lost = a > b ? 3 : 2;
  std::vector<double> expected(4, 0.0);
  double sum = 0;
  for (std::int64_t key = 0; key < 200; ++key) {
    if (key / 64 == lost) continue;
    double score = 0;
    for (int d = 0; d < 4; ++d) score += double{c.q[d]} * c.k[key * 4 + d];
    const double weight = std::exp(score * 0.5);
    sum += weight;
    for (int d = 0; d < 4; ++d) expected[d] += weight * c.v[key * 4 + d];
  }
  for (int d = 0; d < 4; ++d) EXPECT_NEAR(gated.out[d], expected[d] / sum, 1e-12);
  EXPECT_NEAR(gated.lse[0], std::log(sum), 1e-12);
}

TEST(Oracle, InfiniteThresholds) {
  Case c(300, 300, 8, 3);
  const OracleHead dense = c.run();
  c.table = {-std::numeric_limits<float>::infinity()};
  c.params.policy = Policy::threshold({c.table.data(), 1, 1, 1, 0, {}});
  EXPECT_EQ(c.run().out, dense.out);
  c.table[0] = std::numeric_limits<float>::infinity();
  const OracleHead diagonal = c.run();
  EXPECT_EQ(diagonal.kept_blocks, 2 + 2 + 1);
  c.params.policy = Policy::sliding_window(0);
  EXPECT_EQ(c.run().out, diagonal.out);
}

TEST(Oracle, ARowWithNoKeyIsZero) {
  Case c(10, 4, 8, 4);
  const OracleHead head = c.run();  // bottom-right aligned: rows 0 to 5 stand before position 0
  for (int r = 0; r < 6; ++r) {
    EXPECT_EQ(head.lse[r], -std::numeric_limits<double>::infinity());
    for (int d = 0; d < 8; ++d) EXPECT_EQ(head.out[r * 8 + d], 0);
  }
  EXPECT_EQ(head.out[6 * 8], c.v[0]);
}

TEST(Oracle, NanIsKeptAndSeen) {
  Case c(256, 256, 8, 5);
  c.k[0] = std::numeric_limits<float>::quiet_NaN();
  c.table = {std::numeric_limits<float>::infinity()};
  c.params.policy = Policy::threshold({c.table.data(), 1, 1, 1, 0, {}});
  const OracleHead head = c.run();
  EXPECT_TRUE(std::isnan(head.block_max[4]));
  EXPECT_EQ(head.kept[4], 1) << "block (1, 0) is off the diagonal and holds the NaN";
  EXPECT_EQ(head.kept[5], 0);
  EXPECT_TRUE(std::isnan(head.out[200 * 8]));
}

TEST(Oracle, ChunksOnAGateBlockDecideAlike) {
  Case whole(384, 384, 8, 6);
  whole.table = {0.4f, 0.5f, 0.6f};
  whole.params.policy = Policy::threshold({whole.table.data(), 1, 3, 3, 0, {}});
  const OracleHead expected = whole.run();
  std::vector<double> out;
  std::vector<std::uint8_t> kept;
  for (const std::int64_t begin : {0, 128}) {
    const std::int64_t end = begin == 0 ? 128 : 384;
    Case chunk(end - begin, end, 8, 6);
    chunk.q.assign(whole.q.begin() + begin * 8, whole.q.begin() + end * 8);
    chunk.k.assign(whole.k.begin(), whole.k.begin() + end * 8);
    chunk.v.assign(whole.v.begin(), whole.v.begin() + end * 8);
    chunk.params.q.data = chunk.q.data();
    chunk.params.k.data = chunk.k.data();
    chunk.params.v.data = chunk.v.data();
    chunk.params.policy = whole.params.policy;
    const OracleHead part = chunk.run();
    out.insert(out.end(), part.out.begin(), part.out.end());
    for (std::int64_t i = 0; i < part.q_blocks; ++i) {
      for (std::int64_t j = 0; j < 6; ++j) {
        kept.push_back(j < part.kv_blocks ? part.kept[i * part.kv_blocks + j] : 0);
      }
    }
  }
  EXPECT_EQ(out, expected.out);
  EXPECT_EQ(kept, expected.kept);
}

TEST(Oracle, LooksAtTheBlocksOfTheGeometry) {
  for (const std::int64_t q_offset : {0, 70, 200}) {
    for (const std::int64_t window : {0, 1, 90}) {
      Case c(150, 200, 8, 8);
      c.params.q_offset = q_offset;
      if (window > 0) c.params.window = window;
      Problem problem;
      ASSERT_TRUE(make_problem(c.params, &problem).ok());
      const Sequence s = sequence_at(problem.sequences, 0);
      const OracleHead head = c.run();
      std::int64_t visible = 0;
      for (std::int64_t row = 0; row < head.q_blocks; ++row) {
        const BlockRange blocks =
            scored_blocks(problem.sequences, s, first_q_block(s, c.params.block) + row, -1);
        visible += blocks.size();
        for (std::int64_t j = 0; j < head.kv_blocks; ++j) {
          const auto cell = static_cast<std::size_t>(row * head.kv_blocks + j);
          EXPECT_EQ(blocks.contains(j),
                    head.block_max[cell] != -std::numeric_limits<double>::infinity());
          EXPECT_EQ(blocks.contains(j), head.kept[cell] == 1);
        }
      }
      EXPECT_EQ(head.visible_blocks, visible);
      EXPECT_EQ(head.kept_blocks, visible);
    }
  }
}

TEST(Oracle, Sinks) {
  Case c(2, 2, 1, 7);
  const float sink = 1.5f;
  c.params.sinks = &sink;
  const OracleHead head = c.run();
  const double score = double{c.q[0]} * c.k[0];
  EXPECT_NEAR(head.out[0], c.v[0] * std::exp(score) / (std::exp(score) + std::exp(1.5)), 1e-12);
}

}  // namespace
}  // namespace bsfa
