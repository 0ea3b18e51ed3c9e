#pragma once

#include <cstdint>

#include "core/status.hpp"
#include "cuda/common/device.hpp"
#include "cuda/common/ptx.cuh"
#include "cuda/common/softmax.cuh"
#include "cuda/sm90/config.cuh"
#include "cuda/sm90/scores.cuh"
#include "cuda/sm90/selector.hpp"
#include "cuda/sm90/selector_choice.cuh"
#include "cuda/sm90/wgmma.cuh"

// The sampled selector on Hopper: one pass over the keys for 256 sampled rows at a time.
//
// Four warpgroups have 64 rows each, in registers for as long as the tile lasts, and meet nowhere
// but at the keys that a warp loads for all of them. Of a block each does, in this order:
//   1. starts S = Q K^T, and writes the log-sum-exps of the block before while the products run;
//   2. masks S if some row does not see the block whole, and raises the references of its rows where
//      a score has outgrown them;
//   3. adds up the exponentials.
// After the last block it has the log-sum-exps of its rows, hence the masses of all blocks, and
// chooses (selector_choice.cuh).

namespace bsfa::cuda::sm90 {

template <int head_dim>
struct SelectorConfig {
  static constexpr int kHeadDim = head_dim;
  static constexpr int kWarpgroups = kSampledRows / kWarpgroupRows;
  static constexpr int kWarps = kWarpgroups * 4;
  // And the warp that loads, in a warpgroup that gives its registers to the others.
  static constexpr int kThreads = (kWarpgroups + 1) * kWarpgroup;
  static constexpr int kLoaderRegisters = 32;
  static constexpr int kLaunchRegisters = 65536 / kThreads / 8 * 8;
  static constexpr int kRegisters =
      (kLaunchRegisters * (kWarpgroups + 1) - kLoaderRegisters) / kWarpgroups / 8 * 8;
  static constexpr int kBlockBytes = kBlockN * kHeadDim * 2;
  static constexpr int kStages = 192 * 1024 / kBlockBytes;
};

struct SelectorTile {
  int sequence;  // < 0: no more work
  int kv_head;
  int first_unit;
  int n_begin;  // blocks [n_begin, n_end) are seen by some row
  int n_end;
};

template <typename C>
struct SelectorShared {
  alignas(1024) std::uint8_t k[C::kStages][C::kBlockBytes];
  float lse[kSampledRows];  // base 2; +inf: the row sees nothing and does not count
  SelectorTile tile[2];
  std::uint64_t k_full[C::kStages], k_empty[C::kStages];
  std::uint64_t tile_full[2], tile_empty[2];
};

// Draws tiles and loads keys. For one thread.
template <typename C>
struct SelectorProducer {
  const SelectorArguments& args;
  SelectorShared<C>& shared;
  RingPosition<2> tile_ring;
  RingPosition<C::kStages> k_ring;

  __device__ __forceinline__ SelectorTile tile_at(int index) const {
    SelectorTile tile{};
    if (index >= total_tiles(args.sequences, args.order)) {
      tile.sequence = -1;
      return tile;
    }
    const TilePlace place = tile_place(args.sequences, args.order, index);
    tile.sequence = place.sequence;
    tile.kv_head = place.head;
    const int units = kSampledRows >> args.rows_log2;
    tile.first_unit = place.q_block * units;
    const int last = min(tile.first_unit + units, args.q_blocks * args.group) - 1;
    const Sequence s = sequence_at(args.sequences, tile.sequence);
    for (int q_block = tile.first_unit / args.group; q_block <= last / args.group; ++q_block) {
      const Unit unit = unit_at(args, s, q_block);
      if (unit.n_end <= unit.n_begin) continue;
      if (tile.n_end == 0) tile.n_begin = unit.n_begin;
      tile.n_begin = min(tile.n_begin, unit.n_begin);
      tile.n_end = max(tile.n_end, unit.n_end);
    }
    return tile;
  }

