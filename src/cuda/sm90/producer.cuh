#pragma once

#include "cuda/common/ptx.cuh"
#include "cuda/sm90/config.cuh"
#include "cuda/sm90/loader.cuh"

// The producer of a stream, one warp: hands out tiles and loads Q, K and V, except that where
// blocks are gated the consumer asks for V when it knows that it wants it.

namespace bsfa::cuda::sm90 {

template <typename C>
struct Producer : Loader<C> {
  using Base = Loader<C>;
  using Base::state;
  // V follows K so many blocks later, and so does Q: K of the next scores is what is waited for
  // first, and the first keys may be loaded before the last tile is done with its Q.
  static constexpr int kLag = 2;

  using ListedTile = typename C::Tile;

  RingPosition<2> tile_ring;  // of the next tile
  RingPosition<C::kStagesK> k_ring;
  RingPosition<C::kStagesV> v_ring;
  std::uint32_t q_phase = 1;
  int upcoming = 0;       // kSelected: the entry of the list after those asked for
  int recent[kLag] = {};  // kSelected: the blocks of the last steps, whose values follow

  // Hands out the next tile, or the end; false at the end.
  __device__ __forceinline__ bool publish(int index) {
    const int slot = tile_ring.stage;
    mbarrier_wait(&state.tile_empty[slot], tile_ring.phase ^ 1);
    Base::hand_out(index, slot);
    mbarrier_wait(&state.tile_full[slot], tile_ring.phase);
    tile_ring.advance();
    return state.tile[slot].sequence >= 0;
  }

  // The block of step n. kSelected: once for each step, in order.
  __device__ __forceinline__ int next_block(const ListedTile& tile, int n) {
    if constexpr (C::kSelected) {
      const int i = tile.n_end - 1 - n;
      const int block = i < ListedTile::kFirst ? tile.first[i] : checked_block(tile, upcoming);
      if (n > tile.n_begin && i + 1 >= ListedTile::kFirst) upcoming = __ldg(tile.list + i + 1);
      return block;
    } else {
      return n;
    }
  }

  // Loads what belongs to step n.
  __device__ __forceinline__ void load(const ListedTile& tile, int n) {
    int block = n;
    if (n >= tile.n_begin) {
      mbarrier_wait(&state.k_empty[k_ring.stage], k_ring.phase ^ 1);
      block = next_block(tile, n);
      Base::load_keys(Base::origin(tile), block, k_ring.stage);
      k_ring.advance();
    }
    if (n == max(tile.n_end - kLag, tile.n_begin)) {
      mbarrier_wait(&state.q_empty, q_phase);
      q_phase ^= 1;
      Base::load_queries(tile);
    }
    if (!C::kGated && n + kLag < tile.n_end) {
      mbarrier_wait(&state.v_empty[v_ring.stage], v_ring.phase ^ 1);
      Base::load_values(Base::origin(tile), C::kSelected ? recent[kLag - 1] : n + kLag,
                        v_ring.stage);
      v_ring.advance();
    }
    if constexpr (C::kSelected && !C::kGated) {
#pragma unroll
      for (int i = kLag - 1; i > 0; --i) recent[i] = recent[i - 1];
      recent[0] = block;
    }
  }

  __device__ __forceinline__ void run(int first_index) {
    const ListedTile* tile = nullptr;  // read from there: a producer has few registers
    int n = 0;
    for (int index = first_index;; index = Base::kDrawn) {
      const ListedTile* const next = &state.tile[tile_ring.stage];
      const bool more = publish(index);
      // The last blocks of the tile under way, then the first of the next: that is drawn when few
      // blocks are left.
#pragma unroll 1
      for (int part = 0; part < 2; ++part) {
        int stop = 0;
        if (part == 0) {
          if (tile == nullptr) continue;
          stop = C::kGated ? tile->n_begin : tile->n_begin - kLag;
        } else {
          if (!more) return;
          tile = next;
          n = tile->n_end - 1;
          stop = min(tile->n_begin + Base::kDrawAhead, n + 1);
        }
#pragma unroll 1
        for (; n >= stop; --n) load(*tile, n);
      }
    }
  }
};

}  // namespace bsfa::cuda::sm90
