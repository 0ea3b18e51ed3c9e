#pragma once

#include <cstdint>

#include "cuda/common/softmax.cuh"
#include "cuda/scheduler/tile.cuh"
#include "cuda/sm80/config.cuh"
#include "cuda/sm80/mma.cuh"
#include "cuda/sm80/tile_io.cuh"

// What one warp does with one block of 64 keys: scores, mask, probabilities, output.

namespace bsfa::cuda::sm80 {

// The rows of a warp in registers. A thread holds, of each 16-row tile t, rows lane / 4 (h = 0) and
// lane / 4 + 8 (h = 1), and of each group of 8 columns 2 * (lane % 4) and the one after.
template <typename T, typename C>
struct WarpState {
  static constexpr int kTiles = C::kTiles;
  float out[kTiles][C::kHeadDim / 8][4];
  float scores[kTiles][kBlockN / 8][4];
  std::uint32_t q[C::kHeld > 0 ? C::kHeld : 1][kTiles][4];  // the last steps of Q
  std::uint32_t probabilities[kTiles][kBlockN / 16]
                             [4];  // as the left operand of the product with V
  // Of the one row that this thread keeps for its group of four: that of tile lane / 2 % 2 (if
  // there is a second), half lane % 2.
  float maximum;  // as used in the exponents; unscaled
  float sum;

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int d = 0; d < C::kHeadDim / 8; ++d) {
#pragma unroll
        for (int e = 0; e < 4; ++e) out[t][d][e] = 0;
      }
    }
    maximum = -INFINITY;
    sum = 0;
  }
};

// Reduces a value of each row over the four threads that share the rows; each is left with the
// result of the row that it keeps.
template <int kTiles, typename Operation>
__device__ __forceinline__ float reduce_rows(const float (&values)[kTiles][2],
                                             const Operation& operation) {
  constexpr std::uint32_t kAll = 0xffffffffu;
  const int lane = threadIdx.x % 32;
  float halves[2];
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    if constexpr (kTiles == 2) {
      const bool second = lane & 2;
      halves[h] = operation(second ? values[1][h] : values[0][h],
                            __shfl_xor_sync(kAll, second ? values[0][h] : values[1][h], 2));
    } else {
      halves[h] = values[0][h];
    }
  }
  const bool second = lane & 1;
  float result = operation(second ? halves[1] : halves[0],
                           __shfl_xor_sync(kAll, second ? halves[0] : halves[1], 1));
  if constexpr (kTiles == 1) result = operation(result, __shfl_xor_sync(kAll, result, 2));
  return result;
}

// The value that the keeper of row (t, h) has.
__device__ __forceinline__ float of_row(float value, int t, int h) {
  return __shfl_sync(0xffffffffu, value, 2 * t + h, 4);
}

// Q of step d (16 columns). `q` is this lane's address: of row lane % 16, chunk lane / 16.
template <typename C>
__device__ __forceinline__ void load_q(std::uint32_t (&a)[C::kTiles][4], std::uint32_t q, int d) {
#pragma unroll
  for (int t = 0; t < C::kTiles; ++t) {
    load_matrices(a[t], (q ^ (d % 4 * 32)) + d / 4 * 128 + t * 16 * C::kRowBytes);
  }
}

// scores = Q K^T. `q` as above, `k` this lane's address: of row (lane % 8) + 8 * (lane / 16), chunk
// lane / 8 % 2 of K. The last C::kHeld steps of Q come from registers.
template <typename T, typename C>
__device__ __forceinline__ void compute_scores(WarpState<T, C>& w, std::uint32_t q,
                                               std::uint32_t k) {
#pragma unroll
  for (int t = 0; t < C::kTiles; ++t) {
#pragma unroll
    for (int c = 0; c < kBlockN / 8; ++c) {
#pragma unroll
      for (int e = 0; e < 4; ++e) w.scores[t][c][e] = 0;
    }
  }
  constexpr int kSteps = C::kHeadDim / 16;
#pragma unroll
  for (int d = 0; d < kSteps; ++d) {
    std::uint32_t loaded[C::kTiles][4];
    if (d < kSteps - C::kHeld) load_q<C>(loaded, q, d);
    const auto& a =
        d < kSteps - C::kHeld ? loaded : w.q[C::kHeld > 0 ? d - (kSteps - C::kHeld) : 0];
#pragma unroll
    for (int c = 0; c < kBlockN / 16; ++c) {
      std::uint32_t b[4];
      load_matrices(b, (k ^ (d % 4 * 32)) + d / 4 * 128 + c * 16 * C::kRowBytes);
#pragma unroll
      for (int t = 0; t < C::kTiles; ++t) {
        multiply_add<T>(w.scores[t][2 * c], a[t], b[0], b[1]);
        multiply_add<T>(w.scores[t][2 * c + 1], a[t], b[2], b[3]);
      }
    }
  }
}

// out += probabilities V. `v` is this lane's address: of row lane % 16, chunk lane / 16 of V.
//
// The columns that differ by 64 go together: they share an address, and no accumulator comes back
// before the product before it is through.
template <typename T, typename C>
__device__ __forceinline__ void accumulate_output(WarpState<T, C>& w, std::uint32_t v) {
#pragma unroll
  for (int low = 0; low < 4; ++low) {
    const std::uint32_t address = v ^ (low * 32);
#pragma unroll
    for (int c = 0; c < kBlockN / 16; ++c) {
#pragma unroll
      for (int d = low; d < C::kHeadDim / 16; d += 4) {
        std::uint32_t b[4];
        load_matrices_transposed(b, address + d / 4 * 128 + c * 16 * C::kRowBytes);
#pragma unroll
        for (int t = 0; t < C::kTiles; ++t) {
          multiply_add<T>(w.out[t][2 * d], w.probabilities[t][c], b[0], b[1]);
          multiply_add<T>(w.out[t][2 * d + 1], w.probabilities[t][c], b[2], b[3]);
        }
      }
    }
  }
}

