#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "bsfa/attention.hpp"

namespace bsfa::testing {

// One attention call to be tested, by value: everything that its data is made from.
struct AttentionCase {
  // Shapes. Packed batches give a length for each sequence instead of batch and seqlen.
  std::int64_t batch = 1;
  std::int64_t seqlen_q = 128;
  std::int64_t seqlen_k = 128;
  std::vector<std::int32_t> seqlens_q;  // packed
  std::vector<std::int32_t> seqlens_k;
  std::vector<std::int32_t> leftpad_k;  // padded
  std::vector<std::int32_t> seqused_k;
  std::vector<std::int32_t> q_offsets;
  std::int64_t num_heads_q = 1;
  std::int64_t num_heads_kv = 1;
  std::int64_t head_dim = 64;
  std::int64_t head_dim_v = 0;  // 0: head_dim
  DType q_dtype = DType::kFloat32;
  DType kv_dtype = DType::kFloat32;
  bool heads_outside = false;    // [batch, heads, tokens, dim] in memory
  std::int64_t row_padding = 0;  // unused elements after each row of head_dim (NaN in inputs)

  bool causal = true;
  std::optional<std::int64_t> q_offset;
  std::int64_t kv_offset = 0;
  std::optional<std::int64_t> window;
  std::optional<float> softmax_scale;
  float softcap = 0;
  bool sinks = false;
  BlockShape block;
  ComputeType compute_type = ComputeType::kNative;

  PolicyKind policy = PolicyKind::kDense;
  double density = 0.5;            // kThreshold: about this share of the other blocks is kept
  std::int64_t window_blocks = 1;  // kSlidingWindow
  float mass_c = 0.1f;             // kMass
  float skip_lambda = 0.05f;       // kSkipSoftmax
  SkipOrder skip_order = SkipOrder::kAscending;
  double listed = 0;               // > 0: lists with about this share of all blocks, in any order
  bool lists_of_kv_heads = false;  // a list for each key/value head
  bool lists_by_counts = false;    // lists at a fixed stride, else at offsets
  float magnitude = 1;             // standard deviation of q
  float spread = 0;                // > 0: scores of each run of 64 keys are lowered by up to so much
  std::uint64_t seed = 1;
};

std::string describe(const AttentionCase& c);

// Memory for one tensor, with guards around it and a pattern wherever the view does not reach.
class Buffer {
 public:
  // A strided tensor of element size `size`; outer axes in the order given by `order` (indices of
  // axes 0..rank-1, outermost first), with `padding` elements after each innermost row.
  Buffer(const std::vector<std::int64_t>& shape, const std::vector<int>& order,
         std::int64_t padding, std::size_t size, std::uint8_t fill);

  void* data() { return bytes_.data() + kGuard; }
  const void* data() const { return bytes_.data() + kGuard; }
  const std::vector<std::int64_t>& shape() const { return shape_; }
  const std::vector<std::int64_t>& strides() const { return strides_; }
  std::size_t bytes() const { return bytes_.size() - 2 * kGuard; }

  // Whether every byte outside the view still has the fill.
  bool untouched_outside() const;

 private:
  static constexpr std::size_t kGuard = 256;
  std::vector<std::int64_t> shape_;
  std::vector<std::int64_t> strides_;
  std::size_t size_;
  std::uint8_t fill_;
  std::vector<std::uint8_t> bytes_;
};

// The data of a case: random inputs whose blocks differ in importance, NaN wherever no token is,
// poisoned outputs. Members may be changed before `params` is called.
class AttentionData {
 public:
  explicit AttentionData(const AttentionCase& c);

  // A view of everything, statistics included. Valid as long as this object.
  AttentionParams params();

  // Outputs and statistics back to poison.
  void poison();
  bool outputs_intact() const;

  // Lists as the case asks for, some of them empty and some of all blocks.
  void draw_lists();

  // Keys as the case's spread asks for.
  void spread_blocks();

  // Thresholds at the quantiles that the case asks for, from the oracle's block maxima.
  void calibrate();

  float get(const Buffer& buffer, DType dtype, std::int64_t b, std::int64_t t, std::int64_t h,
            std::int64_t d) const;
  void set(Buffer& buffer, DType dtype, std::int64_t b, std::int64_t t, std::int64_t h,
           std::int64_t d, float value);

  // Head 0 of sequence 0: q is `query` and k `keys[t]` in column 0, zeros elsewhere, so that a
  // score is one product.
  void set_products(float query, const std::vector<float>& keys);

  AttentionCase c;
  Buffer q, k, v, out, lse;
  std::vector<std::int32_t> cu_seqlens_q, cu_seqlens_k;
  std::vector<float> sinks;
  std::vector<float> thresholds;  // [num_sequences, heads, table_blocks]
  std::int64_t table_blocks = 1;
  BlockLists lists;
  std::vector<std::int32_t> list_indices, list_counts;
  std::vector<std::int64_t> list_offsets;
  std::int64_t num_sequences = 1;
  std::int64_t q_blocks = 0, kv_blocks = 0;
  std::vector<std::int64_t> kept_blocks, visible_blocks;
  std::vector<std::uint8_t> kept_mask;
  std::vector<float> block_max;
};

}  // namespace bsfa::testing
