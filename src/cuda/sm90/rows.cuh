#pragma once

#include <cstdint>

#include "cuda/common/ptx.cuh"
#include "cuda/common/softmax.cuh"
#include "cuda/scheduler/tile.cuh"
#include "cuda/sm90/arguments.hpp"

// What a warpgroup does with its rows of a tile, however the tile is divided. `row` is the first of
// the two rows of a thread in 64 rows of the tile; the other is 8 below.

namespace bsfa::cuda::sm90 {

__device__ __forceinline__ bool present(const Tile& tile, int row) {
  return row >= tile.row_begin && row < tile.row_end;
}

// What a row does not see of block n becomes -inf.
__device__ __forceinline__ void mask_block(const SequenceLayout& sequences, const Tile& tile, int n,
                                           int row, float* s) {
  const int window = static_cast<int>(sequences.window);
  const int origin = n * kBlockN + threadIdx.x % 4 * 2;
  VisibleColumns columns;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int position = tile.key + row + 8 * i;
    columns.low[i] = position - window + 1 - origin;
    columns.high[i] =
        (sequences.causal ? min(tile.seqlen_k, position + 1) : tile.seqlen_k) - origin;
  }
  mask_after(s, columns.high);
  if (window > 0) mask_before(s, columns.low);
}

// The largest score of the two rows.
__device__ __forceinline__ float largest_score(const float* s) {
  float maximum[2];
  row_maxima(s, maximum);
  return max_nan(maximum[0], maximum[1]);
}

// The same of those that are present.
__device__ __forceinline__ float largest_present(const Tile& tile, int row, const float* s) {
  float maximum[2];
  row_maxima(s, maximum);
  float result = -INFINITY;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    if (present(tile, row + 8 * i)) result = max_nan(result, maximum[i]);
  }
  return result;
}

// Four column pairs of four lanes, transposed, so that a lane has 16 bytes that lie together.
__device__ __forceinline__ uint4 gather_columns(std::uint32_t a, std::uint32_t b, std::uint32_t c,
                                                std::uint32_t d) {
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
template <typename T, int kHeadDim>
__device__ __forceinline__ void store_rows(const KernelParams& p, const Tile& tile, int first_row,
                                           const RunningSoftmax& softmax, const float* out) {
  T* const base = static_cast<T*>(p.out) + tile.batch * p.out_stride[0] +
                  tile.head * p.out_stride[2] + threadIdx.x % 4 * 8;
  T* target[2];
  bool stored[2];
  float inverse[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int row = first_row + 8 * i;
    target[i] = base + (tile.q_row + row) * p.out_stride[1];
    stored[i] = present(tile, row);
    float sum = quad_sum(softmax.sum[i]);
    float weight = 1;  // of the output before the sink
    const bool seen = softmax.reference[i] != -INFINITY;
    float reference = seen ? softmax.reference[i] * p.softmax_scale : -INFINITY;
    if (p.sinks != nullptr) {
      const float sink = p.sinks[tile.head];
      const float both = max_nan(reference, sink);
      const float base = both == -INFINITY ? 0.0f : both;
      weight = exp2_approx((reference - base) * kLog2e);
      sum = sum * weight + exp2_approx((sink - base) * kLog2e);
      reference = both;
    }
    inverse[i] = sum == 0 ? 0.0f : weight / sum;
    if (p.lse != nullptr && stored[i] && threadIdx.x % 4 == 0) {
      p.lse[tile.batch * p.lse_stride[0] + tile.head * p.lse_stride[1] +
            (tile.q_row + row) * p.lse_stride[2]] = reference + logf(sum);
    }
  }
  // Both rows beside each other: the exchanges of one wait while those of the other go on.
#pragma unroll
  for (int k = 0; k < kHeadDim / 32; ++k) {
    uint4 columns[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float* o = &out[16 * k + 2 * i];
      const auto packed = [&](int c) {
        return pack<T>(o[4 * c] * inverse[i], o[4 * c + 1] * inverse[i]);
      };
      columns[i] = gather_columns(packed(0), packed(1), packed(2), packed(3));
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (stored[i]) *reinterpret_cast<uint4*>(target[i] + 32 * k) = columns[i];
    }
  }
}

}  // namespace bsfa::cuda::sm90
