#include "core/tiles.hpp"

#include <gtest/gtest.h>

#include <array>
#include <set>
#include <vector>

// The geometry against its plain definition (docs/method.md), over every small shape: gate blocks
// of a few tokens, so that every way in which edges can meet occurs.

namespace bsfa {
namespace {

// What is asked of the geometry, entry by entry.
struct Plain {
  const SequenceLayout& layout;
  const Sequence& s;

  std::int64_t position(std::int64_t row) const { return s.q_offset + row; }
  bool visible(std::int64_t row, std::int64_t key) const {
    if (row < 0 || row >= s.seqlen_q || key < 0 || key >= s.seqlen_k) return false;
    const std::int64_t at = layout.kv_offset + key;
    return (!layout.causal || at <= position(row)) &&
           (layout.window == 0 || at > position(row) - layout.window);
  }
  std::int64_t q_block(std::int64_t row) const { return floor_div(position(row), layout.block.q); }
  bool meets_diagonal(std::int64_t i, std::int64_t j) const {
    const BlockShape b = layout.block;
    return b.kv * j < b.q * (i + 1) && b.q * i < b.kv * (j + 1);
  }
};

constexpr int kMost = 7;  // tokens of a sequence

// Calls `check` with every layout of one sequence.
template <typename Check>
void for_every_layout(Check&& check) {
  for (const BlockShape block : {BlockShape{2, 2}, BlockShape{4, 2}, BlockShape{2, 4}}) {
    for (const bool causal : {false, true}) {
      for (std::int64_t window = 0; window <= (causal ? kMost : 0); ++window) {
        for (std::int64_t q_offset = -5; q_offset <= 9; ++q_offset) {
          for (const std::int64_t kv_offset : {0, 4}) {
            for (std::int64_t seqlen_q = 0; seqlen_q <= kMost; ++seqlen_q) {
              for (std::int64_t seqlen_k = 0; seqlen_k <= kMost; ++seqlen_k) {
                SequenceLayout layout;
                layout.num_sequences = 1;
                layout.max_seqlen_q = seqlen_q;
                layout.max_seqlen_k = seqlen_k;
                layout.has_q_offset = true;
                layout.q_offset = q_offset;
                layout.kv_offset = kv_offset;
                layout.window = window;
                layout.causal = causal;
                layout.block = block;
                check(layout);
                if (::testing::Test::HasFatalFailure()) {
                  FAIL() << "block " << block.q << 'x' << block.kv << " causal " << causal
                         << " window " << window << " q_offset " << q_offset << " kv_offset "
                         << kv_offset << " seqlens " << seqlen_q << ' ' << seqlen_k;
                }
              }
            }
          }
        }
      }
    }
  }
}

TEST(Tiles, KeysOfARow) {
  for_every_layout([](const SequenceLayout& layout) {
    const Sequence s = sequence_at(layout, 0);
    const Plain plain{layout, s};
    for (std::int64_t row = 0; row < s.seqlen_q; ++row) {
      const auto key = static_cast<int>(s.q_offset - layout.kv_offset);
      const auto r = static_cast<int>(row);
      const Span<int> narrow{row_begin(key, r, static_cast<int>(layout.window)),
                             row_end(key, r, static_cast<int>(s.seqlen_k), layout.causal)};
      const BlockRange keys = visible_keys(layout, s, row);
      for (std::int64_t c = 0; c < kMost + 2; ++c) {
        ASSERT_EQ(keys.contains(c), plain.visible(row, c)) << row << ' ' << c;
        ASSERT_EQ(narrow.contains(static_cast<int>(c)), plain.visible(row, c)) << row << ' ' << c;
      }
    }
  });
}

template <int kSide>
void expect_whole_blocks(const SequenceLayout& layout) {
  const Sequence s = sequence_at(layout, 0);
  const Plain plain{layout, s};
  const auto key = [&](std::int64_t row) {
    return static_cast<int>(plain.position(row) - layout.kv_offset);
  };
  for (std::int64_t first = 0; first < s.seqlen_q; ++first) {
    for (std::int64_t last = first; last < s.seqlen_q; ++last) {
      const Span<int> whole = whole_blocks<kSide>(key(first), static_cast<int>(last - first + 1),
                                                  static_cast<int>(s.seqlen_k), layout.causal,
                                                  static_cast<int>(layout.window));
      for (int n = 0; n < kMost; ++n) {
        bool all = true;
        for (std::int64_t row = first; row <= last; ++row) {
          for (std::int64_t c = n * kSide; c < (n + 1) * kSide; ++c) {
            all = all && plain.visible(row, c);
          }
        }
        ASSERT_EQ(whole.contains(n), all) << kSide << " rows " << first << ' ' << last << ' ' << n;
      }
    }
  }
}

TEST(Tiles, WholeBlocks) {
  for_every_layout([](const SequenceLayout& layout) {
    if (layout.block.q != 2) return;  // does not matter here
    if (layout.block.kv == 2) {
      expect_whole_blocks<2>(layout);
    } else {
      expect_whole_blocks<4>(layout);
    }
  });
}

TEST(Tiles, BlocksOfAQueryBlock) {
  for_every_layout([](const SequenceLayout& layout) {
    const Sequence s = sequence_at(layout, 0);
    const Plain plain{layout, s};
    std::set<std::int64_t> touched;
    for (std::int64_t row = 0; row < s.seqlen_q; ++row) touched.insert(plain.q_block(row));
    const BlockRange q_blocks = q_block_range(s, layout.block);
    ASSERT_EQ(q_blocks.size(), static_cast<std::int64_t>(touched.size()));
    for (const std::int64_t i : touched) {
      ASSERT_TRUE(q_blocks.contains(i));
      for (const std::int64_t window_blocks : {-1, 0, 1, 3}) {
        const BlockRange scored = scored_blocks(layout, s, i, window_blocks);
        const std::int64_t diagonal = always_kept_range(i, layout.block).begin;
        for (std::int64_t j = 0; j < 12; ++j) {
          bool any = false;
          for (std::int64_t row = 0; row < s.seqlen_q; ++row) {
            for (std::int64_t c = 0; c < s.seqlen_k; ++c) {
              any = any || (plain.q_block(row) == i && plain.visible(row, c) &&
                            (layout.kv_offset + c) / layout.block.kv == j);
            }
          }
          const bool near =
              plain.meets_diagonal(i, j) || (j < diagonal && j >= diagonal - window_blocks);
          ASSERT_EQ(scored.contains(j), any && (window_blocks < 0 || near))
              << "block " << i << ", " << j << " window_blocks " << window_blocks;
        }
      }
    }
  });
}

// Batches of up to three sequences of up to three query blocks, some of which stand otherwise than
// from 0, packed and padded.
struct Batch {
  SequenceLayout layout;
  std::vector<std::int32_t> cu_seqlens, offsets;

