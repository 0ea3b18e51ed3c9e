#pragma once

#include <cstdint>

#include "bsfa/attention.hpp"
#include "core/gate.hpp"
#include "core/host_device.hpp"

// Which rows and keys a sequence has, where they stand, and which blocks see which. What the inner
// loops ask is a template over the integer, so that a kernel stays in 32 bits.

namespace bsfa {

// Everything about the sequences of a call; trivially copyable into a kernel's parameters.
struct SequenceLayout {
  std::int64_t num_sequences = 0;
  std::int64_t max_seqlen_q = 0;
  std::int64_t max_seqlen_k = 0;
  std::int64_t q_offset = 0;  // used if has_q_offset and q_offsets == nullptr
  std::int64_t kv_offset = 0;
  std::int64_t window = 0;  // tokens; 0: none
  BlockShape block;
  bool causal = false;
  bool packed = false;        // rows of all sequences follow each other in batch 0
  bool has_q_offset = false;  // false: bottom-right aligned if causal, else 0
  const std::int32_t* cu_seqlens_q = nullptr;
  const std::int32_t* cu_seqlens_k = nullptr;
  const std::int32_t* seqused_k = nullptr;
  const std::int32_t* leftpad_k = nullptr;
  const std::int32_t* q_offsets = nullptr;
};

// One sequence. Query row r in [0, seqlen_q) is tensor row q_begin + r of batch entry `batch` and
// stands at position q_offset + r; key c in [0, seqlen_k) is tensor row k_begin + c and stands at
// kv_offset + c.
struct Sequence {
  std::int64_t batch = 0;
  std::int64_t q_begin = 0;
  std::int64_t k_begin = 0;
  std::int64_t seqlen_q = 0;
  std::int64_t seqlen_k = 0;
  std::int64_t q_offset = 0;
};

BSFA_HOST_DEVICE constexpr Sequence sequence_at(const SequenceLayout& layout, std::int64_t index) {
  Sequence s;
  if (layout.packed) {
    s.q_begin = layout.cu_seqlens_q[index];
    s.k_begin = layout.cu_seqlens_k[index];
    s.seqlen_q = layout.cu_seqlens_q[index + 1] - s.q_begin;
    s.seqlen_k = layout.cu_seqlens_k[index + 1] - s.k_begin;
  } else {
    s.batch = index;
    s.k_begin = layout.leftpad_k != nullptr ? layout.leftpad_k[index] : 0;
    s.seqlen_q = layout.max_seqlen_q;
    s.seqlen_k =
        layout.seqused_k != nullptr ? layout.seqused_k[index] : layout.max_seqlen_k - s.k_begin;
  }
  if (layout.q_offsets != nullptr) {
    s.q_offset = layout.q_offsets[index];
  } else if (layout.has_q_offset) {
    s.q_offset = layout.q_offset;
  } else {
    s.q_offset = layout.causal ? s.seqlen_k - s.seqlen_q : 0;
  }
  return s;
}

// The query rows of a packed batch of `total` that no sequence has: those after the last.
BSFA_HOST_DEVICE constexpr BlockRange rows_of_nobody(const SequenceLayout& layout,
                                                     std::int64_t total) {
  if (!layout.packed) return {};
  return {layout.cu_seqlens_q[layout.num_sequences], total};
}

// The gate blocks (absolute) that the query rows of a sequence touch.
BSFA_HOST_DEVICE constexpr BlockRange q_block_range(const Sequence& s, BlockShape block) {
  if (s.seqlen_q <= 0) return {};
  return {floor_div(s.q_offset, block.q), floor_div(s.q_offset + s.seqlen_q - 1, block.q) + 1};
}

// The rows [begin, end) of query block i that are present in this call.
BSFA_HOST_DEVICE constexpr BlockRange q_block_rows(const Sequence& s, std::int64_t i,
                                                   BlockShape block) {
  return intersect({i * block.q - s.q_offset, (i + 1) * block.q - s.q_offset}, {0, s.seqlen_q});
}

// Numbers [begin, end).
template <typename Int>
struct Span {
  Int begin;
  Int end;

