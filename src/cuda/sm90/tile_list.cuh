#pragma once

#include "cuda/scheduler/tile.cuh"
#include "cuda/sm90/arguments.hpp"

// The list of tiles: made before the attention kernel, so that a stream of it only copies the next.

namespace bsfa::cuda::sm90 {

struct alignas(16) ListedTile : Tile {
  // Blocks that all rows see whole and that nothing is to be looked up for: all rows are present,
  // and none of these blocks is always kept.
  int plain_begin;
  int plain_end;
};
static_assert(sizeof(ListedTile) == kListedTileBytes);

// The block of an entry that names none the tile sees: its rows are outside every tensor, so that
// the copy engine gives zeros for them, and no row sees its columns.
inline constexpr int kNoBlock = 1 << 24;

// A tile that visits the blocks of a list. Its n_begin and n_end count steps, not blocks: step n
// visits the entry n_end - 1 - n.
struct alignas(16) SelectedTile : ListedTile {
  static constexpr int kFirst = 4;
  int first[kFirst];         // the first entries, checked; kNoBlock past the end
  const std::int32_t* list;  // all of them, as they came
  int visible_begin;         // blocks that the tile sees
  int visible_end;
};
static_assert(sizeof(SelectedTile) == kSelectedTileBytes);

// The block of a list's entry.
__device__ __forceinline__ int checked_block(const SelectedTile& tile, int entry) {
  return entry >= tile.visible_begin && entry < tile.visible_end ? entry : kNoBlock;
}

// Blocks of a tile that all rows see whole.
__device__ inline BlockRange full_blocks(const SequenceLayout& sequences, const Tile& tile) {
  const int window = static_cast<int>(sequences.window);
  const int low = window > 0 ? tile.key + kBlockM - window : 0;  // of the last row
  const int high = sequences.causal ? min(tile.seqlen_k, tile.key + 1) : tile.seqlen_k;
  return {max(0, (low + kBlockN - 1) >> 6), high >> 6};
}

// Query blocks of a sequence, of which no more are worked on than max_seqlen_q leaves room for; the
// q_block of its tiles is below that.
__device__ inline int query_blocks(const KernelParams& p, int sequence) {
  const Sequence s = sequence_at(p.sequences, sequence);
  if (s.seqlen_q <= 0) return 0;
  const std::int64_t block = p.sequences.block.q;
  const std::int64_t touched =
      floor_div(s.q_offset + s.seqlen_q - 1, block) - floor_div(s.q_offset, block) + 1;
  return static_cast<int>(min(touched, std::int64_t{p.q_blocks}));
}

// Whether all sequences have as many query blocks as the longest: then every index is a tile.
__device__ inline bool all_tiles_exist(const SequenceLayout& sequences) {
  return !sequences.packed && sequences.seqused_k == nullptr && sequences.leftpad_k == nullptr;
}

// How many of the tiles that exist stand before one in the order of tile_at. Looks at all
// sequences.
__device__ inline int tiles_before(const KernelParams& p, const Tile& tile) {
  const int kv_heads = p.num_heads_q / p.group;                 // of a sequence
  const int kv_head = tile.sequence * kv_heads + tile.kv_head;  // of all
  const int section = kv_head / p.section_kv_heads * p.section_kv_heads;
  const int section_end = section + p.section_kv_heads;
  int before = 0;  // in key/value heads
  for (int sequence = 0; sequence < p.sequences.num_sequences; ++sequence) {
    const int blocks = query_blocks(p, sequence);
    const int first = sequence * kv_heads;
    const auto heads_in = [&](int begin, int end) {
      const int low = begin > first ? begin : first;
      const int high = end < first + kv_heads ? end : first + kv_heads;
      return high > low ? high - low : 0;
    };
    before += heads_in(0, section) * blocks;
    if (blocks <= tile.q_block) continue;
    before += heads_in(section, section_end) * (blocks - tile.q_block - 1);
    before += heads_in(section, kv_head);
  }
  return before * p.group + tile.head % p.group;
}

__device__ inline SelectedTile selected_tile(const KernelParams& p, const ListedTile& from) {
  SelectedTile tile;
  static_cast<ListedTile&>(tile) = from;
  tile.visible_begin = from.n_begin;
  tile.visible_end = from.n_end;
  const BlockList list = block_list(p.lists, p.num_heads_q, from.sequence, from.head, from.q_block);
  tile.list = list.blocks;
  tile.n_begin = 0;
  tile.n_end = static_cast<int>(list.count);
#pragma unroll
  for (int i = 0; i < SelectedTile::kFirst; ++i) {
    tile.first[i] = i < tile.n_end ? checked_block(tile, tile.list[i]) : kNoBlock;
  }
  return tile;
}

template <Form kForm>
__device__ inline ListedTile listed_tile(const KernelParams& p, int index) {
  ListedTile tile;
  static_cast<Tile&>(tile) = tile_at<kForm == Form::kGated>(p, index);
  if (tile.sequence < 0) return tile;
  const BlockRange full = full_blocks(p.sequences, tile);
  tile.plain_begin = static_cast<int>(full.begin);
  tile.plain_end = static_cast<int>(full.end);
  bool looked_up = tile.row_begin > 0 || tile.row_end < kBlockM;
  if constexpr (kForm == Form::kDense) looked_up = false;
  if constexpr (kForm == Form::kGated) tile.plain_end = min(tile.plain_end, tile.kept_begin);
  if (looked_up) tile.plain_end = tile.plain_begin;
  return tile;
}

}  // namespace bsfa::cuda::sm90
