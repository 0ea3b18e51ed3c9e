#pragma once

#include <cstdint>

#include "core/gate.hpp"
#include "core/geometry.hpp"
#include "core/host_device.hpp"

// Tiles: a call divided into pieces of work, each the rows of one gate query block of one head of
// one sequence. Which there are, in which order they are worked on, and what each of them sees.

namespace bsfa {

// What the order of the tiles of a launch depends on besides the sequences. The functions below
// take anything that has these members, such as the parameters of a kernel.
struct TileOrder {
  int num_heads_q;       //
  int group;             // query heads of one key/value head
  int q_blocks;          // most query blocks of a sequence that are worked on
  int section_kv_heads;  // key/value heads worked on at a time
};

struct TilePlace {
  int sequence;
  int head;     // query head
  int kv_head;  // its key/value head
  int q_block;  // relative to the first of the sequence: a row of the statistics
};

// Indices of a launch; those of query blocks that a sequence does not have are no tiles.
template <typename Order>
BSFA_HOST_DEVICE constexpr int total_tiles(const SequenceLayout& layout, const Order& order) {
  return static_cast<int>(layout.num_sequences) * order.num_heads_q * order.q_blocks;
}

// Longest first: query blocks in descending order, all heads of a section beside each other, so
// that those that are worked on together read the same keys and values, and those of a section fit
// into a cache.
template <typename Order>
BSFA_HOST_DEVICE constexpr TilePlace tile_place(const SequenceLayout& layout, const Order& order,
                                                int index) {
  const int kv_heads = static_cast<int>(layout.num_sequences) * (order.num_heads_q / order.group);
  const int section_tiles = order.section_kv_heads * order.group * order.q_blocks;
  const int section = index / section_tiles;
  const int first_kv_head = section * order.section_kv_heads;
  const int heads = smaller(order.section_kv_heads, kv_heads - first_kv_head) * order.group;
  const int rest = index - section * section_tiles;
  const int flat_head = first_kv_head * order.group + rest % heads;

  TilePlace place{};
  place.sequence = flat_head / order.num_heads_q;
  place.head = flat_head - place.sequence * order.num_heads_q;
  place.kv_head = place.head / order.group;
  place.q_block = order.q_blocks - 1 - rest / heads;
  return place;
}

// Query blocks of a sequence that are worked on; the q_block of its tiles is below that.
template <typename Order>
BSFA_HOST_DEVICE constexpr int sequence_q_blocks(const SequenceLayout& layout, const Order& order,
                                                 int sequence) {
  const Sequence s = sequence_at(layout, sequence);
  if (s.seqlen_q <= 0) return 0;
  const std::int64_t touched = floor_div(s.q_offset + s.seqlen_q - 1, layout.block.q) -
                               floor_div(s.q_offset, layout.block.q) + 1;
  return static_cast<int>(smaller(touched, std::int64_t{order.q_blocks}));
}

// Whether all sequences have as many query blocks as the longest: then every index is a tile.
BSFA_HOST_DEVICE constexpr bool all_tiles_exist(const SequenceLayout& layout) {
  return !layout.packed && layout.seqused_k == nullptr && layout.leftpad_k == nullptr &&
         layout.q_offsets == nullptr;
}

// How many tiles stand before one in the order of tile_place. Looks at all sequences.
template <typename Order, typename Place>
BSFA_HOST_DEVICE constexpr int tiles_before(const SequenceLayout& layout, const Order& order,
                                            const Place& place) {
  const int kv_heads = order.num_heads_q / order.group;           // of a sequence
  const int kv_head = place.sequence * kv_heads + place.kv_head;  // of all
  const int section = kv_head / order.section_kv_heads * order.section_kv_heads;
  const int section_end = section + order.section_kv_heads;
  int before = 0;  // in key/value heads
  for (int sequence = 0; sequence < layout.num_sequences; ++sequence) {
    const int blocks = sequence_q_blocks(layout, order, sequence);
    const int first = sequence * kv_heads;
    const auto heads_in = [&](int begin, int end) {
      const int low = begin > first ? begin : first;
      const int high = end < first + kv_heads ? end : first + kv_heads;
      return high > low ? high - low : 0;
    };
    before += heads_in(0, section) * blocks;
    if (blocks <= place.q_block) continue;
    before += heads_in(section, section_end) * (blocks - place.q_block - 1);
    before += heads_in(section, kv_head);
  }
  return before * order.group + place.head % order.group;
}

// The key/value blocks (absolute) whose scores query block i needs: all that it sees, of which a
// policy of `window_blocks` >= 0 looks at its own alone.
BSFA_HOST_DEVICE constexpr BlockRange scored_blocks(const SequenceLayout& layout, const Sequence& s,
                                                    std::int64_t i, std::int64_t window_blocks) {
  BlockRange blocks = visible_blocks(layout, s, i);
  if (window_blocks >= 0) {
    blocks = intersect(blocks, sliding_window_range(i, window_blocks, layout.block));
  }
  return blocks;
}

}  // namespace bsfa
