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

// Blocks of a tile that all rows see whole.
__device__ inline BlockRange full_blocks(const SequenceLayout& sequences, const Tile& tile) {
  const int window = static_cast<int>(sequences.window);
  const int low = window > 0 ? tile.key + kBlockM - window : 0;  // of the last row
  const int high = sequences.causal ? min(tile.seqlen_k, tile.key + 1) : tile.seqlen_k;
  return {max(0, (low + kBlockN - 1) >> 6), high >> 6};
}

template <Form kForm>
__device__ inline ListedTile listed_tile(const KernelParams& p, int index) {
  ListedTile tile;
  static_cast<Tile&>(tile) = tile_at<kForm == Form::kGated>(p, index);
  if (tile.sequence < 0) {  // no rows: nothing to compute, nothing to write
    tile.sequence = 0;
    tile.n_begin = tile.n_end = tile.row_begin = tile.row_end = 0;
    return tile;
  }
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
