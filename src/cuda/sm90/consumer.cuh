#pragma once

#include <climits>
#include <cstdint>

#include "core/gate.hpp"
#include "cuda/common/ptx.cuh"
#include "cuda/common/softmax.cuh"
#include "cuda/sm90/config.cuh"
#include "cuda/sm90/loader.cuh"
#include "cuda/sm90/rows.cuh"
#include "cuda/sm90/scores.cuh"
#include "cuda/sm90/wgmma.cuh"

// A warpgroup with the rows of a tile that are its own, see Config.
//
// The chain of scores, vote, exponentials and P V of each half is serial; the tensor cores are kept
// busy by the other half and the other warpgroups of the multiprocessor, which are elsewhere in
// theirs.

namespace bsfa::cuda::sm90 {

// Zeroes the rows of a V block from `rows` on: zero probabilities times anything must be zero. For
// all threads of a stream; ordered before its later products.
template <typename C>
__device__ __forceinline__ void zero_value_rows(std::uint8_t* block, int rows, int barrier) {
  const int vectors = (kBlockN - rows) * 8;
  for (int chunk = 0; chunk < C::kChunks; ++chunk) {
    uint4* base = reinterpret_cast<uint4*>(block + (chunk * kBlockN + rows) * 128);
    for (int i = threadIdx.x % C::kStreamThreads; i < vectors; i += C::kStreamThreads) {
      base[i] = make_uint4(0, 0, 0, 0);
    }
  }
  fence_async_proxy();
  barrier_sync(barrier, C::kStreamThreads);
}

template <typename T, typename C>
struct Consumer : Loader<C> {
  using Base = Loader<C>;
  using Base::args;
  using Base::data;
  using Base::state;
  using ListedTile = typename C::Tile;
  static constexpr int kHalves = C::kHalves;
  static constexpr int kLast = kHalves - 1;
  static constexpr bool kGated = C::kGated;
  static constexpr bool kCalibrating = C::kForm == Form::kCalibrating;
  // Values are asked for so many blocks before they are used, where there are no producers.
  static constexpr int kValuesAhead = C::kStagesV - 1;
  // Whether the range of plain blocks is kept in registers. Else it is read again for each block.
  static constexpr bool kPlainKept = C::kForm == Form::kDense && !C::kProducers;
  // Whether the place of the values is: what is read after the vote delays them.
  static constexpr bool kOriginKept = kGated && C::kHeadDim == 128;
  static constexpr int kOutRegisters = C::kHeadDim / 2;

  const int stream;
  std::uint32_t queries;  // shared memory of this warpgroup's, uniform

  float out[kHalves][kOutRegisters];
  float s[kHalves][32];  // scores of a block, then its probabilities
  int bits;              // of the largest of the scores, see positive_bits
  RunningSoftmax softmax[kHalves];
  float limit;  // scores up to it need no other references of the softmax; kCalibrating: the warp's
  bool outgrown;  // any_outgrown() of the block, where it is known before follow_maxima()
  RingPosition<C::kStagesK> k_ring;
  RingPosition<C::kStagesV> v_ring;
  bool loads;          // whether this is the first warp of the stream
  bool takes_turns;    // whether it is the one that does so for the stream
  int next_keys;       // negative: not known to be there; else kept_above, if blocks are gated
  std::uint32_t keys;  // shared memory of the next keys, uniform
  bool plain;          // of the block whose scores are in s, see ListedTile; false after the last
  RingPosition<2> tile_ring;
  std::uint32_t q_phase = 0;

  int block;       // kSelected: whose scores are in s
  int next_block;  // kSelected: whose are computed
  int upcoming;    // kSelected, loads: the entry of the list after those asked for

