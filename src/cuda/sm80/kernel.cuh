#pragma once

#include <cstdint>

#include "cuda/scheduler/tile.cuh"
#include "cuda/sm80/config.cuh"
#include "cuda/sm80/mainloop.cuh"
#include "cuda/sm80/mma.cuh"
#include "cuda/sm80/tile_io.cuh"

// The kernel: one CTA for each tile of 128 rows, the blocks of keys from the diagonal outwards.
//
// A step is about block n - 1's output and block n's decision:
//
//   scores of n, their maxima
//   wait for V of n - 1 and K of n + 1;  vote on n: the one barrier of the step
//   request V of n if kept, and the next K
//   product of n - 1 with V, if n - 1 was kept
//   exponentials of n, if kept
//
// The request for V of n is thus under way during the product of n - 1, the exponentials of n and
// the scores of n + 1. That barrier also says that every warp is done with the K stage of n and
// with the V stage of the block before n - 1, which are the ones that the new requests overwrite.

namespace bsfa::cuda::sm80 {

// The maximum of the warp's scores, for `read_block_maximum` after the next barrier.
__device__ __forceinline__ void share_block_maximum(int* maxima, float row_maximum) {
  const int warp_maximum = __reduce_max_sync(0xffffffffu, ordered_bits(row_maximum));
  if (threadIdx.x % 32 == 0) maxima[threadIdx.x / 32] = warp_maximum;
}

template <int kWarps>
__device__ __forceinline__ float read_block_maximum(const int (&maxima)[8]) {
  int m = maxima[0];
#pragma unroll
  for (int warp = 1; warp < kWarps; ++warp) m = max(m, maxima[warp]);
  return from_ordered_bits(m);
}

// Divides by the row sums and writes the output and the LSE.
template <typename T, typename C>
__device__ __forceinline__ void finish(WarpState<T, C>& w, const Arguments& args, const Tile& tile,
                                       std::uint32_t q_tile) {
  constexpr int kWarpRows = 16 * C::kTiles;
  const KernelParams& p = args.params;
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  // The warp's own rows of Q are read by nobody any more: the output passes through them, so that
  // it is written 16 bytes at a time.
  const std::uint32_t staging = q_tile + warp * kWarpRows * C::kRowBytes;
  __syncwarp();
  float maximum = w.maximum * p.softmax_scale;
  float sum = w.sum;
  float factor = 1;
  if (p.sinks != nullptr) {
    const float sink = p.sinks[tile.head];
    const float both = max_nan(maximum, sink);
    const float base = both == -INFINITY ? 0.0f : both;
    factor = expf(maximum - base);
    sum = sum * factor + expf(sink - base);
    maximum = both;
  }
  const bool empty = maximum == -INFINITY;
  const float inverse = empty ? 0.0f : factor / sum;
  const int kept_row = lane / 4 + lane % 2 * 8 + (C::kTiles == 2 ? lane / 2 % 2 * 16 : 0);
  const int row = warp * kWarpRows + kept_row;
  if (p.lse != nullptr && row >= tile.row_begin && row < tile.row_end) {
    p.lse[tile.batch * p.lse_stride[0] + tile.head * p.lse_stride[1] +
          (std::int64_t{tile.q_row} + row) * p.lse_stride[2]] =
        empty ? -INFINITY : maximum + logf(sum);
  }
#pragma unroll
  for (int t = 0; t < C::kTiles; ++t) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const float row_inverse = of_row(inverse, t, h);
      const int local = t * 16 + h * 8 + lane / 4;
#pragma unroll
      for (int d = 0; d < C::kHeadDim / 8; ++d) {
        const std::uint32_t pair =
            pack<T>(w.out[t][d][2 * h] * row_inverse, w.out[t][d][2 * h + 1] * row_inverse);
        asm volatile(
            "st.shared.u32 [%0], %1;" ::"r"(staging + swizzled<C>(local, d) + lane % 4 * 4),
            "r"(pair)
            : "memory");
      }
    }
  }
  __syncwarp();
  std::uint16_t* out = static_cast<std::uint16_t*>(p.out) + tile.batch * p.out_stride[0] +
                       (std::int64_t{tile.q_row} + warp * kWarpRows) * p.out_stride[1] +
                       tile.head * p.out_stride[2];
  store_rows<C, kWarpRows>(out, p.out_stride[1], args.out_vectors, staging,
                           tile.row_begin - warp * kWarpRows, tile.row_end - warp * kWarpRows);
}

