#pragma once

#include "cuda/common/ptx.cuh"
#include "cuda/sm90/config.cuh"

// What is asked of the copy engine, and the drawing of tiles.
//
// All threads of a warp come here, and one of them acts: of elect.sync the compiler knows that it
// is one, and else makes a loop over the threads of every copy.

namespace bsfa::cuda::sm90 {

// Asks for a box of a tensor: `bytes`, from tensor row `row` on, of a head and batch entry.
__device__ __forceinline__ void load_box(void* target, const CUtensorMap& map, int bytes,
                                         std::uint64_t* full, int row, int head, int batch) {
  if (!elect_one()) return;
  mbarrier_arrive_expect(full, bytes);
  copy_box(target, &map, full, 0, row, 0, head, batch);
}

// Where the keys and values of a tile begin: tensor row of key 0, head, batch entry.
struct KeyOrigin {
  int row, head, batch;
};

template <typename C>
struct Loader {
  using ListedTile = typename C::Tile;
  // Blocks left when the next tile is drawn: enough to hide that, however few of them are kept.
  // Streams that draw earlier get unequal shares.
  static constexpr int kDrawAhead = 6;

  const Arguments& args;
  Stream<C>& data;
  StreamState<C>& state;

  __device__ __forceinline__ void load_queries(const Tile& tile) const {
    load_box(data.q, args.q, C::kQBytes, &state.q_full, tile.q_row, tile.head, tile.batch);
  }

  static __device__ __forceinline__ KeyOrigin origin(const Tile& tile) {
    return {tile.k_row, tile.kv_head, tile.batch};
  }

  __device__ __forceinline__ void load_keys(const KeyOrigin& from, int block, int stage) const {
    if constexpr (C::kSelected) {
      // Before the arrival at the barrier, which the readers wait for.
      if (elect_one()) state.block[stage] = block;
    }
    load_box(data.k[stage], args.k, C::kBlockBytes, &state.k_full[stage],
             from.row + block * kBlockN, from.head, from.batch);
  }

  __device__ __forceinline__ void load_values(const KeyOrigin& from, int block, int stage) const {
    load_box(data.v[stage], args.v, C::kBlockBytes, &state.v_full[stage],
             from.row + block * kBlockN, from.head, from.batch);
  }

  // In place of an index: that of the next tile.
  static constexpr int kDrawn = -1;

  // Copies the tile of this index, or the end, into a slot.
  __device__ __forceinline__ void hand_out(int index, int slot) const {
    if (!elect_one()) return;
    if (index == kDrawn) index = C::kStreams * gridDim.x + atomicAdd(args.params.tile_counter, 1);
    if (index < state.tile_count) {
      mbarrier_arrive_expect(&state.tile_full[slot], sizeof(ListedTile));
      copy_bytes(&state.tile[slot], reinterpret_cast<const ListedTile*>(args.tiles) + index,
                 sizeof(ListedTile), &state.tile_full[slot]);
    } else {
      state.tile[slot].sequence = -1;
      state.tile[slot].n_begin = state.tile[slot].n_end = 0;
      mbarrier_arrive(&state.tile_full[slot]);
    }
  }
};

}  // namespace bsfa::cuda::sm90