  // Of the tile.
  int n_begin, n_end;
  int plain_begin, plain_end;  // kPlainKept
  KeyOrigin key_origin;        // kOriginKept
  int kept_blocks;             // so far
  int kept_above = 0;          // a plain block with a score whose bits are above these is kept
  float* next_max;             // kCalibrating: where the maximum of the next block to be written is
  int warp_largest;  // kCalibrating: bits of the largest of the warp's scores, to be written

  __device__ __forceinline__ int thread() const { return threadIdx.x % C::kStreamThreads; }
  __device__ __forceinline__ bool leader() const { return threadIdx.x % 32 == 0; }
  // This thread's first row of a half; the other is 8 below.
  __device__ __forceinline__ int first_row(int half) const {
    return half * 64 + thread() / 32 * 16 + threadIdx.x % 32 / 4;
  }
  __device__ __forceinline__ const ListedTile& current_tile() const {
    return state.tile[tile_ring.stage];
  }
  __device__ __forceinline__ const ListedTile& next_tile() const {
    return state.tile[tile_ring.stage ^ 1];
  }

  // Where the next products find their operands, in a form that the compiler keeps in uniform
  // registers. That of the queries does not change; made anew, as it is, it takes one register, and
  // else all descriptors that are made of it are kept, in 16.
  __device__ __forceinline__ void locate_operands() {
    keys = uniform(shared_address(data.k[k_ring.stage]));
    queries = uniform(queries);
  }

  __device__ __forceinline__ void wait_keys() {
    if (next_keys < 0) mbarrier_wait(&state.k_full[k_ring.stage], k_ring.phase);
  }

  // Starts S = Q K^T of a half and the next block of the ring.
  __device__ __forceinline__ void issue_scores(int half) {
    const Operand a(queries + half * (64 * 128), 0);
    const Operand b(keys, 0);
    wgmma_fence();
    wgmma_shared<T, true>(s[half], a.at(0), b.at(0));
#pragma unroll
    for (int k = 1; k < C::kHeadDim / 16; ++k) {
      const int inside = k % 4 * 32;
      wgmma_shared<T, false>(s[half], a.at(k / 4 * kBlockM * 128 + inside),
                             b.at(k / 4 * kBlockN * 128 + inside));
    }
    wgmma_commit();
  }

  // In [begin, end), which may be empty, without a branch.
  static __device__ __forceinline__ bool is_within(int n, int begin, int end) {
    return ((n - begin) | (end - 1 - n)) >= 0;
  }

  // The block of step n, whose scores are in s.
  __device__ __forceinline__ int block_of(int n) const { return C::kSelected ? block : n; }

  // Waits for the scores of block n half by half, and finds the largest.
  __device__ __forceinline__ void receive_scores(int n) {
    const int stage = k_ring.stage;
    if constexpr (C::kSelected) block = next_block;
    if constexpr (kPlainKept) {
      plain = is_within(block_of(n), plain_begin, plain_end);
    } else {
      const int2 range = *reinterpret_cast<const int2*>(&current_tile().plain_begin);
      plain = is_within(block_of(n), range.x, range.y);
    }
    k_ring.advance();
    locate_operands();
    const bool there = n > n_begin && mbarrier_test(&state.k_full[k_ring.stage], k_ring.phase);
    next_keys = there ? (kGated ? kept_above : 1) : -1;
    if constexpr (kHalves == 2) {
      wgmma_wait<1>();
      pin_registers(s[0]);
      bits = positive_bits(s[0]);
    }
    wgmma_wait<0>();
    pin_registers(s[kLast]);
    if (leader()) mbarrier_arrive(&state.k_empty[stage]);
    if (C::kProducers && n == n_begin && leader()) mbarrier_arrive(&state.q_empty);
    bits = kHalves == 2 ? max(bits, positive_bits(s[kLast])) : positive_bits(s[kLast]);
  }

  // kSelected: reads whose keys are next, while it need not be waited for.
  __device__ __forceinline__ void note_block() {
    if constexpr (C::kSelected) next_block = state.block[k_ring.stage];
  }

