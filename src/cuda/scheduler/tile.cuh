#pragma once

#include <cstdint>

#include "core/gate.hpp"
#include "core/geometry.hpp"
#include "core/tiles.hpp"
#include "cuda/common/params.hpp"

// A tile of work: the rows of one gate query block, one head, one sequence.

namespace bsfa::cuda {

// Rows are those of the 128-row gate block, present or not; blocks are local to the sequence: block
// n holds keys [64n, 64n + 64).
struct Tile {
  int sequence;     // < 0: no more work
  int head;         // query head
  int kv_head;      // its key/value head
  int q_block;      // relative to the first of the sequence: a row of the statistics
  int batch;        // batch entry of the tensors
  int q_row;        // tensor row of tile row 0; rows that are not present may lie outside
  int k_row;        // tensor row of key 0
  int seqlen_k;     //
  int row_begin;    // tile rows [row_begin, row_end) are present
  int row_end;      //
  int key;          // the key at the position of tile row 0; may be negative
  int n_begin;      // blocks [n_begin, n_end) are computed
  int n_end;        //
  int kept_begin;   // blocks [kept_begin, kept_end) are always kept
  int kept_end;     //
  float threshold;  // of scores before softmax_scale
};

__host__ __device__ inline int total_tiles(const KernelParams& p) {
  return total_tiles(p.sequences, p);
}

// The tile of a query block, or sequence < 0 if that has no rows.
template <bool kGated>
__device__ inline Tile tile_of(const KernelParams& p, const TilePlace& place) {
  Tile t;
  t.sequence = place.sequence;
  t.head = place.head;
  t.kv_head = place.kv_head;
  t.q_block = place.q_block;
  const BlockShape block = p.sequences.block;
  const Sequence s = sequence_at(p.sequences, t.sequence);
  const std::int64_t i = floor_div(s.q_offset, block.q) + t.q_block;
  const BlockRange rows = q_block_rows(s, i, block);
  if (rows.size() == 0) {
    t.sequence = -1;
    return t;
  }
  const std::int64_t row0 = i * block.q - s.q_offset;
  const std::int64_t kv_base = p.sequences.kv_offset / block.kv;
  BlockRange blocks = visible_blocks(p.sequences, s, i);
  const BlockRange kept = always_kept_range(i, block);
  if (p.window_blocks >= 0) {
    blocks = intersect(blocks, sliding_window_range(i, p.window_blocks, block));
  }
  t.batch = static_cast<int>(s.batch);
  t.q_row = static_cast<int>(s.q_begin + row0);
  t.k_row = static_cast<int>(s.k_begin);
  t.seqlen_k = static_cast<int>(s.seqlen_k);
  t.row_begin = static_cast<int>(rows.begin - row0);
  t.row_end = static_cast<int>(rows.end - row0);
  t.key = static_cast<int>(i * block.q - p.sequences.kv_offset);
  t.n_begin = static_cast<int>(blocks.begin - kv_base);
  t.n_end = t.n_begin + static_cast<int>(blocks.size());
  t.kept_begin = static_cast<int>(kept.begin - kv_base);
  t.kept_end = static_cast<int>(kept.end - kv_base);
  if constexpr (kGated) {
    const std::int64_t column = threshold_index(i, p.threshold_blocks);
    t.threshold =
        p.thresholds[t.sequence * p.threshold_stride[0] + t.head * p.threshold_stride[1] + column] /
        p.softmax_scale;
  } else {
    t.threshold = 0;
  }
  return t;
}

// Tile `index` of the launch, in the order of tile_place.
template <bool kGated>
__device__ inline Tile tile_at(const KernelParams& p, int index) {
  return tile_of<kGated>(p, tile_place(p.sequences, p, index));
}

}  // namespace bsfa::cuda
