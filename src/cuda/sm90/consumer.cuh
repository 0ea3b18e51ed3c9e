#pragma once

#include <cstdint>

#include "core/gate.hpp"
#include "cuda/common/ptx.cuh"
#include "cuda/common/softmax.cuh"
#include "cuda/sm90/config.cuh"
#include "cuda/sm90/wgmma.cuh"

// A consumer warpgroup: all 128 rows of a tile, as two halves of 64.
//
// Everything that a gate decision needs is in one warpgroup, so a vote is one barrier of 128
// threads, and nothing waits for another warpgroup. Each chain of scores, vote, exponentials and
// P V is serial; the tensor cores are kept busy by the other streams of the multiprocessor, which
// are elsewhere in their own.

namespace bsfa::cuda::sm90 {

// Floats as integers of the same order (NaN above all), so that a maximum is an integer one.
__device__ __forceinline__ int ordered_bits(float value) {
  const int bits = __float_as_int(value);
  return bits ^ ((bits >> 31) & 0x7fffffff);
}

__device__ __forceinline__ float from_ordered_bits(int bits) {
  return __int_as_float(bits ^ ((bits >> 31) & 0x7fffffff));
}

// Zeroes the rows of a V block from `rows` on: zero probabilities times anything must be zero. For
// all threads of a warpgroup; ordered before its later products. Rare, so kept out of the loop.
template <int kHeadDim>
__device__ __forceinline__ void zero_value_rows(std::uint8_t* block, int rows, int barrier) {
  const int vectors = (kBlockN - rows) * 8;
  for (int chunk = 0; chunk < Config<kHeadDim>::kChunks; ++chunk) {
    uint4* base = reinterpret_cast<uint4*>(block + (chunk * kBlockN + rows) * 128);
    for (int i = threadIdx.x % kWarpgroup; i < vectors; i += kWarpgroup) {
      base[i] = make_uint4(0, 0, 0, 0);
    }
  }
  fence_async_proxy();
  barrier_sync(barrier, kWarpgroup);
}

template <typename T, Form kForm, int kHeadDim>
struct Consumer {
  using C = Config<kHeadDim>;
  static constexpr int kHalves = 2;
  static constexpr int kOutRegisters = kHeadDim / 2;
  // Whether the next block's keys are waited for, and their address made, while the scores of the
  // last are computed. That shortens the way from a vote to the next products; without a vote the
  // registers that it takes cost more.
  static constexpr bool kAhead = kForm == Form::kGated;
  // Whether the first half's scores are voted on while the second half's are computed: a block that
  // they keep needs no vote after. With three streams a second vote costs more than it saves.
  static constexpr bool kVotesTwice = kForm == Form::kGated && kHeadDim == 128;

  const Arguments& args;
  Stream<kHeadDim>& data;
  StreamState<kHeadDim>& state;
  const int stream;

  float out[kHalves][kOutRegisters];
  float s[kHalves][32];  // scores of a block
  RunningSoftmax softmax[kHalves];
  float maximum[kHalves][2];  // of the rows of s
  RingPosition<C::kStagesK> k_ring;
  RingPosition<C::kStagesV> v_ring;
  // kAhead: shared memory of Q and of the next keys, uniform.
  std::uint32_t queries;
  std::uint32_t keys;
  bool keys_there = false;  // known of the next keys
  std::uint32_t q_phase = 0;
  int tile_slot = 0;
  std::uint32_t tile_phase = 0;
  int parity = 0;  // of the slots of block maxima

  // Of the tile.
  int n_begin, n_end;
  // Blocks that all rows see whole and that nothing is to be looked up for: all rows are present,
  // no mask of the decisions is written, and none of these blocks is always kept.
  int plain_begin, plain_end;
  float threshold;
  int kept_blocks;
  bool decided;         // that the block is kept, by its first half's scores
  float* max_row;       // block maxima of the tile
  float block_largest;  // of this thread's scores of the block, where block maxima are asked for