  __device__ __forceinline__ void compute_scores(int n) {
    note_block();
#pragma unroll
    for (int half = 0; half < kHalves; ++half) issue_scores(half);
    receive_scores(n);
  }

  // Where there are no producers: asks for the operands that may take the places of block n's keys
  // and of the values before it, when all have read them; block n - 1 is the next of the ring.
  __device__ __forceinline__ void load_ahead(int n) {
    mbarrier_wait(&state.k_empty[k_ring.before()], k_ring.phase_before());
    if (n - kValuesAhead >= n_begin) {
      // kSelected: the next block of the ring of keys.
      static_assert(!C::kSelected || C::kProducers || kValuesAhead == 1);
      Base::load_values(Base::origin(current_tile()),
                        C::kSelected ? state.block[k_ring.stage] : n - kValuesAhead,
                        (v_ring.stage + kValuesAhead) % C::kStagesV);
    }
    if (n - C::kStagesK >= n_begin) {
      int next = n - C::kStagesK;
      if constexpr (C::kSelected) {
        next = checked_block(current_tile(), upcoming);
        fetch_entry(n_end - n + C::kStagesK);
      }
      Base::load_keys(Base::origin(current_tile()), next, k_ring.before());
    }
    if (n <= n_begin + Base::kDrawAhead) prepare_next(n);
  }

  // kSelected: asks for an entry of the tile's list, which is used a block later.
  __device__ __forceinline__ void fetch_entry(int i) {
    if (i < n_end) upcoming = __ldg(current_tile().list + i);
  }

  // The block of step i from the first of a tile, which is not one of the last.
  static __device__ __forceinline__ int first_block(const ListedTile& tile, int i) {
    if constexpr (C::kSelected) {
      return tile.first[i];
    } else {
      return tile.n_end - 1 - i;
    }
  }

  __device__ __forceinline__ void set_next(const NextTile& next) {
    if (elect_one()) state.next = next;
    __syncwarp();
  }

  // Near the end of the tile: draws the next, and asks for what of it has a place.
  __device__ __forceinline__ void prepare_next(int n) {
    NextTile next = state.next;
    __syncwarp();
    const int left = n - n_begin;
    if (next.drawn && left < C::kStagesK) {
      mbarrier_wait(&state.tile_full[tile_ring.stage ^ 1],
                    tile_ring.phase ^ static_cast<std::uint32_t>(tile_ring.stage));
      const ListedTile& tile = next_tile();
      const int blocks = tile.n_end - tile.n_begin;
      if (left < kValuesAhead && next.values < blocks) {
        Base::load_values(Base::origin(tile), first_block(tile, next.values),
                          (v_ring.stage + left + 1 + next.values) % C::kStagesV);
        ++next.values;
      }
      if (next.keys < blocks) {
        Base::load_keys(Base::origin(tile), first_block(tile, next.keys),
                        (k_ring.stage + left + next.keys) % C::kStagesK);
        ++next.keys;
      }
      if (left == 0 && blocks > 0 && !next.queries) {
        Base::load_queries(tile);
        next.queries = 1;
      }
    }
    if (!next.drawn) {
      Base::hand_out(Base::kDrawn, tile_ring.stage ^ 1);
      next.drawn = 1;
    }
    set_next(next);
  }

  // At the last block of a tile: asks for the next tile's queries, if all are done with these and
  // it is there. Else prepare_next() does.
  __device__ __forceinline__ void load_queries_early() {
    NextTile next = state.next;
    __syncwarp();
    if (!next.drawn || next.queries ||
        !mbarrier_test(&state.k_empty[k_ring.before()], k_ring.phase_before()) ||
        !mbarrier_test(&state.tile_full[tile_ring.stage ^ 1],
                       tile_ring.phase ^ static_cast<std::uint32_t>(tile_ring.stage))) {
      return;
    }
    const ListedTile& tile = next_tile();
    if (tile.n_end <= tile.n_begin) return;
    Base::load_queries(tile);
    next.queries = 1;
    set_next(next);
  }

