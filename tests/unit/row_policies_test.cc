#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "core/block_order.hpp"
#include "core/problem.hpp"
#include "reference/oracle.hpp"

// Policies that look at rows: their order, and the oracle against the definition written out.

namespace bsfa {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

TEST(MassPolicy, LevelFallsWithTheBlocks) {
  EXPECT_FLOAT_EQ(mass_level(0.1f, 1), 0.002f);
  EXPECT_FLOAT_EQ(mass_level(0.1f, 50), 0.002f);
  EXPECT_FLOAT_EQ(mass_level(0.1f, 100), 0.001f);
  EXPECT_FLOAT_EQ(mass_level(1.0f, 1000), 0.001f);
}

TEST(MassPolicy, AMeanAtTheLevelAndANanKeep) {
  EXPECT_TRUE(keep_mass(0.25f, 0.002f, 125));
  EXPECT_FALSE(keep_mass(0.2499f, 0.002f, 125));
  EXPECT_TRUE(keep_mass(std::numeric_limits<float>::quiet_NaN(), 0.002f, 125));
  EXPECT_TRUE(keep_mass(std::numeric_limits<float>::infinity(), 0.002f, 125));
}

TEST(MassPolicy, ReferenceIsSinkDiagonalAndTwoBefore) {
  std::vector<std::int64_t> blocks;
  for (std::int64_t j = 0; j < 20; ++j) {
    if (in_mass_reference(4, j, {128, 64})) blocks.push_back(j);
  }
  EXPECT_EQ(blocks, (std::vector<std::int64_t>{0, 6, 7, 8, 9}));
  blocks.clear();
  for (std::int64_t j = 0; j < 20; ++j) {
    if (in_mass_reference(9, j, {64, 128})) blocks.push_back(j);
  }
  EXPECT_EQ(blocks, (std::vector<std::int64_t>{0, 2, 3, 4}));
}

std::vector<std::int64_t> in_order(const BlockOrder& order, int from, int to) {
  std::vector<std::int64_t> blocks;
  for (int run = from; run < to; ++run) {
    for (std::int64_t n = 0; n < order.runs[run].count; ++n) {
      blocks.push_back(order.runs[run].at(n));
    }
  }
  return blocks;
}

TEST(BlockOrder, OfMassAndSkipSoftmax) {
  using Blocks = std::vector<std::int64_t>;
  const BlockOrder mass = block_order(Policy::mass(), 3, {0, 10}, {});
  EXPECT_EQ(in_order(mass, 0, mass.reference_runs), (Blocks{0, 4, 5, 6, 7}));
  EXPECT_EQ(in_order(mass, mass.reference_runs, BlockOrder::kRuns), (Blocks{1, 2, 3, 8, 9}));
  const auto skip = [](SkipOrder order) {
    return in_order(block_order(Policy::skip_softmax(0.1f, order), 3, {0, 10}, {}), 0,
                    BlockOrder::kRuns);
  };
  EXPECT_EQ(skip(SkipOrder::kAscending), (Blocks{0, 1, 2, 3, 4, 5, 6, 7, 8, 9}));
  EXPECT_EQ(skip(SkipOrder::kOutwards), (Blocks{6, 7, 0, 5, 4, 3, 2, 1, 8, 9}));
}

TEST(BlockOrder, VisitsWhatIsVisibleOnce) {
  const Policy policies[] = {Policy::dense(), Policy::mass(), Policy::skip_softmax(0.1f),
                             Policy::skip_softmax(0.1f, SkipOrder::kOutwards)};
  for (const Policy& policy : policies) {
    for (const BlockShape block : {BlockShape{128, 64}, BlockShape{64, 128}, BlockShape{64, 64}}) {
      for (std::int64_t i = -2; i < 8; ++i) {
        for (std::int64_t begin = 0; begin < 9; ++begin) {
          for (std::int64_t end = begin; end < 12; ++end) {
            const BlockOrder order = block_order(policy, i, {begin, end}, block);
            std::vector<std::int64_t> blocks = in_order(order, 0, BlockOrder::kRuns);
            std::sort(blocks.begin(), blocks.end());
            std::vector<std::int64_t> expected;
            for (std::int64_t j = begin; j < end; ++j) expected.push_back(j);
            ASSERT_EQ(blocks, expected) << static_cast<int>(policy.kind) << " query block " << i
                                        << " [" << begin << ", " << end << ")";
            for (const std::int64_t j : in_order(order, 0, order.reference_runs)) {
              ASSERT_TRUE(in_mass_reference(i, j, block));
            }
            for (const std::int64_t j :
                 in_order(order, order.reference_runs, BlockOrder::kRuns)) {
              ASSERT_FALSE(order.reference_runs > 0 && in_mass_reference(i, j, block));
            }
          }
        }
      }
    }
  }
}

// One head in fp32, and its scores by brute force.
struct Head {
  std::int64_t seqlen_q, seqlen_k, dim = 8;
  std::vector<float> q, k, v, out;
  AttentionParams params;

