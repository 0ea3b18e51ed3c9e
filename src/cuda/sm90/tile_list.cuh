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
  const Span<int> whole =
      whole_blocks<kBlockN>(tile.key, kBlockM, tile.seqlen_k, sequences.causal, window);
  return {max(0, whole.begin), whole.end};
}

// Query blocks of a sequence, of which no more are worked on than max_seqlen_q leaves room for; the
// q_block of its tiles is below that.
__device__ inline int query_blocks(const KernelParams& p, int sequence) {
  return sequence_q_blocks(p.sequences, p, sequence);
}

// How many of the tiles that exist stand before one in the order of tile_at. Looks at all
// sequences.
__device__ inline int tiles_before(const KernelParams& p, const Tile& tile) {
  return bsfa::tiles_before(p.sequences, p, tile);
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
