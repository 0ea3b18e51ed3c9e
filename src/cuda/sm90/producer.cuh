#pragma once

#include "cuda/common/ptx.cuh"
#include "cuda/scheduler/tile.cuh"
#include "cuda/sm90/config.cuh"

// The producer warps of a stream, one thread each: one hands out tiles and loads Q and K; the other
// loads V, except in the gated form, where the consumer asks for V when it knows that it wants it.

namespace bsfa::cuda::sm90 {

template <Form kForm, int kHeadDim>
__device__ __forceinline__ void load_queries_and_keys(const Arguments& args, Stream<kHeadDim>& data,
                                                      StreamState<kHeadDim>& state, int stream) {
  using C = Config<kHeadDim>;
  const KernelParams& p = args.params;
  const int tiles = total_tiles(p);
  int index = blockIdx.x + stream * gridDim.x;
  // The next tile that has rows.
  const auto draw = [&]() {
    Tile tile;
    tile.sequence = -1;
    while (index < tiles) {
      tile = tile_at<kForm == Form::kGated>(p, index);
      index = kStreams * gridDim.x + atomicAdd(p.tile_counter, 1);
      if (tile.sequence >= 0) break;
    }
    return tile;
  };
  int slot = 0;
  std::uint32_t tile_phase = 1;
  const auto publish = [&](const Tile& tile) {
    mbarrier_wait(&state.tile_empty[slot], tile_phase);
    state.tile[slot] = tile;
    mbarrier_arrive(&state.tile_full[slot]);
    tile_phase ^= slot;
    slot ^= 1;
  };

  RingPosition<C::kStagesK> ring;
  std::uint32_t q_phase = 1;
  for (Tile tile = draw();; tile = draw()) {
    publish(tile);
    if (tile.sequence < 0) break;
    // The first keys may be loaded before the last tile is done with its Q.
    const int n_q = max(tile.n_end - C::kStagesK, tile.n_begin);
    for (int n = tile.n_end - 1; n >= tile.n_begin; --n) {
      mbarrier_wait(&state.k_empty[ring.stage], ring.phase ^ 1);
      mbarrier_arrive_expect(&state.k_full[ring.stage], C::kBlockBytes);
      copy_box(data.k[ring.stage], &args.k, &state.k_full[ring.stage], 0, tile.k_row + n * kBlockN,
               0, tile.kv_head, tile.batch);
      ring.advance();
      if (n == n_q) {
        mbarrier_wait(&state.q_empty, q_phase);
        q_phase ^= 1;
        mbarrier_arrive_expect(&state.q_full, C::kQBytes);
        copy_box(data.q, &args.q, &state.q_full, 0, tile.q_row, 0, tile.head, tile.batch);
      }
    }
  }
}

template <int kHeadDim>
__device__ __forceinline__ void load_values(const Arguments& args, Stream<kHeadDim>& data,
                                            StreamState<kHeadDim>& state) {
  using C = Config<kHeadDim>;
  RingPosition<C::kStagesV> ring;
  int slot = 0;
  std::uint32_t phase = 0;
  for (;;) {
    mbarrier_wait(&state.tile_full[slot], phase);
    const Tile& tile = state.tile[slot];
    const int end = tile.sequence < 0 ? -1 : tile.n_end;
    const int begin = tile.n_begin;
    const int k_row = tile.k_row;
    const int kv_head = tile.kv_head;
    const int batch = tile.batch;
    mbarrier_arrive(&state.tile_empty[slot]);
    if (end < 0) return;
    phase ^= slot;
    slot ^= 1;
    for (int n = end - 1; n >= begin; --n) {
      mbarrier_wait(&state.v_empty[ring.stage], ring.phase ^ 1);
      mbarrier_arrive_expect(&state.v_full[ring.stage], C::kBlockBytes);
      copy_box(data.v[ring.stage], &args.v, &state.v_full[ring.stage], 0, k_row + n * kBlockN, 0,
               kv_head, batch);
      ring.advance();
    }
  }
}

}  // namespace bsfa::cuda::sm90