  // Asks for what is not on its way of a tile that begins.
  __device__ __forceinline__ void load_first() {
    const NextTile ready = state.next;
    __syncwarp();
    const ListedTile& tile = current_tile();
    const int blocks = n_end - n_begin;
    static_assert(!C::kSelected || C::kProducers || C::kStagesK <= SelectedTile::kFirst);
    if constexpr (C::kSelected) fetch_entry(C::kStagesK);
#pragma unroll 1
    for (int i = ready.keys; i < min(C::kStagesK, blocks); ++i) {
      Base::load_keys(Base::origin(tile), first_block(tile, i), (k_ring.stage + i) % C::kStagesK);
    }
    if (!ready.queries) Base::load_queries(tile);
#pragma unroll 1
    for (int i = ready.values; i < min(kValuesAhead, blocks); ++i) {
      Base::load_values(Base::origin(tile), first_block(tile, i), (v_ring.stage + i) % C::kStagesV);
    }
    set_next({});
  }

  // Of a block that not all rows see whole: what a row does not see becomes -inf.
  __device__ __forceinline__ void mask(int n) {
#pragma unroll
    for (int half = 0; half < kHalves; ++half) {
      mask_block(args.params.sequences, current_tile(), block_of(n), first_row(half), s[half]);
      const int of_half = positive_bits(s[half]);
      bits = half == 0 ? of_half : max(bits, of_half);
    }
  }

  // The largest of this thread's scores.
  __device__ __forceinline__ float largest() const {
    float result = -INFINITY;
#pragma unroll
    for (int half = 0; half < kHalves; ++half) result = max_nan(result, largest_score(s[half]));
    return result;
  }

  // The same of the rows that are present.
  __device__ __forceinline__ float largest_seen() const {
    float result = -INFINITY;
#pragma unroll
    for (int half = 0; half < kHalves; ++half) {
      result = max_nan(result, largest_present(current_tile(), first_row(half), s[half]));
    }
    return result;
  }

  // Of block n, which is not plain: what rows do not see is masked. Returns this thread's vote.
  __device__ __forceinline__ bool look_up(int n) {
    const Tile& tile = current_tile();
    if (!full_blocks(args.params.sequences, tile).contains(block_of(n))) mask(n);
    if constexpr (!kGated) return true;
    if (C::kSelected && block_of(n) == kNoBlock) return false;
    const bool always = block_of(n) >= tile.kept_begin && block_of(n) < tile.kept_end;
    return keep_block(largest_seen(), tile.threshold, always);
  }

  // Whether block n is kept: a vote of all rows. This thread is for it if its bits are above these.
  __device__ __forceinline__ bool decide(int n, int above) {
    if constexpr (kGated) {
      outgrown = any_outgrown();
      return differs_from<0>(vote(bits > above));
    } else {
      return differs_from<-1>(n);
    }
  }

  // value != kOther, in a form that says nothing to the compiler: it gives scores and probabilities
  // the same registers, and does not serialise all products, only if a block has two ways through
  // the loop and nothing of the way is known before.
  template <int kOther>
  static __device__ __forceinline__ bool differs_from(int value) {
    int result;
    asm volatile("{ .reg .pred p; setp.ne.s32 p, %1, %2; selp.s32 %0, 1, 0, p; }"
                 : "=r"(result)
                 : "r"(value), "n"(kOther));
    return result != 0;
  }

  __device__ __forceinline__ bool vote(bool mine) const {
    // The second vote is for the compiler: of the barrier's result it does not know that it is the
    // same in all threads, and of a vote's it does.
    return __any_sync(0xffffffffu, barrier_any(1 + stream, C::kStreamThreads, mine));
  }