// What a CTA works on. In shared memory: what is read once a step would cost registers that the
// loop does not have.
struct Work {
  Tile tile;
  std::int64_t q_offset;  // elements, to tile row 0
  std::int64_t k_offset;  // elements, to key 0
  std::int64_t v_offset;
  int full_begin;  // blocks [full_begin, full_end) need no mask
  int full_end;
  int kept_blocks;   // so far; thread 0's
  int maxima[2][8];  // of the warps, for two blocks in turn
};

// Narrows a tile to one of the parts that a gate block of rows is computed in.
template <typename C>
__device__ inline void take_part(const SequenceLayout& sequences, int part, Tile* tile) {
  const int first = part * C::kBlockM;
  tile->q_row += first;
  tile->key += first;
  tile->row_begin = max(tile->row_begin - first, 0);
  tile->row_end = min(tile->row_end - first, C::kBlockM);
  if (tile->row_begin >= tile->row_end) tile->sequence = -1;
  if (sequences.causal) {
    tile->n_end = min(tile->n_end, (tile->key + C::kBlockM + kBlockN - 1) >> 6);
  }
}

// The place of the index-th tile that exists, sequence by sequence, in each the longest rows first and
// the heads of a query block beside each other; sequence < 0 if there are fewer. For one warp.
__device__ inline TilePlace existing_place(const KernelParams& p, int index) {
  const int lane = threadIdx.x % 32;
  const int rank = index / p.num_heads_q;  // among the query blocks of all sequences
  TilePlace place{};
  place.sequence = -1;
  place.head = index - rank * p.num_heads_q;
  place.kv_head = place.head / p.group;
  const int num_sequences = static_cast<int>(p.sequences.num_sequences);
  int before = 0;
  for (int first = 0; first < num_sequences; first += 32) {
    const int blocks =
        first + lane < num_sequences ? sequence_q_blocks(p.sequences, p, first + lane) : 0;
    int end = blocks;  // of this sequence and those before it
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const int other = __shfl_up_sync(0xffffffffu, end, step);
      if (lane >= step) end += other;
    }
    const int all = __shfl_sync(0xffffffffu, end, 31);
    if (rank < before + all) {
      const int owner = __ffs(__ballot_sync(0xffffffffu, rank < before + end)) - 1;
      place.sequence = first + owner;
      place.q_block = before + __shfl_sync(0xffffffffu, end, owner) - 1 - rank;
      return place;
    }
    before += all;
  }
  return place;
}

// For one warp.
template <typename C>
__device__ inline void describe_work(const Arguments& args, Work* work) {
  const SequenceLayout& sequences = args.params.sequences;
  constexpr bool kGated = C::kForm == Form::kGated;
  const int index = blockIdx.x / C::kParts;
  Tile tile;
  if (args.few_tiles) {
    const TilePlace place = existing_place(args.params, index);
    tile.sequence = -1;
    if (place.sequence >= 0) tile = tile_of<kGated>(args.params, place);
  } else {
    tile = tile_at<kGated>(args.params, index);
  }
  if (threadIdx.x != 0) return;
  // The later rows first: they see more.
  if (C::kParts > 1 && tile.sequence >= 0) {
    take_part<C>(sequences, C::kParts - 1 - blockIdx.x % C::kParts, &tile);
  }
  const auto offset = [&](const Operand& operand, int row, int head) {
    return tile.batch * operand.stride[0] + row * operand.stride[1] + head * operand.stride[2];
  };
  const int kv_head = tile.kv_head;
  const int window = static_cast<int>(sequences.window);
  const int end = row_end(tile.key, 0, tile.seqlen_k, sequences.causal);  // of the first row
  work->tile = tile;
  work->q_offset = offset(args.q, tile.q_row, tile.head);
  work->k_offset = offset(args.k, tile.k_row, kv_head);
  work->v_offset = offset(args.v, tile.k_row, kv_head);
  work->full_begin = whole_begin<kBlockN>(tile.key, C::kBlockM, window);
  work->full_end = end >> kLog2<kBlockN>;  // whole_end, of which the first half is above
  // Rows that are not present take no part in a maximum.
  if (C::kForm != Form::kDense && tile.row_end - tile.row_begin < C::kBlockM) work->full_end = 0;
  work->kept_blocks = 0;
}