// Sets what a row does not see to -inf; rows that are not present see nothing. `row0` is the tile
// row of this thread's first one, `column0` its first key of the block.
template <typename T, typename C>
__device__ __forceinline__ void mask_scores(WarpState<T, C>& w, const Tile& tile, bool causal,
                                            int window, int row0, int column0) {
#pragma unroll
  for (int t = 0; t < C::kTiles; ++t) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int row = row0 + t * 16 + h * 8;
      int end = row_end(tile.key, row, tile.seqlen_k, causal);
      const int begin = row_begin(tile.key, row, window);
      if (row < tile.row_begin || row >= tile.row_end) end = begin;
#pragma unroll
      for (int c = 0; c < kBlockN / 8; ++c) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int column = column0 + c * 8 + e;
          if (column < begin || column >= end) w.scores[t][c][2 * h + e] = -INFINITY;
        }
      }
    }
  }
}

// tanh, to a few units in the last place. Small: the Taylor series to x^9. Others: (1 - e) / (1 + e)
// with e = exp(-2 |x|), where what is subtracted from 1 is not close to it.
__device__ __forceinline__ float tanh_of(float x) {
  const float square = x * x;
  float series = 62.0f / 2835.0f;
  series = fmaf(series, square, -17.0f / 315.0f);
  series = fmaf(series, square, 2.0f / 15.0f);
  series = fmaf(series, square, -1.0f / 3.0f);
  series = fmaf(series * square, x, x);
  const float e = exp2_approx(fabsf(x) * (-2 * kLog2e));
  const float large = copysignf(__fdividef(1 - e, 1 + e), x);
  return fabsf(x) < 0.25f ? series : large;
}

// The softcap; `cap` in scores before the scale.
template <typename T, typename C>
__device__ __forceinline__ void cap_scores(WarpState<T, C>& w, float cap, float inverse_cap) {
#pragma unroll
  for (int t = 0; t < C::kTiles; ++t) {
#pragma unroll
    for (int c = 0; c < kBlockN / 8; ++c) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float& score = w.scores[t][c][i];
        score = cap * tanh_of(score * inverse_cap);
      }
    }
  }
}

// The maximum of the row that this thread keeps; NaN if one of its scores is.
template <typename T, typename C>
__device__ __forceinline__ float row_maximum(const WarpState<T, C>& w) {
  float maxima[C::kTiles][2];
#pragma unroll
  for (int t = 0; t < C::kTiles; ++t) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float m = max_nan(w.scores[t][0][2 * h], w.scores[t][0][2 * h + 1]);
#pragma unroll
      for (int c = 1; c < kBlockN / 8; ++c) {
        m = max_nan(m, max_nan(w.scores[t][c][2 * h], w.scores[t][c][2 * h + 1]));
      }
      maxima[t][h] = m;
    }
  }
  return reduce_rows(maxima, max_nan);
}

// probabilities = exp(scores - maximum), in 16 bits. `block_maximum` is of the row that this thread
// keeps; brings maximum, sum and out along.
template <typename T, typename C>
__device__ __forceinline__ void exponentiate(WarpState<T, C>& w, float block_maximum,
                                             float scale_log2, float far) {
  // -inf - -inf is NaN: a row that has seen nothing moves at every block, to no effect.
  const bool moves = !((block_maximum - w.maximum) * scale_log2 <= kSoftmaxSlack);
  if (__any_sync(0xffffffffu, moves || fabsf(w.maximum) >= far)) {
    const float now = moves ? block_maximum : w.maximum;
    const float base = now == -INFINITY ? 0.0f : now;
    const float factor = exp2_approx((w.maximum - base) * scale_log2);
    w.maximum = now;
    w.sum *= factor;
#pragma unroll
    for (int t = 0; t < C::kTiles; ++t) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const float row_factor = of_row(factor, t, h);
#pragma unroll
        for (int d = 0; d < C::kHeadDim / 8; ++d) {
          w.out[t][d][2 * h] *= row_factor;
          w.out[t][d][2 * h + 1] *= row_factor;
        }
      }
    }
    // Scores that are far from 0 are centred, see kFarExponent.
    const float centre = fabsf(now) >= far ? base : 0.0f;
#pragma unroll
    for (int t = 0; t < C::kTiles; ++t) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const float row_centre = of_row(centre, t, h);
#pragma unroll
        for (int c = 0; c < kBlockN / 8; ++c) {
          w.scores[t][c][2 * h] -= row_centre;
          w.scores[t][c][2 * h + 1] -= row_centre;
        }
      }
    }
  }
  // Nor is there one for a row that has seen nothing: its scores are -inf.
  const float shift = fabsf(w.maximum) >= far ? 0.0f : -w.maximum * scale_log2;
  float sums[C::kTiles][2];
#pragma unroll
  for (int t = 0; t < C::kTiles; ++t) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const float row_shift = of_row(shift, t, h);
      float sum = 0;
#pragma unroll
      for (int c = 0; c < kBlockN / 8; ++c) {
        const float p0 = exp2_approx(fmaf(w.scores[t][c][2 * h], scale_log2, row_shift));
        const float p1 = exp2_approx(fmaf(w.scores[t][c][2 * h + 1], scale_log2, row_shift));
        sum += p0 + p1;
        w.probabilities[t][c / 2][2 * (c % 2) + h] = pack<T>(p0, p1);
      }
      sums[t][h] = sum;
    }
  }
  w.sum += reduce_rows(sums, [](float a, float b) { return a + b; });
}

}  // namespace bsfa::cuda::sm80