  __device__ __forceinline__ void run() {
    for (int index = blockIdx.x;; index = gridDim.x + atomicAdd(args.ticket, 1)) {
      const SelectorTile tile = tile_at(index);
      mbarrier_wait(&shared.tile_empty[tile_ring.stage], tile_ring.phase ^ 1);
      shared.tile[tile_ring.stage] = tile;
      mbarrier_arrive(&shared.tile_full[tile_ring.stage]);
      tile_ring.advance();
      if (tile.sequence < 0) return;
      const Sequence s = sequence_at(args.sequences, tile.sequence);
      const int row = static_cast<int>(s.k_begin);
      const int batch = static_cast<int>(s.batch);
      for (int n = tile.n_begin; n < tile.n_end; ++n) {
        mbarrier_wait(&shared.k_empty[k_ring.stage], k_ring.phase ^ 1);
        mbarrier_arrive_expect(&shared.k_full[k_ring.stage], C::kBlockBytes);
        copy_box(shared.k[k_ring.stage], &args.k, &shared.k_full[k_ring.stage], 0,
                 row + n * kBlockN, 0, tile.kv_head, batch);
        k_ring.advance();
      }
    }
  }
};

template <typename T, typename C>
struct Sampler {
  static constexpr int kSteps = C::kHeadDim / 16;  // products of a block

  const SelectorArguments& args;
  SelectorShared<C>& shared;
  const int warpgroup;

  std::uint32_t queries[4 * kSteps];  // this thread's share of its warpgroup's rows
  float s[32];                        // scores of a block

  // Of this thread's two rows, 8 apart. What a row sees are keys [low, high); one that is not there
  // sees all, and nothing is made of it.
  int low[2], high[2];
  float reference[2];  // of the exponents, in scores
  float origin[2];     // the first reference: what log-sum-exps are relative to
  float shift[2];      // (reference - origin) * scale_log2
  float sum[2];        // of the exponentials so far, of this thread's columns
  float part[2];       // of a block
  float limit;         // scores up to it need no other references
  float* target;       // where the next block's log-sum-exp of row `thread % 2` goes

  int plain_begin, plain_end;  // blocks that all rows of the warp see whole
  RingPosition<2> tile_ring;
  RingPosition<C::kStages> k_ring;

  __device__ __forceinline__ int thread() const { return threadIdx.x % kWarpgroup; }
  // The first of this thread's rows, in the tile.
  __device__ __forceinline__ int row() const {
    return warpgroup * kWarpgroupRows + thread() / 32 * 16 + threadIdx.x % 32 / 4;
  }
  __device__ __forceinline__ int units() const { return kWarpgroupRows >> args.rows_log2; }

