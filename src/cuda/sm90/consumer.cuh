#pragma once

#include <cstdint>

#include "cuda/common/ptx.cuh"
#include "cuda/common/softmax.cuh"
#include "cuda/sm90/config.cuh"
#include "cuda/sm90/producer.cuh"
#include "cuda/sm90/wgmma.cuh"

// A consumer warpgroup: 64 of a tile's 128 rows.
//
// The two warpgroups take turns at the tensor cores, whose queue holds eight products: while one
// issues, the other has its exponentials to compute. In its turn a warpgroup starts the scores of
// block n - 1 and the product P V of the last kept block. It then looks at the new scores, casts
// its vote on block n - 1, and goes back to block n, on which everybody has voted by then: so the
// vote has half a step to travel, and V of a kept block more than a whole one.

namespace bsfa::cuda::sm90 {

template <typename T, Form kForm, int kHeadDim>
struct Consumer {
  using C = Config<kHeadDim>;
  static constexpr int kOutRegisters = kHeadDim / 2;

  const Arguments& args;
  SharedStorage<kHeadDim>& shared;
  const int group;  // which 64 rows

  float out[kOutRegisters];
  std::uint32_t p[16];  // probabilities of the last kept block
  RunningSoftmax softmax;
  float factor[2];   // what `out` is to be multiplied by before p joins it
  bool rescale;      // whether it is to be
  bool waiting;      // p has not joined yet
  float maximum[2];  // of the block that is looked at
  RingPosition<2> q_ring;
  RingPosition<C::kStagesK> k_ring;
  RingPosition<C::kStagesV> v_ring;
  RingPosition<kBallotSlots> cast_ring;
  RingPosition<kBallotSlots> read_ring;

  // Of the tile.
  int n_begin, n_end, kept_begin, kept_end;
  int full_begin, full_end;  // blocks that all rows of the warpgroup see whole
  float threshold;
  bool present[2];
  VisibleColumns columns;  // of block 0
  float slack;

  __device__ __forceinline__ int thread() const { return threadIdx.x % kWarpgroup; }
  __device__ __forceinline__ bool leader() const { return threadIdx.x % 32 == 0; }

  // Starts S = Q K^T of the next block of the ring.
  __device__ __forceinline__ void issue_scores(float (&s)[32]) {
    mbarrier_wait(&shared.k_full[k_ring.stage], k_ring.phase);
    const std::uint64_t queries =
        operand_descriptor(shared_address(shared.q[q_ring.stage]) + group * (64 * 128), 0, 1024);
    const std::uint64_t keys = operand_descriptor(shared_address(shared.k[k_ring.stage]), 0, 1024);
    pin_registers(s);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < kHeadDim / 16; ++k) {
      const int inside = k % 4 * 32;
      wgmma_shared<T>(s, queries + ((k / 4 * kBlockM * 128 + inside) >> 4),
                      keys + ((k / 4 * kBlockN * 128 + inside) >> 4), k > 0);
    }
    wgmma_commit();
  }

  __device__ __forceinline__ void release_keys() {
    if (leader()) mbarrier_arrive(&shared.k_empty[k_ring.stage]);
    k_ring.advance();
  }