  Head(std::int64_t rows, std::int64_t keys, float magnitude, unsigned seed)
      : seqlen_q(rows), seqlen_k(keys) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    const auto fill = [&](std::vector<float>& values, std::int64_t count, float scale) {
      values.resize(static_cast<std::size_t>(count));
      for (float& value : values) value = scale * normal(random);
    };
    fill(q, rows * dim, magnitude);
    fill(k, keys * dim, 1);
    fill(v, keys * dim, 1);
    // Blocks of keys differ in importance to all rows.
    std::uniform_real_distribution<float> lowered(-12, 0);
    for (std::int64_t c = 0; c < keys; c += 64) {
      const float block = lowered(random);
      for (std::int64_t key = c; key < std::min(c + 64, keys); ++key) {
        k[static_cast<std::size_t>(key * dim)] = block;
      }
    }
    for (std::int64_t r = 0; r < rows; ++r) q[static_cast<std::size_t>(r * dim)] = 3;
    out.resize(q.size());
    params.q = contiguous<const void*>(q.data(), DType::kFloat32, 1, rows, 1, dim);
    params.k = contiguous<const void*>(k.data(), DType::kFloat32, 1, keys, 1, dim);
    params.v = contiguous<const void*>(v.data(), DType::kFloat32, 1, keys, 1, dim);
    params.out = contiguous<void*>(out.data(), DType::kFloat32, 1, rows, 1, dim);
    params.causal = true;
  }

  std::int64_t position(std::int64_t row) const {
    return params.q_offset.value_or(params.causal ? seqlen_k - seqlen_q : 0) + row;
  }
  bool sees(std::int64_t row, std::int64_t key) const {
    const std::int64_t p = position(row);
    if (params.causal && key > p) return false;
    return !params.window || key > p - *params.window;
  }
  double score(std::int64_t row, std::int64_t key) const {
    double dot = 0;
    for (std::int64_t d = 0; d < dim; ++d) {
      dot += double{q[static_cast<std::size_t>(row * dim + d)]} *
             double{k[static_cast<std::size_t>(key * dim + d)]};
    }
    return dot * double{1.0f / std::sqrt(static_cast<float>(dim))};
  }
  OracleHead run() const {
    Problem problem;
    const Status status = make_problem(params, &problem);
    EXPECT_TRUE(status.ok()) << status.message;
    return oracle_head(problem, 0, 0, DType::kFloat32);
  }
  std::vector<std::int64_t> rows_of(std::int64_t i) const {
    std::vector<std::int64_t> rows;
    for (std::int64_t r = 0; r < seqlen_q; ++r) {
      if (position(r) >= 128 * i && position(r) < 128 * (i + 1)) rows.push_back(r);
    }
    return rows;
  }
};

// exp(largest score of the block - log of the sum of exp over the reference), over the rows.
double mean_mass(const Head& head, const std::vector<std::int64_t>& rows, std::int64_t i,
                 std::int64_t j) {
  double mean = 0;
  for (const std::int64_t r : rows) {
    double largest = -kInfinity;
    double sum = 0;
    for (std::int64_t c = 0; c < head.seqlen_k; ++c) {
      if (!head.sees(r, c)) continue;
      const std::int64_t block = c / 64;
      if (block == j) largest = std::max(largest, head.score(r, c));
      const bool reference = block == 0 || (block >= 2 * i - 2 && block < 2 * i + 2);
      if (reference) sum += std::exp(head.score(r, c));
    }
    if (largest == -kInfinity) continue;
    mean += std::exp(largest) / sum / static_cast<double>(rows.size());
  }
  return mean;
}