  // Reads this thread's share of row i, or zeros.
  __device__ __forceinline__ void load_queries(int i, const T* from) {
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const int column = 16 * k + 8 * c + threadIdx.x % 4 * 2;
        queries[4 * k + 2 * c + i] =
            from == nullptr ? 0u : __ldg(reinterpret_cast<const unsigned int*>(from + column));
      }
    }
  }

  __device__ __forceinline__ void begin_tile(const SelectorTile& tile) {
    const SequenceLayout& layout = args.sequences;
    const Sequence sequence = sequence_at(layout, tile.sequence);
    const int rows = 1 << args.rows_log2;
    int whole_begin = 0;
    int whole_end = tile.n_end;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int r = row() + 8 * i;
      const int index = tile.first_unit + (r >> args.rows_log2);
      low[i] = 0;
      high[i] = INT_MAX;
      const T* from = nullptr;
      if (index < args.q_blocks * args.group) {
        const Unit unit = unit_at(args, sequence, index / args.group);
        const int t = r & (rows - 1);
        if (t < sampled_rows(unit.rows, rows)) {
          const int token = unit.row_begin + sampled_row(unit.rows, rows, t);
          const int key = static_cast<int>(sequence.q_offset - layout.kv_offset) + token;
          const int window = static_cast<int>(layout.window);
          low[i] = max(row_begin(key, 0, window), 0);
          high[i] = max(row_end(key, 0, static_cast<int>(sequence.seqlen_k), layout.causal), 0);
          const int head = tile.kv_head * args.group + index % args.group;
          from = static_cast<const T*>(args.q) + sequence.batch * args.q_stride[0] +
                 (sequence.q_begin + token) * args.q_stride[1] + head * args.q_stride[2];
        }
      }
      load_queries(i, from);
      whole_begin = max(whole_begin, (low[i] + kBlockN - 1) / kBlockN);
      whole_end = min(whole_end, high[i] / kBlockN);
      reference[i] = origin[i] = -INFINITY;
      shift[i] = 0;
      sum[i] = 0;
    }
    plain_begin = __reduce_max_sync(0xffffffffu, whole_begin);
    plain_end = __reduce_min_sync(0xffffffffu, whole_end);
    part[0] = part[1] = 0;
    limit = -INFINITY;
    const int mine = row() + threadIdx.x % 2 * 8;
    target = args.block_lse +
               (static_cast<std::int64_t>(blockIdx.x * (kSampledRows >> args.rows_log2) +
                                          (mine >> args.rows_log2)) *
                    args.kv_blocks +
                tile.n_begin) *
                   rows +
               (mine & (rows - 1));
  }

  // Starts S = Q K^T of the keys that are next in the ring.
  __device__ __forceinline__ void issue_scores() {
    const Operand keys(uniform(shared_address(shared.k[k_ring.stage])), 0);
    wgmma_fence();
    wgmma_registers<T, true>(s, queries, keys.at(0));
#pragma unroll
    for (int k = 1; k < kSteps; ++k) {
      wgmma_registers<T, false>(s, queries + 4 * k,
                                keys.at(k / 4 * kBlockN * 128 + k % 4 * 32));
    }
    wgmma_commit();
  }

  // What a row does not see of block n becomes -inf.
  __device__ __forceinline__ void mask(int n) {
    const int first = n * kBlockN + threadIdx.x % 4 * 2;
    mask_after(s, {high[0] - first, high[1] - first});
    if (args.sequences.window > 0) mask_before(s, {low[0] - first, low[1] - first});
  }

  // Raises the references that scores have outgrown, and centres scores that are far from 0; as the
  // attention kernel does.
  __device__ __forceinline__ void follow_maxima() {
    float maximum[2];
    row_maxima(s, maximum);
    limit = INFINITY;
    bool far = false;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float largest = quad_max(maximum[i]);
      if (largest - reference[i] > args.slack) {
        if (reference[i] == -INFINITY) origin[i] = largest;
        sum[i] *= exp2_approx((reference[i] - largest) * args.scale_log2);
        reference[i] = largest;
        shift[i] = (largest - origin[i]) * args.scale_log2;
      }
      limit = fminf(limit, reference[i] + args.slack);
      far |= is_far(reference[i], args.far);
    }
    if (far) {
      centre_far(s, reference, args.far);
      limit = -INFINITY;
    }
  }

  __device__ __forceinline__ void add_exponentials() {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float base = is_far(reference[i], args.far)
                             ? 0.0f
                             : reference[i] * args.scale_log2;
      float partial[2] = {0, 0};
#pragma unroll
      for (int c = 0; c < 8; ++c) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          partial[e] += exp2_approx(fmaf(s[4 * c + 2 * i + e], args.scale_log2, -base));
        }
      }
      part[i] = partial[0] + partial[1];
      sum[i] += part[i];
    }
  }

  // Writes the log-sum-exps of the block whose exponentials were added last.
  __device__ __forceinline__ void write_block() {
    // Each thread of a pair gives the other what it has of the other's row.
    const bool second = threadIdx.x % 2 != 0;
    const float other = __shfl_xor_sync(0xffffffffu, second ? part[0] : part[1], 1);
    float value = (second ? part[1] : part[0]) + other;
    value += __shfl_xor_sync(0xffffffffu, value, 2);
    // A sum that is NaN is nothing: the row's own is NaN too, and it does not count.
    const float lse = fmaxf(log2_approx(value) + (second ? shift[1] : shift[0]), -INFINITY);
    if (threadIdx.x % 4 < 2) *target = lse;
    target += 1 << args.rows_log2;
  }

  // The log-sum-exps of the rows.
  __device__ __forceinline__ void write_rows() {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float total = quad_sum(sum[i]);
      const bool counts = total > 0 && high[i] != INT_MAX;
      if (threadIdx.x % 4 == 0) {
        shared.lse[row() + 8 * i] = counts ? log2_approx(total) + shift[i] : INFINITY;
      }
    }
  }

  __device__ __forceinline__ void score_blocks(const SelectorTile& tile) {
#pragma unroll 1
    for (int n = tile.n_begin; n < tile.n_end; ++n) {
      mbarrier_wait(&shared.k_full[k_ring.stage], k_ring.phase);
      issue_scores();
      if (n > tile.n_begin) write_block();
      wgmma_wait<0>();
      pin_registers(s);
      if (threadIdx.x % 32 == 0) mbarrier_arrive(&shared.k_empty[k_ring.stage]);
      k_ring.advance();
      if (n < plain_begin || n >= plain_end) mask(n);
      const float largest = __int_as_float(positive_bits(s));
      if (__any_sync(0xffffffffu, !(largest <= limit))) follow_maxima();
      add_exponentials();
    }
    if (tile.n_end > tile.n_begin) write_block();
  }

  __device__ __forceinline__ void sync() const { barrier_sync(1 + warpgroup, kWarpgroup); }

  __device__ __forceinline__ void run() {
    for (;;) {
      mbarrier_wait(&shared.tile_full[tile_ring.stage], tile_ring.phase);
      SelectorTile tile = shared.tile[tile_ring.stage];
      if (tile.sequence < 0) return;
      // Of a branch that threads may take differently the compiler serialises all products.
      tile.n_begin = static_cast<int>(uniform(tile.n_begin));
      tile.n_end = static_cast<int>(uniform(tile.n_end));
      begin_tile(tile);
      score_blocks(tile);
      write_rows();
      sync();
      const Chooser chooser{args, tile.sequence, tile.kv_head, shared.lse,
                            warpgroup * units(), tile.first_unit};
      chooser.weigh(thread() / 32, units());
      sync();
      chooser.choose(thread() / 32, units());
      if (threadIdx.x % 32 == 0) mbarrier_arrive(&shared.tile_empty[tile_ring.stage]);
      tile_ring.advance();
    }
  }
};