  // Asks for V of block n, which is kept, and notes that it is.
  __device__ __forceinline__ void keep(int n) {
    ++kept_blocks;
    if (!loads) return;
    Base::load_values(kOriginKept ? key_origin : Base::origin(current_tile()), block_of(n),
                      v_ring.stage);
    const KernelParams& p = args.params;
    if (p.kept_mask != nullptr && elect_one()) [[unlikely]] {
      const Tile& tile = current_tile();
      p.kept_mask[tile.sequence * p.mask_stride[0] + tile.head * p.mask_stride[1] +
                  tile.q_block * p.mask_stride[2] + block_of(n) * p.mask_stride[3]] = 1;
    }
  }

  // kCalibrating: writes the maximum of a block that is not plain, or has no positive score, at
  // once: it may be negative. Leaves -0 for write_largest(), which is below all integers.
  __device__ __forceinline__ void write_looked_up() {
    const int found =
        __reduce_max_sync(0xffffffffu, ordered_bits(plain ? largest() : largest_seen()));
    if (elect_one()) {
      reduce_max(next_max, from_ordered_bits(found) * args.params.softmax_scale);
    }
    warp_largest = INT_MIN;
  }

  // kCalibrating: the maximum of the block, -inf before any warp comes, becomes this warp's if that
  // is more.
  __device__ __forceinline__ void write_largest() {
    reduce_max_positive(next_max, __int_as_float(warp_largest) * args.params.softmax_scale);
    next_max -= args.params.max_stride[3];
  }

  // Whether a score of this warp's has outgrown its reference of the softmax, or is NaN.
  __device__ __forceinline__ bool any_outgrown() const {
    return __any_sync(0xffffffffu, !(__int_as_float(bits) <= limit));
  }

  // Moves the references of the softmax where the scores have outgrown them, and centres scores
  // that are far from 0.
  __device__ __forceinline__ void follow_maxima() {
    if constexpr (kCalibrating) {
      // One reduction tells what is written later and whether a reference is outgrown, and one
      // branch leads to all that is rare.
      warp_largest = __reduce_max_sync(0xffffffffu, bits);
      const bool within = __int_as_float(warp_largest) <= limit;
      const bool usual = plain & (warp_largest > 0);
      if (usual & within) return;
      if (!usual) {
        write_looked_up();
        if (within) return;
      }
    } else {
      if (kGated ? !outgrown : !any_outgrown()) return;
    }
    const float slack = args.params.slack;
    limit = INFINITY;
#pragma unroll
    for (int half = 0; half < kHalves; ++half) {
      RunningSoftmax& running = softmax[half];
      float maximum[2];
      row_maxima(s[half], maximum);
      // The difference, not the sum: beside a far reference the slack is nothing.
      const bool grown =
          maximum[0] - running.reference[0] > slack || maximum[1] - running.reference[1] > slack;
      if (__any_sync(0xffffffffu, grown)) {
        float factor[2];
        running.follow(maximum, args.params.scale_log2, factor);
#pragma unroll
        for (int i = 0; i < kOutRegisters; ++i) out[half][i] *= factor[i / 2 % 2];
      }
      limit = fminf(limit, fminf(running.reference[0], running.reference[1]) + slack);
      // Far rows come here with every block.
      const float far = args.params.far;
      if (is_far(running.reference[0], far) ||
          is_far(running.reference[1], far)) {
        running.centre(s[half], far);
        limit = -INFINITY;
      }
    }
    if constexpr (kCalibrating) {  // the warp's, as one score of the warp is compared with it
      limit = from_ordered_bits(__reduce_min_sync(0xffffffffu, ordered_bits(limit)));
    }
  }

  __device__ __forceinline__ void exponentiate(int half) {
    softmax[half].template exponentiate<T>(s[half], args.params.scale_log2, args.params.far);
  }