  __device__ __forceinline__ int thread() const { return threadIdx.x % kWarpgroup; }
  __device__ __forceinline__ bool leader() const { return threadIdx.x % 32 == 0; }
  // This thread's first row of a half; the other is 8 below.
  __device__ __forceinline__ int first_row(int half) const {
    return half * 64 + thread() / 32 * 16 + threadIdx.x % 32 / 4;
  }
  __device__ __forceinline__ bool present(const Tile& tile, int row) const {
    return row >= tile.row_begin && row < tile.row_end;
  }

  __device__ __forceinline__ void wait_keys() {
    if (!keys_there) mbarrier_wait(&state.k_full[k_ring.stage], k_ring.phase);
    if constexpr (kAhead) keys = uniform(shared_address(data.k[k_ring.stage]));
  }

  // Starts S = Q K^T of a half and the next block of the ring.
  __device__ __forceinline__ void issue_scores(int half) {
    const Operand a((kAhead ? queries : shared_address(data.q)) + half * (64 * 128), 0);
    const Operand b(kAhead ? keys : shared_address(data.k[k_ring.stage]), 0);
    wgmma_fence();
    wgmma_shared<T, true>(s[half], a.at(0), b.at(0));
#pragma unroll
    for (int k = 1; k < kHeadDim / 16; ++k) {
      const int inside = k % 4 * 32;
      wgmma_shared<T, false>(s[half], a.at(k / 4 * kBlockM * 128 + inside),
                             b.at(k / 4 * kBlockN * 128 + inside));
    }
    wgmma_commit();
  }

  __device__ __forceinline__ bool is_plain(int n) const {
    return n >= plain_begin && n < plain_end;
  }

  // Waits for the scores of block n half by half, and finds the maxima of their rows.
  __device__ __forceinline__ void receive_scores(int n) {
    const bool last = n == n_begin;
    const int stage = k_ring.stage;
    if constexpr (kAhead) {
      k_ring.advance();
      if (!last) wait_keys();
    }
    wgmma_wait<1>();
    pin_registers(s[0]);
    row_maxima(s[0], maximum[0]);
    if constexpr (kVotesTwice) {
      decided = vote(is_plain(n) && above_threshold(largest(0), threshold));
    }
    wgmma_wait<0>();
    pin_registers(s[1]);
    if (leader()) {
      mbarrier_arrive(&state.k_empty[stage]);
      if (last) mbarrier_arrive(&state.q_empty);
    }
    if constexpr (!kAhead) {
      k_ring.advance();
      keys_there = mbarrier_test(&state.k_full[k_ring.stage], k_ring.phase);
    }
    row_maxima(s[1], maximum[1]);
  }

  __device__ __forceinline__ void compute_scores(int n) {
    if constexpr (!kAhead) wait_keys();
    issue_scores(0);
    issue_scores(1);
    receive_scores(n);
  }

  // Of a block that not all rows see whole: what a row does not see becomes -inf.
  __device__ __forceinline__ void mask(int n) {
#pragma unroll
    for (int half = 0; half < kHalves; ++half) {
      mask(half, n);
      row_maxima(s[half], maximum[half]);
    }
  }

  __device__ __forceinline__ void mask(int half, int n) {
    const Tile& tile = state.tile[tile_slot];
    const SequenceLayout& sequences = args.params.sequences;
    const int window = static_cast<int>(sequences.window);
    VisibleColumns columns;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int position = tile.key + first_row(half) + 8 * i;
      const int origin = n * kBlockN + threadIdx.x % 4 * 2;
      columns.low[i] = (window > 0 ? position - window + 1 : 0) - origin;
      columns.high[i] =
          (sequences.causal ? min(tile.seqlen_k, position + 1) : tile.seqlen_k) - origin;
    }
    mask_scores(s[half], columns);
  }

  // The largest of the block's scores in this thread's rows.
  __device__ __forceinline__ float largest(int half) const {
    return max_nan(maximum[half][0], maximum[half][1]);
  }
  __device__ __forceinline__ float largest() const { return max_nan(largest(0), largest(1)); }