TEST(Oracle, MassIsTheMeanOverTheRowsOfTheQueryBlock) {
  int kept = 0, dropped = 0;
  for (const bool causal : {true, false}) {
    for (const std::int64_t window : {0, 70, 300}) {
      if (window > 0 && !causal) continue;
      for (const unsigned seed : {1u, 2u, 3u}) {
        Head head(300, 900, 1, seed);
        head.params.causal = causal;
        if (window > 0) head.params.window = window;
        const float c = seed == 3 ? 0.01f : 0.1f;
        head.params.policy = Policy::mass(c);
        const OracleHead oracle = head.run();
        const std::int64_t first = head.position(0) / 128;
        for (std::int64_t row = 0; row < oracle.q_blocks; ++row) {
          const std::int64_t i = first + row;
          const std::vector<std::int64_t> rows = head.rows_of(i);
          std::vector<std::int64_t> visible;
          for (std::int64_t j = 0; j < oracle.kv_blocks; ++j) {
            const auto sees_any = [&](std::int64_t r) {
              for (std::int64_t key = 64 * j; key < std::min<std::int64_t>(64 * j + 64, 900);
                   ++key) {
                if (head.sees(r, key)) return true;
              }
              return false;
            };
            if (std::any_of(rows.begin(), rows.end(), sees_any)) visible.push_back(j);
          }
          const double level =
              std::min(0.002, double{c} / static_cast<double>(visible.size()));
          for (std::int64_t j = 0; j < oracle.kv_blocks; ++j) {
            const auto cell = static_cast<std::size_t>(row * oracle.kv_blocks + j);
            if (std::find(visible.begin(), visible.end(), j) == visible.end()) {
              EXPECT_EQ(oracle.kept[cell], 0);
              continue;
            }
            const bool always = j == 0 || (j >= 2 * i - 2 && j < 2 * i + 2);
            const double mean = mean_mass(head, rows, i, j);
            if (std::abs(mean / level - 1) > 1e-3) {
              EXPECT_EQ(oracle.undecided[cell], 0);
            }
            const bool expected = always || mean >= level;
            EXPECT_EQ(oracle.kept[cell] != 0, expected)
                << "query block " << i << " block " << j << " mean " << mean;
            EXPECT_EQ(oracle.decided[cell], oracle.kept[cell]);
            (expected ? kept : dropped) += always ? 0 : 1;
          }
        }
      }
    }
  }
  EXPECT_GT(kept, 20);
  EXPECT_GT(dropped, 20);
}

TEST(Oracle, SkipSoftmaxComparesWithWhatCameBefore) {
  int kept = 0, dropped = 0;
  for (const SkipOrder order : {SkipOrder::kAscending, SkipOrder::kOutwards}) {
    for (const bool causal : {true, false}) {
      Head head(256, 900, 1, 7);
      head.params.causal = causal;
      head.params.q_offset = 256;  // of query blocks 2 and 3
      const float lambda = 0.3f;
      head.params.policy = Policy::skip_softmax(lambda, order);
      const OracleHead oracle = head.run();
      ASSERT_EQ(oracle.q_blocks, 2);
      for (const std::int64_t i : {2, 3}) {
        const std::int64_t end = causal ? 2 * i + 2 : oracle.kv_blocks;
        std::vector<std::int64_t> blocks;
        if (order == SkipOrder::kAscending) {
          for (std::int64_t j = 0; j < end; ++j) blocks.push_back(j);
        } else {
          blocks = {2 * i, 2 * i + 1, 0};
          for (std::int64_t j = 2 * i - 1; j > 0; --j) blocks.push_back(j);
          for (std::int64_t j = 2 * i + 2; j < end; ++j) blocks.push_back(j);
        }
        std::vector<double> running(128, -kInfinity);
        for (const std::int64_t j : blocks) {
          double best = -kInfinity;
          for (std::int64_t n = 0; n < 128; ++n) {
            const std::int64_t r = 128 * i + n - 256;
            double largest = -kInfinity;
            for (std::int64_t c = 64 * j; c < std::min<std::int64_t>(64 * j + 64, 900); ++c) {
              if (head.sees(r, c)) largest = std::max(largest, head.score(r, c));
            }
            auto& so_far = running[static_cast<std::size_t>(n)];
            if (largest > -kInfinity) best = std::max(best, largest - so_far);
            so_far = std::max(so_far, largest);
          }
          const bool always = j == 0 || j / 2 == i;
          const bool expected = always || best >= std::log(double{lambda});
          const auto cell = static_cast<std::size_t>((i - 2) * oracle.kv_blocks + j);
          EXPECT_EQ(oracle.kept[cell] != 0, expected)
              << "query block " << i << " block " << j << " rise " << best;
          (expected ? kept : dropped) += always ? 0 : 1;
        }
      }
    }
  }
  EXPECT_GT(kept, 5);
  EXPECT_GT(dropped, 5);
}

}  // namespace
}  // namespace bsfa
