#pragma once

#include <cstdint>

// The boundary between the driver (attention.cc, compiled for the baseline) and the kernels, which
// are compiled once for each instruction set from kernels-inl.h. Only plain types cross it, and it
// defines no inline function: one compiled with wide instructions could otherwise be the copy that
// the linker keeps for everybody.
//
// A "word" is 32 bits of an operand: one fp32 number, or two consecutive bf16 numbers. All tiles
// and panels are made of words, so that a kernel is the same for both but for the multiply-add:
//   q tile   [rows][steps]       step = one word along head_dim
//   k panel  [steps][64 keys]
//   v panel  [key steps][dim]    fp32: 64 key steps; bf16: 32, each word holding two keys
// An AMX or NEON bf16 kernel would read the same panels.

namespace bsfa::cpu {

inline constexpr int kPanelKeys = 64;    // keys in a panel; a gate block is one or two
inline constexpr int kMaxRows = 128;     // query rows in a tile: at most a gate block
inline constexpr int kMaxLanes = 16;     // fp32 lanes of the widest vector
inline constexpr int kGroupPanels = 32;  // panels whose sums become one term of the total

// Rows of one head: row r starts at element r * stride of data. dtype: 0 fp32, 1 fp16, 2 bf16.
struct SourceRows {
  const void* data;
  std::int64_t stride;
  int dtype;
};

struct BlockStatistic {
  float max;  // over the rows, NaN entries left out; -inf if there are none
  bool has_nan;
};

// Memory that is wanted soon. The hardware's own prefetchers stop at each page, and a panel is
// several.
struct Upcoming {
  const char* begin[2];
  const char* end[2];  // == begin: nothing
};

// What the rows of a tile have accumulated, kMaxRows of each. Sums have two levels, so that they
// lose no more with the length than a sum of pairs would: a panel is summed on its own and added to
// the group under way; `carry` adds a group of kGroupPanels panels to the total.
struct SoftmaxState {
  float* reference;        // [rows] the score that weights are relative to; -inf: nothing seen
  float* subtract;         // [rows] the same, or 0 where it is -inf
  float* rescale;          // [rows] what the last softmax_step asks `out` and `sum` to shrink by
  float* sum;              // [rows][kMaxLanes] of the group: sums of the weights, one for each lane
  float* out;              // [rows][padded_dim_v] of the group: weighted values
  float* total_reference;  // [rows] the reference of the totals
  float* total_sum;        // [rows][kMaxLanes]
  float* total_out;        // [rows][padded_dim_v]
  std::int64_t padded_dim_v;
};

struct KernelSet {
  const char* name;
  int words_per_pair;  // words that hold two elements: 2 (fp32) or 1 (bf16)

  // Rows [0, rows) as words; elements are rounded to bf16 if asked (always for bf16 words).
  void (*pack_q)(const SourceRows& source, std::int64_t rows, std::int64_t dim, bool round_bf16,
                 void* words);
  // Keys at or past `keys` become zeros.
  void (*pack_k)(const SourceRows& source, std::int64_t keys, std::int64_t dim, bool round_bf16,
                 void* words);
  // Keys outside [first, last) become zeros, as do columns past dim. Returns whether any value was
  // NaN or infinite.
  bool (*pack_v)(const SourceRows& source, std::int64_t first, std::int64_t last, std::int64_t dim,
                 std::int64_t padded_dim, bool round_bf16, void* words);

  // scores[r][c] = q_r . k_c, not scaled, for rows [row_begin, row_end) and the 64 keys of a panel;
  // row_max of all kMaxRows rows (-inf outside the range). Meanwhile fetches what comes next into
  // the cache.
  BlockStatistic (*scores)(const void* q, const void* k, std::int64_t steps, int row_begin,
                           int row_end, const Upcoming& upcoming, float* scores, float* row_max);
  // Entries outside [lo[r], hi[r]) become -inf; the others are multiplied by `scale` and, with
  // softcap > 0, become softcap * tanh(score * scale / softcap). Renews row_max.
  BlockStatistic (*mask)(int row_begin, int row_end, const int* lo, const int* hi, float scale,
                         float softcap, float* scores, float* row_max);
  // The sum over the rows of exp2((m - reference) * scale_log2) * factor, m being the larger of
  // row_max and other_max (of all kMaxRows rows). Rows are added in an order that depends on nothing
  // else. A row whose m is -inf adds 0; another whose factor is not finite makes the sum infinite or
  // NaN.
  float (*mass)(int rows, const float* row_max, const float* other_max, float scale_log2,
                const float* reference, const float* factor);
  // sums[r] = the sum of exp2((scores - row_max) * scale_log2) over a panel; 0 where row_max is -inf.
  void (*weight_sums)(int rows, const float* scores, const float* row_max, float scale_log2,
                      float* sums);
  // Raises state.reference where row_max stands above it by more than a factor of 2 in the weights,
  // and fills state.rescale.
  void (*softmax_step)(int row_begin, int row_end, const float* row_max, float scale_log2,
                       const SoftmaxState& state);
  // out = out * rescale + exp2((scores - reference) * scale_log2) . v, and likewise the sum, over
  // the keys [key_begin, key_end) of the panel (the others have weight 0).
  void (*add_values)(int row_begin, int row_end, int key_begin, int key_end, const float* scores,
                     float scale_log2, const void* v, const SoftmaxState& state);
  // Adds the group's sums to the totals (`first`: these are still empty, whatever they hold); the
  // group keeps what rounding the totals lost.
  void (*carry)(int rows, bool first, float scale_log2, const SoftmaxState& state);
  // out / sum as dtype at data + r * stride, and the natural-log sum at lse + r * lse_stride if
  // lse is not null. A score is `scale` times what the scores were; `sink`: a further score in the
  // sum, or null.
  void (*finish)(int rows, std::int64_t dim, float scale, const SoftmaxState& state,
                 const float* sink, void* data, std::int64_t stride, int dtype, float* lse,
                 std::int64_t lse_stride);
};

namespace baseline {
extern const KernelSet kFloat32Kernels;
}
namespace avx2 {
extern const KernelSet kFloat32Kernels;
}
namespace avx512 {
extern const KernelSet kFloat32Kernels;
}
namespace avx512_bf16 {
extern const KernelSet kBFloat16Kernels;
}

}  // namespace bsfa::cpu