// Requests block n of K or V.
template <bool kVectors, typename C>
__device__ __forceinline__ void request_block(std::uint32_t stage, const Operand& operand,
                                              const std::int64_t& offset, const Tile& tile, int n) {
  load_rows<kVectors, C, kBlockN>(stage, operand,
                                  offset + std::int64_t{n} * kBlockN * operand.stride[1], 0,
                                  tile.seqlen_k - n * kBlockN);
}

// One CTA's pass over its blocks.
template <bool kVectors, typename T, typename C>
struct Pass {
  static constexpr Form kForm = C::kForm;
  static constexpr int kWarpRows = 16 * C::kTiles;
  const Arguments& args;
  Work& work;
  const std::uint32_t q_tile;
  WarpState<T, C> w;

  __device__ __forceinline__ Pass(const Arguments& arguments, Work& shared_work,
                                  std::uint32_t shared)
      : args(arguments), work(shared_work), q_tile(shared) {
    w.clear();
  }

  __device__ __forceinline__ int k_stages() const {
    return kForm == Form::kGated ? 2 : args.stages.k;
  }
  __device__ __forceinline__ std::uint32_t k_tiles() const { return q_tile + C::kQBytes; }
  __device__ __forceinline__ std::uint32_t v_tiles() const {
    return k_tiles() + k_stages() * C::kBlockBytes;
  }
  __device__ __forceinline__ bool wants_maxima() const {
    return kForm == Form::kCalibrating ||
           (kForm == Form::kGated && args.params.block_max != nullptr);
  }

  // Where this lane's rows and chunks of the fragments start. The lane is read anew, here and
  // below: the gated loop has no register for what can be had again in four instructions.
  __device__ __forceinline__ std::uint32_t q_lane() const {
    const int thread = thread_index();
    return q_tile + thread / 32 * kWarpRows * C::kRowBytes +
           swizzled<C>(thread % 16, thread % 32 / 16);
  }
  __device__ __forceinline__ std::uint32_t k_lane(int slot) const {
    const int lane = thread_index() % 32;
    return k_tiles() + slot * C::kBlockBytes + swizzled<C>(lane % 8 + lane / 16 * 8, lane / 8 % 2);
  }
  __device__ __forceinline__ std::uint32_t v_lane(int slot) const {
    const int lane = thread_index() % 32;
    return v_tiles() + slot * C::kBlockBytes + swizzled<C>(lane % 16, lane / 16);
  }

  __device__ __forceinline__ void request_q() const {
    load_rows<kVectors, C, C::kBlockM>(q_tile, args.q, work.q_offset, work.tile.row_begin,
                                       work.tile.row_end);
  }
  __device__ __forceinline__ void request_k(int n, int slot) const {
    if (n < work.tile.n_begin) return;
    request_block<kVectors, C>(k_tiles() + slot * C::kBlockBytes, args.k, work.k_offset, work.tile,
                               n);
  }
  __device__ __forceinline__ void request_v(int n, int slot) const {
    if (n < work.tile.n_begin) return;
    request_block<kVectors, C>(v_tiles() + slot * C::kBlockBytes, args.v, work.v_offset, work.tile,
                               n);
  }
  __device__ __forceinline__ void hold_q() {
    if constexpr (C::kHeld > 0) {
#pragma unroll
      for (int d = 0; d < C::kHeld; ++d)
        load_q<C>(w.q[d], q_lane(), C::kHeadDim / 16 - C::kHeld + d);
    }
  }

  // Scores of block n, masked. Returns the maximum of the row that this thread keeps.
  __device__ __forceinline__ float score(int n, int k_slot) {
    compute_scores(w, q_lane(), k_lane(k_slot));
    if (args.params.cap > 0) cap_scores(w, args.params.cap, args.params.inverse_cap);
    const Tile& tile = work.tile;
    if (n < work.full_begin || n >= work.full_end) {
      const SequenceLayout& sequences = args.params.sequences;
      const int thread = thread_index();
      mask_scores(w, tile, sequences.causal, static_cast<int>(sequences.window),
                  thread / 32 * kWarpRows + thread % 32 / 4, n * kBlockN + thread % 4 * 2);
    }
    const float maximum = row_maximum(w);
    if (wants_maxima()) share_block_maximum(&work.maxima[n & 1][0], maximum);
    return maximum;
  }

