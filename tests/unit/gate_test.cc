#include "core/gate.hpp"

#include <gtest/gtest.h>

#include <limits>

#include "core/geometry.hpp"

namespace bsfa {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

TEST(Gate, KeepRule) {
  EXPECT_TRUE(keep_block(1.0f, 1.0f, false));
  EXPECT_FALSE(keep_block(0.5f, 1.0f, false));
  EXPECT_TRUE(keep_block(0.5f, 1.0f, true));
  EXPECT_TRUE(keep_block(kNan, kInfinity, false)) << "a NaN is kept, so that it is seen";
  EXPECT_TRUE(keep_block(-1e30f, -kInfinity, false)) << "-inf is dense attention";
  EXPECT_FALSE(keep_block(1e30f, kInfinity, false)) << "+inf keeps the diagonal alone";
}

TEST(Gate, AlwaysKeptMeansThatTokenRangesOverlap) {
  for (const std::int64_t q : {64, 128}) {
    for (const std::int64_t kv : {64, 128}) {
      const BlockShape block{q, kv};
      for (std::int64_t i = 0; i < 9; ++i) {
        for (std::int64_t j = 0; j < 20; ++j) {
          const bool overlap = kv * j < q * (i + 1) && q * i < kv * (j + 1);
          EXPECT_EQ(always_kept(i, j, block), overlap) << q << "x" << kv << " " << i << "," << j;
        }
      }
    }
  }
}

TEST(Gate, AShortTableRepeatsItsLastEntry) {
  EXPECT_EQ(threshold_index(0, 4), 0);
  EXPECT_EQ(threshold_index(3, 4), 3);
  EXPECT_EQ(threshold_index(99, 4), 3);
  EXPECT_EQ(threshold_index(-1, 4), 0);
}

TEST(Gate, SlidingWindow) {
  const BlockRange range = sliding_window_range(5, 3, {});
  EXPECT_EQ(range.begin, 7);
  EXPECT_EQ(range.end, 12);
}

TEST(Geometry, FloorAndCeilingDivision) {
  EXPECT_EQ(floor_div(-1, 128), -1);
  EXPECT_EQ(floor_div(-128, 128), -1);
  EXPECT_EQ(floor_div(127, 128), 0);
  EXPECT_EQ(ceil_div(-1, 64), 0);
  EXPECT_EQ(ceil_div(65, 64), 2);
}

// Visible blocks from the block arithmetic against visibility element by element.
TEST(Geometry, VisibleBlocksMatchTheMask) {
  for (const bool causal : {false, true}) {
    for (const std::int64_t window : {0, 1, 70, 200}) {
      if (window > 0 && !causal) continue;
      for (const std::int64_t q_offset : {-130, -3, 0, 5, 128, 300}) {
        for (const std::int64_t kv_offset : {0, 128}) {
          for (const std::int64_t seqlen_k : {0, 1, 64, 200, 333}) {
            SequenceLayout layout;
            layout.causal = causal;
            layout.window = window;
            layout.kv_offset = kv_offset;
            layout.num_sequences = 1;
            layout.max_seqlen_q = 257;
            layout.max_seqlen_k = seqlen_k;
            layout.has_q_offset = true;
            layout.q_offset = q_offset;
            const Sequence s = sequence_at(layout, 0);
            const BlockRange q_blocks = q_block_range(s, layout.block);
            for (std::int64_t i = q_blocks.begin; i < q_blocks.end; ++i) {
              const BlockRange range = visible_blocks(layout, s, i);
              for (std::int64_t j = 0; j < 10; ++j) {
                bool any = false;
                for (std::int64_t r = 0; r < s.seqlen_q; ++r) {
                  const std::int64_t p = q_offset + r;
                  if (floor_div(p, 128) != i) continue;
                  for (std::int64_t c = 0; c < seqlen_k; ++c) {
                    const std::int64_t position = kv_offset + c;
                    if (position / 64 != j) continue;
                    any = any ||
                          ((!causal || position <= p) && (window == 0 || position > p - window));
                  }
                }
                ASSERT_EQ(range.contains(j), any)
                    << "causal " << causal << " window " << window << " q_offset " << q_offset
                    << " kv_offset " << kv_offset << " seqlen_k " << seqlen_k << " block " << i
                    << "," << j;
              }
            }
          }
        }
      }
    }
  }
}

TEST(Geometry, PaddedSequencesCountFromTheirFirstRealToken) {
  const std::int32_t leftpad[] = {3};
  SequenceLayout layout;
  layout.causal = true;
  layout.num_sequences = 1;
  layout.max_seqlen_q = 10;
  layout.max_seqlen_k = 10;
  layout.leftpad_k = leftpad;
  const Sequence s = sequence_at(layout, 0);
  EXPECT_EQ(s.seqlen_k, 7);
  EXPECT_EQ(s.q_offset, -3);
  EXPECT_EQ(visible_keys(layout, s, 2).size(), 0) << "a padding row sees nothing";
  EXPECT_EQ(visible_keys(layout, s, 3).size(), 1);
}

}  // namespace
}  // namespace bsfa
