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

  RingPosition<2> tile_ring;  // of the next tile
  RingPosition<C::kStagesK> k_ring;
  RingPosition<C::kStagesV> v_ring;
  std::uint32_t q_phase = 1;

  // Hands out the next tile, or the end; false at the end.
  __device__ __forceinline__ bool publish(int index) {
    const int slot = tile_ring.stage;
    mbarrier_wait(&state.tile_empty[slot], tile_ring.phase ^ 1);
    Base::hand_out(index, slot);
    mbarrier_wait(&state.tile_full[slot], tile_ring.phase);
    tile_ring.advance();
    return state.tile[slot].sequence >= 0;
  }

  // Loads what belongs to the step of block n.
  __device__ __forceinline__ void load(const Tile& tile, int n) {
    if (n >= tile.n_begin) {
      mbarrier_wait(&state.k_empty[k_ring.stage], k_ring.phase ^ 1);
      Base::load_keys(Base::origin(tile), n, k_ring.stage);
      k_ring.advance();
    }
    if (n == max(tile.n_end - kLag, tile.n_begin)) {
      mbarrier_wait(&state.q_empty, q_phase);
      q_phase ^= 1;
      Base::load_queries(tile);
    }
    if (!C::kGated && n + kLag < tile.n_end) {
      mbarrier_wait(&state.v_empty[v_ring.stage], v_ring.phase ^ 1);
      Base::load_values(Base::origin(tile), n + kLag, v_ring.stage);
      v_ring.advance();
    }
  }

  __device__ __forceinline__ void run(int first_index) {
    const Tile* tile = nullptr;  // read from there: a producer has few registers
    int n = 0;
    for (int index = first_index;; index = Base::kDrawn) {
      const Tile* const next = &state.tile[tile_ring.stage];
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
