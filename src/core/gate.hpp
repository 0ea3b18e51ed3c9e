#pragma once

#include <cstdint>

#include "bsfa/attention.hpp"
#include "core/host_device.hpp"

// The gate, written once: every backend, the oracle and the calibrator call these functions.

namespace bsfa {

// Blocks [begin, end) of one axis; empty if end <= begin.
struct BlockRange {
  std::int64_t begin = 0;
  std::int64_t end = 0;

  BSFA_HOST_DEVICE constexpr std::int64_t size() const { return end > begin ? end - begin : 0; }
  BSFA_HOST_DEVICE constexpr bool contains(std::int64_t block) const {
    return block >= begin && block < end;
  }
};

BSFA_HOST_DEVICE constexpr BlockRange intersect(BlockRange a, BlockRange b) {
  return {a.begin > b.begin ? a.begin : b.begin, a.end < b.end ? a.end : b.end};
}

BSFA_HOST_DEVICE constexpr std::int64_t floor_div(std::int64_t a, std::int64_t b) {
  return a / b - (a % b != 0 && (a < 0) != (b < 0) ? 1 : 0);
}

BSFA_HOST_DEVICE constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) {
  return -floor_div(-a, b);
}

// The key/value blocks whose tokens meet those of query block i: the diagonal.
BSFA_HOST_DEVICE constexpr BlockRange always_kept_range(std::int64_t i, BlockShape block) {
  return {floor_div(i * block.q, block.kv), ceil_div((i + 1) * block.q, block.kv)};
}

BSFA_HOST_DEVICE constexpr bool always_kept(std::int64_t i, std::int64_t j, BlockShape block) {
  return always_kept_range(i, block).contains(j);
}

// The comparison as it stands keeps a block whose maximum is NaN, so that the NaN is seen.
BSFA_HOST_DEVICE constexpr bool above_threshold(float block_max, float threshold) {
  return !(block_max < threshold);
}

BSFA_HOST_DEVICE constexpr bool keep_block(float block_max, float threshold, bool is_always_kept) {
  return is_always_kept || above_threshold(block_max, threshold);
}

// A table shorter than the sequence repeats its last entry.
BSFA_HOST_DEVICE constexpr std::int64_t threshold_index(std::int64_t i, std::int64_t num_q_blocks) {
  const std::int64_t last = num_q_blocks - 1;
  return i < 0 ? 0 : (i < last ? i : last);
}

// Baseline: the always-kept blocks and the window_blocks nearest before them.
BSFA_HOST_DEVICE constexpr BlockRange sliding_window_range(std::int64_t i,
                                                           std::int64_t window_blocks,
                                                           BlockShape block) {
  const BlockRange diagonal = always_kept_range(i, block);
  return {diagonal.begin - window_blocks, diagonal.end};
}

// The first key/value block of a sequence: what many heads rest on.
inline constexpr std::int64_t kSinkBlock = 0;

// The blocks that the mass policy always keeps, and that give each row its reference: the diagonal,
// so many before it, and the sink.
inline constexpr std::int64_t kMassLocalBlocks = 2;

BSFA_HOST_DEVICE constexpr bool in_mass_reference(std::int64_t i, std::int64_t j,
                                                  BlockShape block) {
  return j == kSinkBlock || sliding_window_range(i, kMassLocalBlocks, block).contains(j);
}

// The level of the mass policy for a query block that sees so many blocks.
inline constexpr float kMostMassLevel = 0.002f;

BSFA_HOST_DEVICE constexpr float mass_level(float c, std::int64_t visible_blocks) {
  const float level = c / static_cast<float>(visible_blocks);
  return level < kMostMassLevel ? level : kMostMassLevel;
}

// `mass`: the sum over the rows present, `rows` of them, of exp(largest score of the block -
// reference). Written so that a NaN keeps its block.
BSFA_HOST_DEVICE constexpr bool keep_mass(float mass, float level, std::int64_t rows) {
  return !(mass < level * static_cast<float>(rows));
}

// Skip-softmax keeps what every policy keeps, and the sink.
BSFA_HOST_DEVICE constexpr bool skip_softmax_always_keeps(std::int64_t i, std::int64_t j,
                                                          BlockShape block) {
  return j == kSinkBlock || always_kept(i, j, block);
}

}  // namespace bsfa
