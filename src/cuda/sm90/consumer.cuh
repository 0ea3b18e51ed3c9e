#pragma once

#include <cstdint>

#include "cuda/common/ptx.cuh"
#include "cuda/common/softmax.cuh"
#include "cuda/sm90/config.cuh"
#include "cuda/sm90/producer.cuh"
#include "cuda/sm90/wgmma.cuh"

// A consumer warpgroup: 64 of a tile's 128 rows.
//
// A step is a pair of neighbouring blocks, n and n - 1. The two warpgroups take turns at the tensor
// cores, whose queue holds eight products: in its turn a warpgroup starts the scores of the next
// pair and the products P V of the blocks kept of the last one, and it computes maxima and
// exponentials while the products and the other warpgroup's turn run. A block that its own 64 rows
// want is kept whatever the others say; only where they do not, does it wait for their vote. V of a
// kept block has until the next turn to arrive.

namespace bsfa::cuda::sm90 {

template <typename T, Form kForm, int kHeadDim>
struct Consumer {
  using C = Config<kHeadDim>;
  static constexpr int kOutRegisters = kHeadDim / 2;

  const Arguments& args;
  SharedStorage<kHeadDim>& shared;
  const int group;  // which 64 rows

  float out[kOutRegisters];
  std::uint32_t p_upper[16], p_lower[16];  // probabilities of the last pair
  RunningSoftmax softmax;
  Kept kept;                         // what p_upper and p_lower hold
  float max_upper[2], max_lower[2];  // row maxima of the pair that is looked at
  RingPosition<2> q_ring;
  RingPosition<C::kStagesK> k_ring;
  RingPosition<C::kStagesV> v_ring;
  RingPosition<C::kStagesV> v_done;
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

