#pragma once

#include "cuda/common/ptx.cuh"
#include "cuda/scheduler/tile.cuh"
#include "cuda/sm90/config.cuh"

// The producer of a stream, one thread: hands out tiles and loads Q, K and V, except that in the
// gated form the consumer asks for V when it knows that it wants it.

namespace bsfa::cuda::sm90 {

// Loads K of a block, or V, to the next stage of its ring when that is free.
template <int kBytes, int kStages>
__device__ __forceinline__ void load_block(std::uint8_t (&stages)[kStages][kBytes],
                                           std::uint64_t (&full)[kStages],
                                           std::uint64_t (&empty)[kStages],
                                           RingPosition<kStages>& ring, const CUtensorMap* map,
                                           const Tile& tile, int n) {
  mbarrier_wait(&empty[ring.stage], ring.phase ^ 1);
  mbarrier_arrive_expect(&full[ring.stage], kBytes);
  copy_box(stages[ring.stage], map, &full[ring.stage], 0, tile.k_row + n * kBlockN, 0, tile.kv_head,
           tile.batch);
  ring.advance();
}

template <Form kForm, int kHeadDim>
__device__ __forceinline__ void produce(const Arguments& args, Stream<kHeadDim>& data,
                                        StreamState<kHeadDim>& state, int stream) {
  using C = Config<kHeadDim>;
  // V follows K so many blocks later: K of the next scores is what is waited for first.
  constexpr int kLag = 2;
  // Blocks left when the next tile is drawn: enough to hide that, however few of them are kept.
  constexpr int kDrawAhead = 6;
  const KernelParams& p = args.params;
  const int tiles = total_tiles(p);
  int index = blockIdx.x + stream * gridDim.x;
  bool first = true;
  int slot = 0;
  std::uint32_t tile_phase = 1;
  // Hands out the next tile that has rows, or the end; false at the end. It is drawn when few
  // blocks of the one before are left: streams that draw earlier get unequal shares.
  const auto publish_next = [&]() {
    Tile tile;
    tile.sequence = -1;
    do {
      if (!first) index = C::kStreams * gridDim.x + atomicAdd(p.tile_counter, 1);
      first = false;
      if (index < tiles) tile = tile_at<kForm == Form::kGated>(p, index);
    } while (index < tiles && tile.sequence < 0);
    mbarrier_wait(&state.tile_empty[slot], tile_phase);
    state.tile[slot] = tile;
    mbarrier_arrive(&state.tile_full[slot]);
    tile_phase ^= slot;
    slot ^= 1;
    return tile.sequence >= 0;
  };

  RingPosition<C::kStagesK> k_ring;
  RingPosition<C::kStagesV> v_ring;
  std::uint32_t q_phase = 1;
  const Tile* tile = nullptr;  // read from there: this thread has few registers
  int n = 0;
  for (;;) {
    const Tile* const next = &state.tile[slot];
    const bool more = publish_next();
    // The last blocks of the tile under way, then the first of the next.
#pragma unroll 1
    for (int part = 0; part < 2; ++part) {
      int stop = 0;
      if (part == 0) {
        if (tile == nullptr) continue;
        stop = kForm == Form::kGated ? tile->n_begin : tile->n_begin - kLag;
      } else {
        if (!more) return;
        tile = next;
        n = tile->n_end - 1;
        stop = min(tile->n_begin + kDrawAhead, n + 1);
      }
#pragma unroll 1
      for (; n >= stop; --n) {
        if (n >= tile->n_begin) {
          load_block(data.k, state.k_full, state.k_empty, k_ring, &args.k, *tile, n);
        }
        // The first keys may be loaded before the last tile is done with its Q.
        if (n == max(tile->n_end - kLag, tile->n_begin)) {
          mbarrier_wait(&state.q_empty, q_phase);
          q_phase ^= 1;
          mbarrier_arrive_expect(&state.q_full, C::kQBytes);
          copy_box(data.q, &args.q, &state.q_full, 0, tile->q_row, 0, tile->head, tile->batch);
        }
        if (kForm != Form::kGated && n + kLag < tile->n_end) {
          load_block(data.v, state.v_full, state.v_empty, v_ring, &args.v, *tile, n + kLag);
        }
      }
    }
  }
}

}  // namespace bsfa::cuda::sm90