  Batch(const std::vector<std::int32_t>& lengths, bool shifted) {
    cu_seqlens = {0};
    for (std::size_t n = 0; n < lengths.size(); ++n) {
      cu_seqlens.push_back(cu_seqlens.back() + lengths[n]);
      offsets.push_back(static_cast<std::int32_t>(n));
    }
    layout.packed = true;
    layout.causal = true;
    layout.block = {2, 2};
    layout.num_sequences = static_cast<std::int64_t>(lengths.size());
    layout.cu_seqlens_q = layout.cu_seqlens_k = cu_seqlens.data();
    if (shifted) layout.q_offsets = offsets.data();
  }
};

void expect_order(const SequenceLayout& layout, const TileOrder& order) {
  const int kv_heads = order.num_heads_q / order.group;
  std::set<std::array<int, 3>> seen;
  int before = 0;
  TilePlace last{};
  for (int index = 0; index < total_tiles(layout, order); ++index) {
    const TilePlace place = tile_place(layout, order, index);
    ASSERT_EQ(place.kv_head, place.head / order.group);
    ASSERT_TRUE(seen.insert({place.sequence, place.head, place.q_block}).second) << index;
    const auto section = [&](const TilePlace& p) {
      return (p.sequence * kv_heads + p.kv_head) / order.section_kv_heads;
    };
    if (index > 0) {
      // Section by section; in one, the later query blocks first.
      ASSERT_GE(section(place), section(last));
      if (section(place) == section(last)) {
        ASSERT_LE(place.q_block, last.q_block);
      }
    }
    last = place;
    const int blocks = sequence_q_blocks(layout, order, place.sequence);
    ASSERT_LE(blocks, order.q_blocks);
    const bool exists = place.q_block < blocks;
    if (all_tiles_exist(layout)) {
      ASSERT_TRUE(exists);
    }
    if (!exists) continue;
    ASSERT_EQ(tiles_before(layout, order, place), before) << index;
    ++before;
  }
  // Every head of every sequence has every query block.
  ASSERT_EQ(static_cast<int>(seen.size()),
            layout.num_sequences * order.num_heads_q * order.q_blocks);
}

TEST(Tiles, TheirOrderAndHowManyStandBefore) {
  std::vector<std::vector<std::int32_t>> batches;
  for (std::int32_t a = 0; a <= 5; ++a) {
    batches.push_back({a});
    for (std::int32_t b = 0; b <= 5; ++b) {
      batches.push_back({a, b});
      for (std::int32_t c = 0; c <= 5; ++c) batches.push_back({a, b, c});
    }
  }
  for (const auto& lengths : batches) {
    for (const bool shifted : {false, true}) {
      const Batch batch(lengths, shifted);
      const int sequences = static_cast<int>(lengths.size());
      for (const int kv_heads : {1, 2, 3}) {
        for (const int group : {1, 2}) {
          for (int section = 1; section <= sequences * kv_heads; ++section) {
            for (int q_blocks = 1; q_blocks <= 4; ++q_blocks) {
              expect_order(batch.layout, {kv_heads * group, group, q_blocks, section});
              ASSERT_FALSE(HasFatalFailure())
                  << ::testing::PrintToString(lengths) << " shifted " << shifted << " kv_heads "
                  << kv_heads << " group " << group << " section " << section << " q_blocks "
                  << q_blocks;
            }
          }
        }
      }
    }
  }
}

TEST(Tiles, PaddedBatchesHaveEveryTileOnlyWhereAllStandAlike) {
  const std::int32_t offsets[] = {0, 1};
  SequenceLayout layout;
  layout.block = {2, 2};
  layout.num_sequences = 2;
  layout.max_seqlen_q = layout.max_seqlen_k = 4;
  layout.causal = true;
  EXPECT_TRUE(all_tiles_exist(layout));
  expect_order(layout, {2, 1, 2, 1});
  // The second sequence touches three query blocks, the first two.
  layout.q_offsets = offsets;
  EXPECT_FALSE(all_tiles_exist(layout));
  expect_order(layout, {2, 1, 3, 1});
}

TEST(Tiles, ShiftsOfNegativeNumbersAreFloors) {
  for (int tokens = -9; tokens <= 9; ++tokens) {
    EXPECT_EQ(tokens >> kLog2<4>, floor_div(tokens, 4)) << tokens;
  }
  EXPECT_EQ(kLog2<64>, 6);
}

}  // namespace
}  // namespace bsfa
