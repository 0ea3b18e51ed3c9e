#pragma once

#include "cuda/common/ptx.cuh"
#include "cuda/scheduler/tile.cuh"
#include "cuda/sm90/config.cuh"

// The producer warpgroup: warp 0 hands out tiles and loads Q and K, warp 1 loads V, and in the
// calibrating form warp 2 writes block maxima.

namespace bsfa::cuda::sm90 {

// Reads the tiles that warp 0 hands out. Every warp but that one calls it with all lanes.
template <int kHeadDim>
struct TileReader {
  SharedStorage<kHeadDim>& shared;
  int slot = 0;
  std::uint32_t phase = 0;

  __device__ __forceinline__ Tile next() {
    mbarrier_wait(&shared.tile_full[slot], phase);
    const Tile tile = shared.tile[slot];
    __syncwarp();
    if (threadIdx.x % 32 == 0) mbarrier_arrive(&shared.tile_empty[slot]);
    phase ^= slot;
    slot ^= 1;
    return tile;
  }
};

template <Form kForm, int kHeadDim>
__device__ __forceinline__ void load_queries_and_keys(const Arguments& args,
                                                      SharedStorage<kHeadDim>& shared) {
  using C = Config<kHeadDim>;
  const KernelParams& p = args.params;
  const int tiles = total_tiles(p);
  int index = blockIdx.x;
  // The next tile that has rows.
  const auto draw = [&]() {
    Tile tile;
    tile.sequence = -1;
    while (index < tiles) {
      tile = tile_at<kForm == Form::kGated>(p, index);
      index = gridDim.x + atomicAdd(p.tile_counter, 1);
      if (tile.sequence >= 0) break;
    }
    return tile;
  };
  int slot = 0;
  std::uint32_t tile_phase = 1;
  const auto publish = [&](const Tile& tile) {
    mbarrier_wait(&shared.tile_empty[slot], tile_phase);
    shared.tile[slot] = tile;
    mbarrier_arrive(&shared.tile_full[slot]);
    tile_phase ^= slot;
    slot ^= 1;
  };

  RingPosition<C::kStagesK> ring;
  RingPosition<2> q_ring;
  Tile tile = draw();
  publish(tile);
  while (tile.sequence >= 0) {
    const int kv_head = tile.head / p.group;
    const int batch = tile.batch;
    const int k_row = tile.k_row;
    const int n_begin = tile.n_begin;
    int n = tile.n_end - 1;
    if (n >= n_begin) {
      std::uint64_t* full = &shared.q_full[q_ring.stage];
      mbarrier_wait(&shared.q_empty[q_ring.stage], q_ring.phase ^ 1);
      mbarrier_arrive_expect(full, C::kQBytes);
      copy_box(shared.q[q_ring.stage], &args.q, full, 0, tile.q_row, 0, tile.head, batch);
      q_ring.advance();
    }
    bool drawn = false;
    for (; n >= n_begin; n -= 2) {  // blocks n and n - 1
      mbarrier_wait(&shared.k_empty[ring.stage], ring.phase ^ 1);
      mbarrier_arrive_expect(&shared.k_full[ring.stage], C::kPairBytes);
      copy_box(shared.k[ring.stage], &args.k, &shared.k_full[ring.stage], 0,
               k_row + (n - 1) * kBlockN, 0, kv_head, batch);
      ring.advance();
      if (!drawn) {  // behind the first copy, so that its latency is hidden
        tile = draw();
        drawn = true;
      }
    }
    if (!drawn) tile = draw();
    publish(tile);
  }
}

struct Kept {
  bool upper, lower;  // of a pair of blocks
};

// Which blocks of the pair any warp wants kept; for all lanes of a warp.
template <int kHeadDim>
__device__ __forceinline__ Kept read_ballots(SharedStorage<kHeadDim>& shared,
                                             const RingPosition<kBallotSlots>& ring) {
  mbarrier_wait(&shared.ballot_full[ring.stage], ring.phase);
  const int2 mine = shared.ballot[ring.stage][threadIdx.x % kConsumerWarps];
  const Kept kept{__any_sync(0xffffffffu, mine.x != 0) != 0,
                  __any_sync(0xffffffffu, mine.y != 0) != 0};
  if (threadIdx.x % 32 == 0) mbarrier_arrive(&shared.ballot_empty[ring.stage]);
  return kept;
}

// Zeroes the rows of a V block from `rows` on: zero probabilities times anything must be zero.
template <int kHeadDim>
__device__ __forceinline__ void zero_value_rows(std::uint8_t* block, int rows) {
  constexpr int kChunks = Config<kHeadDim>::kChunks;
  const int vectors = (kBlockN - rows) * 8;
  for (int chunk = 0; chunk < kChunks; ++chunk) {
    uint4* base = reinterpret_cast<uint4*>(block + (chunk * kBlockN + rows) * 128);
    for (int i = threadIdx.x % 32; i < vectors; i += 32) base[i] = make_uint4(0, 0, 0, 0);
  }
  fence_async_proxy();
  __syncwarp();
}

template <Form kForm, int kHeadDim>
__device__ __forceinline__ void load_values(const Arguments& args,
                                            SharedStorage<kHeadDim>& shared) {
  using C = Config<kHeadDim>;
  const KernelParams& p = args.params;
  const bool leader = threadIdx.x % 32 == 0;
  TileReader<kHeadDim> reader{shared};
  RingPosition<C::kStagesV> ring;
  RingPosition<kBallotSlots> ballots;
  std::uint32_t landed_phase = 0;
  for (Tile tile = reader.next(); tile.sequence >= 0; tile = reader.next()) {
    const int kv_head = tile.head / p.group;
    int kept_blocks = 0;
    const auto load = [&](int n) {
      mbarrier_wait(&shared.v_empty[ring.stage], ring.phase ^ 1);
      const int rows = tile.seqlen_k - n * kBlockN;
      const bool ragged = p.zero_value_tail && rows < kBlockN;
      std::uint64_t* full = ragged ? &shared.v_landed : &shared.v_full[ring.stage];
      if (leader) {
        mbarrier_arrive_expect(full, C::kBlockBytes);
        copy_box(shared.v[ring.stage], &args.v, full, 0, tile.k_row + n * kBlockN, 0, kv_head,
                 tile.batch);
      }
      if (ragged) {
        mbarrier_wait(full, landed_phase);
        landed_phase ^= 1;
        zero_value_rows<kHeadDim>(shared.v[ring.stage], rows);
        if (leader) mbarrier_arrive(&shared.v_full[ring.stage]);
      }
      __syncwarp();
      ring.advance();
    };
    for (int n = tile.n_end - 1; n >= tile.n_begin; n -= 2) {
      Kept kept{true, n > tile.n_begin};
      if constexpr (kForm == Form::kGated) {
        kept = read_ballots(shared, ballots);
        ballots.advance();
        if (p.kept_mask != nullptr && leader) {
          std::uint8_t* row = p.kept_mask + tile.sequence * p.mask_stride[0] +
                              tile.head * p.mask_stride[1] + tile.q_block * p.mask_stride[2];
          row[n * p.mask_stride[3]] = kept.upper ? 1 : 0;
          if (n > tile.n_begin) row[(n - 1) * p.mask_stride[3]] = kept.lower ? 1 : 0;
        }
        kept_blocks += (kept.upper ? 1 : 0) + (kept.lower ? 1 : 0);
      }
      if (kept.upper) load(n);
      if (kept.lower) load(n - 1);
    }
    if constexpr (kForm == Form::kGated) {
      if (p.kept_blocks != nullptr && leader && kept_blocks > 0) {
        atomicAdd(
            reinterpret_cast<unsigned long long*>(
                &p.kept_blocks[tile.sequence * p.kept_stride[0] + tile.head * p.kept_stride[1]]),
            static_cast<unsigned long long>(kept_blocks));
      }
    }
  }
}

// Floats as integers of the same order (NaN above all), so that a maximum is an integer one.
__device__ __forceinline__ int ordered_bits(float value) {
  const int bits = __float_as_int(value);
  return bits ^ ((bits >> 31) & 0x7fffffff);
}

__device__ __forceinline__ float from_ordered_bits(int bits) {
  return __int_as_float(bits ^ ((bits >> 31) & 0x7fffffff));
}

template <int kHeadDim>
__device__ __forceinline__ void write_block_maxima(const Arguments& args,
                                                   SharedStorage<kHeadDim>& shared) {
  const KernelParams& p = args.params;
  const int lane = threadIdx.x % 32;
  TileReader<kHeadDim> reader{shared};
  RingPosition<kBallotSlots> ring;
  for (Tile tile = reader.next(); tile.sequence >= 0; tile = reader.next()) {
    float* row = p.block_max + tile.sequence * p.max_stride[0] + tile.head * p.max_stride[1] +
                 tile.q_block * p.max_stride[2];
    for (int n = tile.n_end - 1; n >= tile.n_begin; n -= 2) {
      mbarrier_wait(&shared.ballot_full[ring.stage], ring.phase);
      const int2 mine = shared.ballot[ring.stage][lane % kConsumerWarps];
      const int upper = __reduce_max_sync(0xffffffffu, mine.x);
      const int lower = __reduce_max_sync(0xffffffffu, mine.y);
      if (lane == 0) {
        row[n * p.max_stride[3]] = from_ordered_bits(upper) * p.softmax_scale;
        if (n > tile.n_begin) {
          row[(n - 1) * p.max_stride[3]] = from_ordered_bits(lower) * p.softmax_scale;
        }
        mbarrier_arrive(&shared.ballot_empty[ring.stage]);
      }
      ring.advance();
    }
  }
}

}  // namespace bsfa::cuda::sm90