  // Starts out += P V.
  __device__ __forceinline__ void issue_values() {
    if (rescale) {
#pragma unroll
      for (int i = 0; i < kOutRegisters; ++i) out[i] *= factor[i / 2 % 2];
    }
    mbarrier_wait(&shared.v_full[v_ring.stage], v_ring.phase);
    const std::uint64_t values =
        operand_descriptor(shared_address(shared.v[v_ring.stage]), kBlockN * 128, 1024);
    pin_registers(out);
    pin_registers(p);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < kBlockN / 16; ++k) {
      wgmma<T, true>(out, &p[4 * k], values + ((k * 16 * 128) >> 4), 1);
    }
    wgmma_commit();
  }

  __device__ __forceinline__ void release_values() {
    if (leader()) mbarrier_arrive(&shared.v_empty[v_ring.stage]);
    v_ring.advance();
  }

  // The right to issue products goes back and forth between the warpgroups.
  __device__ __forceinline__ void take_turn() const {
    barrier_sync(kBarrierTurn + group, kConsumerThreads);
  }
  __device__ __forceinline__ void give_turn() const {
    barrier_arrive(kBarrierTurn + (group ^ 1), kConsumerThreads);
  }

  // Masks the finished scores of block n, finds their row maxima, and casts the warp's ballot: in
  // the gated form whether it wants the block kept, in the calibrating form its maximum.
  __device__ __forceinline__ void examine(float (&s)[32], int n) {
    if (n < full_begin || n >= full_end) {
      const int shift = n * kBlockN;
      mask_scores(s, {{columns.low[0] - shift, columns.low[1] - shift},
                      {columns.high[0] - shift, columns.high[1] - shift}});
    }
    row_maxima(s, maximum);
    if constexpr (kForm != Form::kDense) {
      const float largest =
          max_nan(present[0] ? maximum[0] : -INFINITY, present[1] ? maximum[1] : -INFINITY);
      int ballot;
      if constexpr (kForm == Form::kGated) {
        const bool always = n >= kept_begin && n < kept_end;
        ballot = __any_sync(0xffffffffu, keep_block(largest, threshold, always));
      } else {
        ballot = __reduce_max_sync(0xffffffffu, ordered_bits(largest));
      }
      if (leader()) {
        mbarrier_wait(&shared.ballot_empty[cast_ring.stage], cast_ring.phase ^ 1);
        shared.ballot[cast_ring.stage][threadIdx.x / 32 - 4] = ballot;
        mbarrier_arrive(&shared.ballot_full[cast_ring.stage]);
      }
      __syncwarp();
      cast_ring.advance();
    }
  }

  // Whether the next block to be decided is kept: all 128 rows have a say.
  __device__ __forceinline__ bool decide() {
    if constexpr (kForm == Form::kGated) {
      const bool keep = read_ballots(shared, read_ring);
      read_ring.advance();
      return keep;
    } else {
      return true;
    }
  }

  // Turns the scores of a kept block, whose row maxima are given, into probabilities.
  __device__ __forceinline__ void exponentiate(float (&s)[32], const float (&row_maximum)[2]) {
    rescale = softmax.must_follow(row_maximum, slack);
    if (rescale) softmax.follow(row_maximum, args.params.scale_log2, factor);
    softmax.exponentiate(s, args.params.scale_log2);
  }

  // The end of a block that is decided: the product in flight is done, its own waits.
  __device__ __forceinline__ void settle(const float (&s)[32], bool keep) {
    wgmma_wait<0>();
    pin_registers(out);
    if (waiting) release_values();
    waiting = keep;
    if (keep) {
#pragma unroll
      for (int i = 0; i < 16; ++i) p[i] = pack<T>(s[2 * i], s[2 * i + 1]);
    }
  }

  // Block n, whose scores are in `s`, with those of n - 1 started on the way.
  __device__ __forceinline__ void step(float (&s)[32], float (&s_next)[32], int n) {
    take_turn();
    issue_scores(s_next);
    if (waiting) {
      issue_values();
      give_turn();
      wgmma_wait<1>();
    } else {
      give_turn();
      wgmma_wait<0>();
    }
    pin_registers(s_next);
    release_keys();
    const float row_maximum[2] = {maximum[0], maximum[1]};
    examine(s_next, n - 1);
    const bool keep = decide();
    if (keep) exponentiate(s, row_maximum);
    settle(s, keep);
  }

  // The last block of a tile.
  __device__ __forceinline__ void last_step(float (&s)[32]) {
    take_turn();
    if (waiting) issue_values();
    give_turn();
    const bool keep = decide();
    if (keep) exponentiate(s, maximum);
    settle(s, keep);
    if (waiting) {
      issue_values();
      wgmma_wait<0>();
      pin_registers(out);
      release_values();
    }
  }

  __device__ __forceinline__ void set_tile(const Tile& tile) {
    n_begin = __shfl_sync(0xffffffffu, tile.n_begin, 0);
    n_end = __shfl_sync(0xffffffffu, tile.n_end, 0);
    kept_begin = tile.kept_begin;
    kept_end = tile.kept_end;
    threshold = tile.threshold;
    const KernelParams& p = args.params;
    const int window = static_cast<int>(p.sequences.window);
    const auto low = [&](int row) { return window > 0 ? tile.key + row - window + 1 : 0; };
    const auto high = [&](int row) {
      return p.sequences.causal ? min(tile.seqlen_k, tile.key + row + 1) : tile.seqlen_k;
    };
    const int first = group * 64 + thread() / 32 * 16 + threadIdx.x % 32 / 4;
    const int column = threadIdx.x % 4 * 2;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = first + 8 * i;
      present[i] = row >= tile.row_begin && row < tile.row_end;
      columns.low[i] = low(row) - column;
      columns.high[i] = high(row) - column;
    }
    full_begin = max(0, (low(group * 64 + 63) + kBlockN - 1) >> 6);
    full_end = high(group * 64) >> 6;
  }

  __device__ __forceinline__ void attend() {
#pragma unroll
    for (int i = 0; i < kOutRegisters; ++i) out[i] = 0;
    softmax = {};
    rescale = waiting = false;
    float s0[32], s1[32];
    take_turn();
    issue_scores(s0);
    give_turn();
    wgmma_wait<0>();
    pin_registers(s0);
    release_keys();
    int n = n_end - 1;
    examine(s0, n);
    while (true) {
      if (n == n_begin) {
        last_step(s0);
        break;
      }
      step(s0, s1, n--);
      if (n == n_begin) {
        last_step(s1);
        break;
      }
      step(s1, s0, n--);
    }
    if (leader()) mbarrier_arrive(&shared.q_empty[q_ring.stage]);
  }

  // Normalises and writes the rows that are present.
  __device__ __forceinline__ void store(const Tile& tile) {
    const KernelParams& p = args.params;
    const int lane = threadIdx.x % 32;
    float inverse[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float sum = quad_sum(softmax.sum[i]);
      const bool seen = softmax.reference[i] != -INFINITY;
      float reference = seen ? softmax.reference[i] * p.softmax_scale : -INFINITY;
      if (p.sinks != nullptr) {
        const float sink = p.sinks[tile.head];
        if (seen) {
          sum += exp2_approx((sink - reference) * kLog2e);
        } else {
          reference = sink;
          sum = 1;
        }
      }
      inverse[i] = sum == 0 ? 0.0f : 1.0f / sum;
      const int row = group * 64 + thread() / 32 * 16 + lane / 4 + 8 * i;
      if (p.lse != nullptr && present[i] && lane % 4 == 0) {
        p.lse[tile.batch * p.lse_stride[0] + tile.head * p.lse_stride[1] +
              (tile.q_row + row) * p.lse_stride[2]] = reference + logf(sum);
      }
    }
    // Through shared memory, so that global stores are whole lines: [row][16-byte vector], with the
    // vectors of a row permuted by the row against bank conflicts.
    constexpr int kVectors = kHeadDim / 8;
    std::uint8_t* base = shared.out + group * (64 * kHeadDim * 2);
    {
      const int row = thread() / 32 * 16 + lane % 16;
      const std::uint32_t address = shared_address(base) + row * (kHeadDim * 2);
#pragma unroll
      for (int k = 0; k < kHeadDim / 16; ++k) {
        const int vector = (2 * k + lane / 16) ^ (row % 8);
        const float* o = &out[8 * k];
        store_matrices(address + vector * 16, pack<T>(o[0] * inverse[0], o[1] * inverse[0]),
                       pack<T>(o[2] * inverse[1], o[3] * inverse[1]),
                       pack<T>(o[4] * inverse[0], o[5] * inverse[0]),
                       pack<T>(o[6] * inverse[1], o[7] * inverse[1]));
      }
    }
    barrier_sync(kBarrierStore + group, kWarpgroup);
    std::uint8_t* target = static_cast<std::uint8_t*>(p.out) +
                           2 * (tile.batch * p.out_stride[0] + tile.head * p.out_stride[2]);
#pragma unroll
    for (int i = 0; i < 64 * kVectors / kWarpgroup; ++i) {
      const int index = i * kWarpgroup + thread();
      const int row = index / kVectors;
      const int vector = index % kVectors;
      const uint4 value =
          *reinterpret_cast<const uint4*>(base + row * (kHeadDim * 2) + (vector ^ (row % 8)) * 16);
      const int tile_row = group * 64 + row;
      if (tile_row >= tile.row_begin && tile_row < tile.row_end) {
        *reinterpret_cast<uint4*>(target + 2 * (tile.q_row + tile_row) * p.out_stride[1] +
                                  vector * 16) = value;
      }
    }
    barrier_sync(kBarrierStore + group, kWarpgroup);
  }

  __device__ __forceinline__ void run() {
    if (group == 1) give_turn();
    slack = RunningSoftmax::kSlack / args.params.scale_log2;
    TileReader<kHeadDim> reader{shared};
    for (Tile tile = reader.next(); tile.sequence >= 0; tile = reader.next()) {
      set_tile(tile);
      if (n_end > n_begin) {
        mbarrier_wait(&shared.q_full[q_ring.stage], q_ring.phase);
        attend();
        q_ring.advance();
      } else {
#pragma unroll
        for (int i = 0; i < kOutRegisters; ++i) out[i] = 0;
        softmax = {};
      }
      store(tile);
    }
  }
};

}  // namespace bsfa::cuda::sm90