  __device__ __forceinline__ void write_block_maximum(int n) const {
    const KernelParams& p = args.params;
    if (thread_index() != 0) return;
    float* target =
        &p.block_max[work.tile.sequence * p.max_stride[0] + work.tile.head * p.max_stride[1] +
                     work.tile.q_block * p.max_stride[2] + n * p.max_stride[3]];
    const float maximum = read_block_maximum<C::kWarps>(work.maxima[n & 1]) * p.softmax_scale;
    if constexpr (C::kParts == 1) {
      *target = maximum;
    } else if (maximum >= 0 || maximum != maximum) {
      // Beside -inf or another part's: larger floats are larger as integers if not negative, and
      // smaller as unsigned ones if negative. NaN is above all.
      atomicMax(reinterpret_cast<int*>(target), __float_as_int(fabsf(maximum)));
    } else {
      atomicMin(reinterpret_cast<unsigned*>(target), __float_as_uint(maximum));
    }
  }

  __device__ __forceinline__ void write_decision(int n, bool kept) {
    const KernelParams& p = args.params;
    if (thread_index() != 0) return;
    work.kept_blocks += kept;
    if (p.kept_mask == nullptr) return;
    p.kept_mask[work.tile.sequence * p.mask_stride[0] + work.tile.head * p.mask_stride[1] +
                work.tile.q_block * p.mask_stride[2] + n * p.mask_stride[3]] = kept ? 1 : 0;
  }

  // Whether block n is kept: all rows have a say. The one barrier that every step has.
  __device__ __forceinline__ bool meet(int n, float maximum) {
    if constexpr (kForm == Form::kGated) {
      return __syncthreads_or(keep_block(maximum, work.tile.threshold,
                                         n >= work.tile.kept_begin && n < work.tile.kept_end));
    } else {
      __syncthreads();
      return true;
    }
  }

  __device__ __forceinline__ void run() {
    const int stages = k_stages();
    // V a step ahead of its use. A gate cannot: it does not know yet.
    const bool v_ahead = kForm != Form::kGated && args.stages.v == 2;
    int n = work.tile.n_end - 1;
    request_q();
    request_k(n, 0);
    if (v_ahead) request_v(n, n & 1);
    commit_copies();
    if (stages > 1) request_k(n - 1, 1);
    commit_copies();
    wait_copies<1>();
    __syncthreads();
    hold_q();
    int k_slot = 0;
#pragma unroll 1
    for (; n >= work.tile.n_begin; --n) {
      const float maximum = score(n, k_slot);
      wait_copies<0>();
      const bool kept = meet(n, maximum);
      if (v_ahead) {
        request_v(n - 1, (n - 1) & 1);
      } else {
        if (kept) request_v(n, 0);
        commit_copies();
      }
      request_k(n - stages, k_slot);
      commit_copies();
      if (stages > 1) k_slot ^= 1;
      if constexpr (kForm == Form::kGated) write_decision(n, kept);
      if (wants_maxima()) write_block_maximum(n);
      if (kept) {
        exponentiate(w, maximum, args.params.scale_log2, args.params.far);
        if (!v_ahead) {
          wait_copies<1>();
          __syncthreads();
        }
        accumulate_output(w, v_lane(v_ahead ? n & 1 : 0));
        if (C::kReloadsQ) hold_q();
      }
      if (kForm != Form::kGated && stages == 1) {
        wait_copies<0>();
        __syncthreads();
      }
    }
    if constexpr (kForm == Form::kGated) {
      const KernelParams& p = args.params;
      if (p.kept_blocks != nullptr && threadIdx.x == 0 && work.kept_blocks > 0) {
        atomicAdd(reinterpret_cast<unsigned long long*>(
                      &p.kept_blocks[work.tile.sequence * p.kept_stride[0] +
                                     work.tile.head * p.kept_stride[1]]),
                  static_cast<unsigned long long>(work.kept_blocks));
      }
    }
  }
};

template <bool kVectors, typename T, typename C>
__global__ void __launch_bounds__(C::kThreads, C::kMinBlocks)
    attention_kernel(const __grid_constant__ Arguments args) {
  extern __shared__ __align__(128) std::uint8_t shared[];
  __shared__ Work work;
  if (threadIdx.x < 32) describe_work<C>(args, &work);
  __syncthreads();
  if (work.tile.sequence < 0) return;
  Pass<kVectors, T, C> pass(args, work, shared_address(shared));
  if (work.tile.n_end > work.tile.n_begin) pass.run();
  finish(pass.w, args, work.tile, pass.q_tile);
}

}  // namespace bsfa::cuda::sm80