  // Waits for V of block n, the next of the ring, with the first half's probabilities.
  __device__ __forceinline__ void wait_values(int n) {
    if constexpr (kGated) {
      // ptxas leaves the packing of the probabilities for after the wait, unless it may be that
      // they change while it lasts. They do not: where there are blocks n_begin is not negative.
      while (!mbarrier_try(&state.v_full[v_ring.stage], v_ring.phase)) {
#pragma unroll
        for (int i = 0; i < 16; ++i) {
          s[0][i] = __int_as_float(__float_as_int(s[0][i]) ^ (n_begin >> 31));
        }
      }
    } else {
      mbarrier_wait(&state.v_full[v_ring.stage], v_ring.phase);
    }
    if (args.params.zero_value_tail) {
      const int rows = max(current_tile().seqlen_k - block_of(n) * kBlockN, 0);
      if (rows < kBlockN) zero_value_rows<C>(data.v[v_ring.stage], rows, 1 + stream);
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

  __device__ __forceinline__ void receive_values(int half) {
    pin_registers(s[half]);
    pin_registers(out[half]);
  }

  // Waits until the other stream has started its products, and says that this one is about to. One
  // warp does; the products of the others wait for its own. Both may go on at once if they come at
  // the same time: it is for speed alone.
  __device__ __forceinline__ void take_turn() {
    if (!C::kTurns || !takes_turns) return;
    mbarrier_wait(&(&state)[1 - 2 * stream].turn, 1);
    if (elect_one()) mbarrier_arrive(&state.turn);
  }

  // The waits are for phases that are over: to synccheck one that nobody waited for is an error.
  __device__ __forceinline__ void pass_turn() {
    if (!C::kTurns || !takes_turns) return;
    mbarrier_wait(&state.turn, 0);
    if (elect_one()) mbarrier_arrive(&state.turn);
    mbarrier_wait(&state.turn, 1);
  }

  __device__ __forceinline__ void release_values() {
    if constexpr (C::kProducers && !kGated) {
      if (leader()) mbarrier_arrive(&state.v_empty[v_ring.stage]);
    }
    v_ring.advance();
  }

  // Adds block n, whose scores are in s, to the output; leaves with those of block n - 1 in s.
  //
  // Probabilities and scores share registers: a half's scores start when its probabilities are no
  // longer read. Where a warpgroup has two halves, the first's P V runs beside the second's
  // exponentials, and the products of one half keep the tensor cores busy between those of the
  // other.
  __device__ __forceinline__ void attend(int n) {
    if constexpr (kGated) keep(n);
    if (C::kSelected && !C::kProducers && loads && n == n_begin) load_queries_early();
    follow_maxima();
    exponentiate(0);
    wait_values(n);
    issue_values(0);
    if constexpr (kCalibrating) write_largest();
    if constexpr (kHalves == 2) {
      exponentiate(1);
      if (n > n_begin) wait_keys();
      take_turn();
      issue_values(1);
    }
    if (!C::kProducers && loads) load_ahead(n);
    if constexpr (kHalves == 2) {
      if (n > n_begin) {
        wgmma_wait<1>();
        receive_values(0);
        note_block();
        issue_scores(0);
        wgmma_wait<1>();
        receive_values(1);
        release_values();
        issue_scores(1);
        pass_turn();
        receive_scores(n - 1);
      } else {
        pass_turn();
        wgmma_wait<0>();
        receive_values(0);
        receive_values(1);
        release_values();
        plain = false;
      }
    } else {
      wgmma_wait<0>();
      receive_values(0);
      release_values();
      if (n > n_begin) {
        wait_keys();
        compute_scores(n - 1);
      } else {
        plain = false;
      }
    }
  }

  __device__ __forceinline__ void set_tile(const ListedTile& tile) {
    n_begin = __shfl_sync(0xffffffffu, tile.n_begin, 0);
    n_end = __shfl_sync(0xffffffffu, tile.n_end, 0);
    if constexpr (kPlainKept) {
      plain_begin = __shfl_sync(0xffffffffu, tile.plain_begin, 0);
      plain_end = __shfl_sync(0xffffffffu, tile.plain_end, 0);
    }
    if constexpr (kOriginKept) {
      key_origin = {__shfl_sync(0xffffffffu, tile.k_row, 0),
                    __shfl_sync(0xffffffffu, tile.kv_head, 0),
                    __shfl_sync(0xffffffffu, tile.batch, 0)};
    }
    if constexpr (kCalibrating) {
      const KernelParams& p = args.params;
      next_max = p.block_max + tile.sequence * p.max_stride[0] + tile.head * p.max_stride[1] +
                 tile.q_block * p.max_stride[2] + (n_end - 1) * p.max_stride[3];
    }
    if constexpr (kGated) {
      // Scores that are not positive are above no threshold that is.
      kept_above = tile.threshold > 0 ? __float_as_int(tile.threshold) - 1 : 0;
    }
    limit = -INFINITY;
#pragma unroll
    for (int half = 0; half < kHalves; ++half) {
      softmax[half] = {};
#pragma unroll
      for (int i = 0; i < kOutRegisters; ++i) out[half][i] = 0;
    }
  }

  __device__ __forceinline__ void attend_tile() {
    if (!C::kProducers && loads) load_first();
    kept_blocks = 0;
    mbarrier_wait(&state.q_full, q_phase);
    q_phase ^= 1;
    next_keys = -1;
    locate_operands();
    wait_keys();
    compute_scores(n_end - 1);
    for (int n = n_end - 1;;) {
      // One branch for what is rare, the end included: a plain block has few instructions between
      // its scores and the vote, and between that and the next products.
      int above = kept_above;
      if (!plain) {
        if (n < n_begin) break;
        above = look_up(n) ? INT_MIN : INT_MAX;
      }
      if (decide(n, above)) {
        attend(n);
      } else {
        if (next_keys <= 0) {
          if (kGated && kept_above == 0 && plain) {
            // No score is positive, and the threshold is not either: decided again, from floats.
            plain = false;
            continue;
          }
          if (n == n_begin) break;
          wait_keys();
        }
        compute_scores(n - 1);
      }
      --n;
    }
    if constexpr (kGated) {
      const KernelParams& p = args.params;
      if (p.kept_blocks != nullptr && loads && elect_one() && kept_blocks > 0) {
        const Tile& tile = current_tile();
        atomicAdd(
            reinterpret_cast<unsigned long long*>(
                &p.kept_blocks[tile.sequence * p.kept_stride[0] + tile.head * p.kept_stride[1]]),
            static_cast<unsigned long long>(kept_blocks));
      }
    }
  }

  __device__ __forceinline__ void run() {
    queries = uniform(shared_address(data.q) + thread() / kWarpgroup * (64 * 128));
    loads = uniform(thread() / 32) == 0;
    takes_turns = uniform(thread() / 32) == 1;
    if (!C::kProducers && loads) {
      set_next({});
      Base::hand_out(blockIdx.x + stream * gridDim.x, 0);
    }
    for (;;) {
      mbarrier_wait(&state.tile_full[tile_ring.stage], tile_ring.phase);
      const ListedTile& tile = current_tile();
      if (tile.sequence < 0) return;
      set_tile(tile);
      if (n_end > n_begin) {
        attend_tile();
      } else if (!C::kProducers) {
        barrier_sync(1 + stream, C::kStreamThreads);
        if (loads) Base::hand_out(Base::kDrawn, tile_ring.stage ^ 1);
      }
#pragma unroll
      for (int half = 0; half < kHalves; ++half) {
        store_rows<T, C::kHeadDim>(args.params, tile, first_row(half), softmax[half], out[half]);
      }
      if constexpr (C::kProducers) {
        __syncwarp();
        if (leader()) mbarrier_arrive(&state.tile_empty[tile_ring.stage]);
      }
      tile_ring.advance();
    }
  }
};

}  // namespace bsfa::cuda::sm90