  // The same of a tile that has rows which are not present.
  __device__ __forceinline__ float largest_present() const {
    const Tile& tile = state.tile[tile_slot];
    float result = -INFINITY;
#pragma unroll
    for (int half = 0; half < kHalves; ++half) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        if (present(tile, first_row(half) + 8 * i)) result = max_nan(result, maximum[half][i]);
      }
    }
    return result;
  }

  // Whether block n is kept: a vote of all rows. V of a block that is kept is asked for at once.
  __device__ __forceinline__ bool decide(int n) {
    const bool plain = is_plain(n);
    if constexpr (kForm == Form::kGated) {
      bool kept = kVotesTwice && decided;
      if (kept) {
        // By the first half's scores already.
      } else if (plain) {
        kept = vote(above_threshold(kVotesTwice ? largest(1) : largest(), threshold));
      } else {
        const Tile& tile = state.tile[tile_slot];
        const BlockRange full = full_blocks(tile);
        if (!full.contains(n)) mask(n);
        const bool always = n >= tile.kept_begin && n < tile.kept_end;
        kept = vote(keep_block(largest_present(), threshold, always));
        if (args.params.kept_mask != nullptr && thread() == 0) write_decision(tile, n, kept);
      }
      if (kept) {
        ++kept_blocks;
        if (thread() == 0) request_values(n);
      }
      return kept;
    } else {
      if (!plain) mask(n);
      if constexpr (kForm == Form::kCalibrating) {
        block_largest = plain ? largest() : largest_present();
      }
      // Always true, which the compiler must not know: with one path through the loop it fails to
      // give scores and probabilities the same registers, and serialises all products.
      int kept;
      asm volatile("{ .reg .pred p; setp.ne.s32 p, %1, -1; selp.s32 %0, 1, 0, p; }"
                   : "=r"(kept)
                   : "r"(n));
      return kept != 0;
    }
  }

  __device__ __forceinline__ bool vote(bool mine) const {
    return barrier_any(1 + stream, kWarpgroup, mine);
  }

  __device__ __forceinline__ void request_values(int n) {
    const Tile& tile = state.tile[tile_slot];
    mbarrier_arrive_expect(&state.v_full[v_ring.stage], C::kBlockBytes);
    copy_box(data.v[v_ring.stage], &args.v, &state.v_full[v_ring.stage], 0,
             tile.k_row + n * kBlockN, 0, tile.kv_head, tile.batch);
  }

  __device__ __forceinline__ void write_decision(const Tile& tile, int n, bool kept) {
    const KernelParams& p = args.params;
    p.kept_mask[tile.sequence * p.mask_stride[0] + tile.head * p.mask_stride[1] +
                tile.q_block * p.mask_stride[2] + n * p.mask_stride[3]] = kept ? 1 : 0;
  }

  // Notes the largest score of block n, and writes those of the last blocks where kMaxima of them,
  // or all that the tile has, are there.
  __device__ __forceinline__ void note_block_maximum(int n) {
    const int of_warp = __reduce_max_sync(0xffffffffu, ordered_bits(block_largest));
    const int slot = n % kMaxima;
    if (leader()) state.block_max[parity][slot][thread() / 32] = of_warp;
    if (slot != 0 && n != n_begin) return;
    barrier_sync(1 + stream, kWarpgroup);
    const int block = n - slot + thread();
    if (thread() >= slot && thread() < kMaxima && block < n_end) {
      const int4 all = *reinterpret_cast<const int4*>(state.block_max[parity][thread()]);
      const int best = max(max(all.x, all.y), max(all.z, all.w));
      max_row[block * args.params.max_stride[3]] =
          from_ordered_bits(best) * args.params.softmax_scale;
    }
    parity ^= 1;
  }

  // Moves the references of the softmax where the maxima have outgrown them.
  __device__ __forceinline__ void follow_maxima() {
    bool grown = false;
#pragma unroll
    for (int half = 0; half < kHalves; ++half) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        grown = grown || maximum[half][i] > softmax[half].reference[i] + args.params.slack;
      }
    }
    if (__any_sync(0xffffffffu, grown)) {
#pragma unroll
      for (int half = 0; half < kHalves; ++half) {
        float factor[2];
        softmax[half].follow(maximum[half], args.params.scale_log2, factor);
#pragma unroll
        for (int i = 0; i < kOutRegisters; ++i) out[half][i] *= factor[i / 2 % 2];
      }
    }
  }

  __device__ __forceinline__ void exponentiate(int half) {
    softmax[half].exponentiate(s[half], args.params.scale_log2);
#pragma unroll
    for (int i = 0; i < 16; ++i)
      s[half][i] = __uint_as_float(pack<T>(s[half][2 * i], s[half][2 * i + 1]));
  }

  // Waits for V of block n, the next of the ring.
  __device__ __forceinline__ void wait_values(int n) {
    mbarrier_wait(&state.v_full[v_ring.stage], v_ring.phase);
    if (args.params.zero_value_tail) {
      const int rows = state.tile[tile_slot].seqlen_k - n * kBlockN;
      if (rows < kBlockN) zero_value_rows<kHeadDim>(data.v[v_ring.stage], rows, 1 + stream);
    }
  }

  // Starts out += P V of a half.
  __device__ __forceinline__ void issue_values(int half) {
    const Operand values(shared_address(data.v[v_ring.stage]), kBlockN * 128);
    pin_registers(out[half]);
    pin_registers(s[half]);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < kBlockN / 16; ++k) {
      wgmma<T>(out[half], &s[half][4 * k], values.at(k * 16 * 128));
    }
    wgmma_commit();
  }

  __device__ __forceinline__ void release_values() {
    if constexpr (kForm != Form::kGated) {
      if (leader()) mbarrier_arrive(&state.v_empty[v_ring.stage]);
    }
    v_ring.advance();
  }

  // Adds block n, whose scores are in s, to the output; leaves with those of block n - 1 in s.
  //
  // The first half's P V runs beside the second half's exponentials. Probabilities and scores share
  // registers: a half's scores start when its probabilities are no longer read; the other half's
  // products keep the tensor cores busy meanwhile.
  __device__ __forceinline__ void attend(int n) {
    follow_maxima();
    exponentiate(0);
    wait_values(n);
    issue_values(0);
    if constexpr (kForm == Form::kCalibrating) note_block_maximum(n);
    exponentiate(1);
    if (n > n_begin) {
      if constexpr (!kAhead) wait_keys();
      issue_values(1);
      wgmma_wait<1>();
      receive_values(0);
      issue_scores(0);
      wgmma_wait<1>();
      receive_values(1);
      release_values();
      issue_scores(1);
      receive_scores(n - 1);
    } else {
      issue_values(1);
      wgmma_wait<0>();
      receive_values(0);
      receive_values(1);
      release_values();
    }
  }

  __device__ __forceinline__ void receive_values(int half) {
    pin_registers(s[half]);
    pin_registers(out[half]);
  }

  // Blocks that all rows see whole.
  __device__ __forceinline__ BlockRange full_blocks(const Tile& tile) const {
    const SequenceLayout& sequences = args.params.sequences;
    const int window = static_cast<int>(sequences.window);
    const int low = window > 0 ? tile.key + kBlockM - window : 0;  // of the last row
    const int high = sequences.causal ? min(tile.seqlen_k, tile.key + 1) : tile.seqlen_k;
    return {max(0, (low + kBlockN - 1) >> 6), high >> 6};
  }

  __device__ __forceinline__ void set_tile(const Tile& tile) {
    n_begin = __shfl_sync(0xffffffffu, tile.n_begin, 0);
    n_end = __shfl_sync(0xffffffffu, tile.n_end, 0);
    threshold = tile.threshold;
    kept_blocks = 0;
    const BlockRange full = full_blocks(tile);
    plain_begin = static_cast<int>(full.begin);
    plain_end = static_cast<int>(full.end);
    if constexpr (kForm != Form::kDense) {
      if (tile.row_begin > 0 || tile.row_end < kBlockM) plain_end = plain_begin;
    }
    if constexpr (kForm == Form::kCalibrating) {
      const KernelParams& p = args.params;
      max_row = p.block_max + tile.sequence * p.max_stride[0] + tile.head * p.max_stride[1] +
                tile.q_block * p.max_stride[2];
    }
    if constexpr (kForm == Form::kGated) {
      plain_end = min(plain_end, tile.kept_begin);
      if (args.params.kept_mask != nullptr) plain_end = plain_begin;
    }
#pragma unroll
    for (int half = 0; half < kHalves; ++half) {
      softmax[half] = {};
#pragma unroll
      for (int i = 0; i < kOutRegisters; ++i) out[half][i] = 0;
    }
  }

  __device__ __forceinline__ void attend_tile() {
    mbarrier_wait(&state.q_full, q_phase);
    q_phase ^= 1;
    if constexpr (kAhead) wait_keys();
    compute_scores(n_end - 1);
    for (int n = n_end - 1; n >= n_begin; --n) {
      if (decide(n)) {
        attend(n);
      } else if (n > n_begin) {
        compute_scores(n - 1);
      }
    }
    if constexpr (kForm == Form::kGated) {
      const KernelParams& p = args.params;
      if (p.kept_blocks != nullptr && thread() == 0 && kept_blocks > 0) {
        const Tile& tile = state.tile[tile_slot];
        atomicAdd(
            reinterpret_cast<unsigned long long*>(
                &p.kept_blocks[tile.sequence * p.kept_stride[0] + tile.head * p.kept_stride[1]]),
            static_cast<unsigned long long>(kept_blocks));
      }
    }
  }

  // Four columns pairs of four lanes, transposed, so that a lane has 16 bytes that lie together.
  static __device__ __forceinline__ uint4 gather_columns(std::uint32_t a, std::uint32_t b,
                                                         std::uint32_t c, std::uint32_t d) {
    const int lane = threadIdx.x % 4;
    const auto exchange = [&](std::uint32_t& low, std::uint32_t& high, int mask) {
      const bool upper = (lane & mask) != 0;
      const std::uint32_t got = __shfl_xor_sync(0xffffffffu, upper ? low : high, mask);
      (upper ? low : high) = got;
    };
    exchange(a, b, 1);
    exchange(c, d, 1);
    exchange(a, c, 2);
    exchange(b, d, 2);
    return make_uint4(a, b, c, d);
  }

  // Normalises and writes the rows that are present.
  __device__ __forceinline__ void store(const Tile& tile) {
    const KernelParams& p = args.params;
    T* const target = static_cast<T*>(p.out) + tile.batch * p.out_stride[0] +
                      tile.head * p.out_stride[2] + threadIdx.x % 4 * 8;
#pragma unroll
    for (int half = 0; half < kHalves; ++half) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int row = first_row(half) + 8 * i;
        const bool stored = present(tile, row);
        float sum = quad_sum(softmax[half].sum[i]);
        const bool seen = softmax[half].reference[i] != -INFINITY;
        float reference = seen ? softmax[half].reference[i] * p.softmax_scale : -INFINITY;
        if (p.sinks != nullptr) {
          const float sink = p.sinks[tile.head];
          if (seen) {
            sum += exp2_approx((sink - reference) * kLog2e);
          } else {
            reference = sink;
            sum = 1;
          }
        }
        const float inverse = sum == 0 ? 0.0f : 1.0f / sum;
        if (p.lse != nullptr && stored && threadIdx.x % 4 == 0) {
          p.lse[tile.batch * p.lse_stride[0] + tile.head * p.lse_stride[1] +
                (tile.q_row + row) * p.lse_stride[2]] = reference + logf(sum);
        }
#pragma unroll
        for (int k = 0; k < kHeadDim / 32; ++k) {
          const float* o = &out[half][16 * k + 2 * i];
          const uint4 columns = gather_columns(
              pack<T>(o[0] * inverse, o[1] * inverse), pack<T>(o[4] * inverse, o[5] * inverse),
              pack<T>(o[8] * inverse, o[9] * inverse), pack<T>(o[12] * inverse, o[13] * inverse));
          if (stored) {
            *reinterpret_cast<uint4*>(target + (tile.q_row + row) * p.out_stride[1] + 32 * k) =
                columns;
          }
        }
      }
    }
  }

  __device__ __forceinline__ void run() {
    queries = uniform(shared_address(data.q));
    for (;;) {
      mbarrier_wait(&state.tile_full[tile_slot], tile_phase);
      const Tile& tile = state.tile[tile_slot];
      if (tile.sequence < 0) return;
      set_tile(tile);
      if (n_end > n_begin) attend_tile();
      store(tile);
      __syncwarp();
      if (leader()) mbarrier_arrive(&state.tile_empty[tile_slot]);
      tile_phase ^= tile_slot;
      tile_slot ^= 1;
    }
  }
};

}  // namespace bsfa::cuda::sm90