  BSFA_HOST_DEVICE constexpr bool contains(Int n) const { return n >= begin && n < end; }
};

// The smaller one. nvcc makes the best of its own function.
template <typename Int>
BSFA_HOST_DEVICE constexpr Int smaller(Int a, Int b) {
#if defined(__CUDA_ARCH__)
  return min(a, b);
#else
  return a < b ? a : b;
#endif
}

// n >> kLog2<kSide> is floor(n / kSide), of a negative n too.
template <int kSide>
inline constexpr int kLog2 = 1 + kLog2<kSide / 2>;
template <>
inline constexpr int kLog2<1> = 0;

// The mask. The row `row` rows after the one at whose position `key` stands (whether that key
// exists or not) sees the keys from row_begin to before row_end. The first may lie before key 0,
// and the second before the first: then it sees nothing. (References, so that a kernel loads what
// the mask does not need only where it does.)
template <typename Int>
BSFA_HOST_DEVICE constexpr Int row_begin(const Int& key, const Int& row, const Int& window) {
  return window > 0 ? key + row - window + 1 : 0;
}

template <typename Int>
BSFA_HOST_DEVICE constexpr Int row_end(const Int& key, const Int& row, const Int& seqlen_k,
                                       const bool& causal) {
  return causal ? smaller(seqlen_k, key + row + 1) : seqlen_k;
}

// The blocks of kSide keys, counted from key 0, that all of `rows` rows see whole, the first of
// them at the position of `key`: from whole_begin to before whole_end, as above.
template <int kSide, typename Int>
BSFA_HOST_DEVICE constexpr Int whole_begin(const Int& key, Int rows, const Int& window) {
  static_assert(kSide == 1 << kLog2<kSide>, "blocks are powers of two");
  // The last row begins last: with row_begin(key, rows - 1, window).
  const Int begin = window > 0 ? key + rows - window : 0;
  return (begin + kSide - 1) >> kLog2<kSide>;
}

template <int kSide, typename Int>
BSFA_HOST_DEVICE constexpr Int whole_end(const Int& key, const Int& seqlen_k, const bool& causal) {
  static_assert(kSide == 1 << kLog2<kSide>, "blocks are powers of two");
  return row_end(key, Int{0}, seqlen_k, causal) >> kLog2<kSide>;
}

template <int kSide, typename Int>
BSFA_HOST_DEVICE constexpr Span<Int> whole_blocks(const Int& key, Int rows, const Int& seqlen_k,
                                                  const bool& causal, const Int& window) {
  return {whole_begin<kSide>(key, rows, window), whole_end<kSide>(key, seqlen_k, causal)};
}

// The query block that every row of a statistic is relative to.
BSFA_HOST_DEVICE constexpr std::int64_t first_q_block(const Sequence& s, BlockShape block) {
  return floor_div(s.q_offset, block.q);
}

// The keys [begin, end) that row r sees: the mask without keys that do not exist.
BSFA_HOST_DEVICE constexpr BlockRange visible_keys(const SequenceLayout& layout, const Sequence& s,
                                                   std::int64_t row) {
  const std::int64_t key = s.q_offset + row - layout.kv_offset;
  BlockRange keys{0, s.seqlen_k};
  if (layout.causal) keys = intersect(keys, {0, key + 1});
  if (layout.window > 0) keys = intersect(keys, {key - layout.window + 1, s.seqlen_k});
  return keys;
}

// The key/value blocks (absolute) of which query block i sees anything. Every block between the
// first and the last is visible: neighbouring rows see neighbouring ranges.
BSFA_HOST_DEVICE constexpr BlockRange visible_blocks(const SequenceLayout& layout,
                                                     const Sequence& s, std::int64_t i) {
  const BlockRange rows = q_block_rows(s, i, layout.block);
  if (rows.size() == 0) return {};
  const std::int64_t first_key = visible_keys(layout, s, rows.begin).begin;
  const std::int64_t end_key = visible_keys(layout, s, rows.end - 1).end;
  if (end_key <= first_key) return {};
  const std::int64_t base = layout.kv_offset / layout.block.kv;
  return {base + first_key / layout.block.kv, base + ceil_div(end_key, layout.block.kv)};
}

}  // namespace bsfa