template <typename T, typename C>
__global__ void __launch_bounds__(C::kThreads, 1)
    selector_kernel(const __grid_constant__ SelectorArguments args) {
  extern __shared__ std::uint8_t raw[];
  auto& shared =
      *reinterpret_cast<SelectorShared<C>*>(raw + (1024 - shared_address(raw) % 1024) % 1024);
  if (threadIdx.x == 0) {
    prefetch_tensor_map(&args.k);
    for (int i = 0; i < C::kStages; ++i) {
      mbarrier_init(&shared.k_full[i], 1);
      mbarrier_init(&shared.k_empty[i], C::kWarps);
    }
    for (int i = 0; i < 2; ++i) {
      mbarrier_init(&shared.tile_full[i], 1);
      mbarrier_init(&shared.tile_empty[i], C::kWarps);
    }
    fence_mbarrier_init();
  }
  __syncthreads();
  const int warpgroup = static_cast<int>(uniform(threadIdx.x / kWarpgroup));
  if (warpgroup == C::kWarpgroups) {
    release_registers<C::kLoaderRegisters>();
    if (threadIdx.x % kWarpgroup == 0) SelectorProducer<C>{args, shared}.run();
    return;
  }
  acquire_registers<C::kRegisters>();
  Sampler<T, C>{args, shared, warpgroup}.run();
}

template <typename T, int kHeadDim>
Status launch_selector(const SelectorArguments& arguments, int ctas, cudaStream_t stream) {
  using C = SelectorConfig<kHeadDim>;
  constexpr int kBytes = sizeof(SelectorShared<C>) + 1024;  // to align the start
  const auto kernel = selector_kernel<T, C>;
  static SharedMemoryGrant grant;
  BSFA_RETURN_IF_ERROR(check(grant.ask(reinterpret_cast<const void*>(kernel), kBytes),
                             "shared memory of the selector"));
  kernel<<<ctas, C::kThreads, kBytes, stream>>>(arguments);
  return check(cudaGetLastError(), "launch of the selector");
}

}  // namespace bsfa::cuda::sm90