  // Starts S = Q K^T of the next pair of the ring: s[0 .. 31] of its lower block, s[32 .. 63] of
  // the upper.
  __device__ __forceinline__ void issue_scores(float (&s)[64]) {
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
                      keys + ((k / 4 * kPairN * 128 + inside) >> 4), k > 0);
    }
    wgmma_commit();
  }

  __device__ __forceinline__ void release_keys() {
    if (leader()) mbarrier_arrive(&shared.k_empty[k_ring.stage]);
    k_ring.advance();
  }

  // Starts out += P V with the next V of the ring.
  __device__ __forceinline__ void issue_values(std::uint32_t (&p)[16]) {
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
    v_ring.advance();
  }

  // All products of the last pair as one group, and the end of the turn; then waits until only that
  // group is in flight.
  __device__ __forceinline__ void issue_products() {
    if (kept.upper && kept.lower) {
      issue_values(p_upper);
      issue_values(p_lower);
      wgmma_commit();
      give_turn();
      wgmma_wait<1>();
    } else if (kept.upper) {
      issue_values(p_upper);
      wgmma_commit();
      give_turn();
      wgmma_wait<1>();
    } else if (kept.lower) {
      issue_values(p_lower);
      wgmma_commit();
      give_turn();
      wgmma_wait<1>();
    } else {
      give_turn();
      wgmma_wait<0>();
    }
  }

  __device__ __forceinline__ void release_values() {
    const int count = (kept.upper ? 1 : 0) + (kept.lower ? 1 : 0);
    for (int i = 0; i < count; ++i) {
      if (leader()) mbarrier_arrive(&shared.v_empty[v_done.stage]);
      v_done.advance();
    }
  }

  // The right to issue products goes back and forth between the warpgroups.
  __device__ __forceinline__ void take_turn() const {
    barrier_sync(kBarrierTurn + group, kConsumerThreads);
  }
  __device__ __forceinline__ void give_turn() const {
    barrier_arrive(kBarrierTurn + (group ^ 1), kConsumerThreads);
  }

  __device__ __forceinline__ void mask(float* s, int n) const {
    if (n < full_begin || n >= full_end) {
      const int shift = n * kBlockN;
      mask_scores(s, {{columns.low[0] - shift, columns.low[1] - shift},
                      {columns.high[0] - shift, columns.high[1] - shift}});
    }
  }

  // The largest of a block's scores in this thread's rows, as far as they are present.
  __device__ __forceinline__ float largest(const float (&row_maximum)[2]) const {
    return max_nan(present[0] ? row_maximum[0] : -INFINITY,
                   present[1] ? row_maximum[1] : -INFINITY);
  }

  __device__ __forceinline__ void cast_ballot(int upper, int lower) {
    if (leader()) {
      mbarrier_wait(&shared.ballot_empty[cast_ring.stage], cast_ring.phase ^ 1);
      shared.ballot[cast_ring.stage][threadIdx.x / 32 - 4] = make_int2(upper, lower);
      mbarrier_arrive(&shared.ballot_full[cast_ring.stage]);
    }
    __syncwarp();
    cast_ring.advance();
  }

  // Masks the finished scores of blocks n and n - 1, finds their row maxima, and says which of the
  // two are kept. All 128 rows have a say in that.
  __device__ __forceinline__ Kept examine(float (&s)[64], int n) {
    const bool pair = n > n_begin;
    if (n >= full_end || n - 1 < full_begin) {
      mask(s + 32, n);
      mask(s, n - 1);
    }
    row_maxima(s + 32, max_upper);
    row_maxima(s, max_lower);
    if constexpr (kForm == Form::kDense) {
      return {true, pair};
    } else if constexpr (kForm == Form::kCalibrating) {
      cast_ballot(__reduce_max_sync(0xffffffffu, ordered_bits(largest(max_upper))),
                  __reduce_max_sync(0xffffffffu, ordered_bits(largest(max_lower))));
      return {true, pair};
    } else {
      const auto always = [&](int block) { return block >= kept_begin && block < kept_end; };
      const bool upper =
          __any_sync(0xffffffffu, keep_block(largest(max_upper), threshold, always(n)));
      const bool lower =
          __any_sync(0xffffffffu, pair && keep_block(largest(max_lower), threshold, always(n - 1)));
      cast_ballot(upper, lower);
      Kept result{upper, lower};
      if (upper && (lower || !pair)) {
        if (leader()) mbarrier_arrive(&shared.ballot_empty[read_ring.stage]);
      } else {
        result = read_ballots(shared, read_ring);
      }
      read_ring.advance();
      return result;
    }
  }

  // Turns the scores of the kept blocks into probabilities, when the products of the last pair are
  // done with the old ones.
  __device__ __forceinline__ void settle(float (&s)[64], Kept now) {
    float factor[2];
    bool rescale = false;
    if (now.upper || now.lower) {
      float row_maximum[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        row_maximum[i] =
            max_nan(now.upper ? max_upper[i] : -INFINITY, now.lower ? max_lower[i] : -INFINITY);
      }
      rescale = softmax.must_follow(row_maximum, slack);
      if (rescale) softmax.follow(row_maximum, args.params.scale_log2, factor);
      if (now.upper) softmax.exponentiate(s + 32, args.params.scale_log2);
      if (now.lower) softmax.exponentiate(s, args.params.scale_log2);
    }
    wgmma_wait<0>();
    pin_registers(out);
    release_values();
    kept = now;
    if (rescale) {
#pragma unroll
      for (int i = 0; i < kOutRegisters; ++i) out[i] *= factor[i / 2 % 2];
    }
    if (now.upper) {
#pragma unroll
      for (int i = 0; i < 16; ++i) p_upper[i] = pack<T>(s[32 + 2 * i], s[33 + 2 * i]);
    }
    if (now.lower) {
#pragma unroll
      for (int i = 0; i < 16; ++i) p_lower[i] = pack<T>(s[2 * i], s[2 * i + 1]);
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
    kept = {false, false};
    float s[64];
    for (int n = n_end - 1; n >= n_begin; n -= 2) {
      take_turn();
      issue_scores(s);
      issue_products();
      pin_registers(s);
      release_keys();
      settle(s, examine(s, n));
    }
    if (leader()) mbarrier_arrive(&shared.q_empty[q_ring.stage]);
    if (kept.upper) {
      issue_values(p_upper);
      wgmma_commit();
    }
    if (kept.lower) {
      issue_values(p_lower);
      wgmma_commit();
    }
    wgmma_wait<0>();
    pin_registers(out);
    release_values();
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
