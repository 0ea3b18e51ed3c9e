#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "bsfa/selection.hpp"
#include "core/gate.hpp"
#include "core/geometry.hpp"
#include "core/host_device.hpp"
#include "core/problem.hpp"

// The sampled selector, written once: which rows are scored, how masses are counted, what is always
// kept, and what follows from that. docs/method.md, "Sampled selection".

namespace bsfa {

// Rows that are scored of a query block of which `present` are there.
BSFA_HOST_DEVICE constexpr int sampled_rows(int present, int rows) {
  return present < rows ? present : rows;
}

// The t-th of them, counted from the first that is there.
BSFA_HOST_DEVICE constexpr int sampled_row(int present, int rows, int t) {
  return (t + 1) * present / sampled_rows(present, rows) - 1;
}

// Masses are counted in units of 2^-30, so that their sums are exact and in no order.
inline constexpr std::uint32_t kMassUnits = std::uint32_t{1} << 30;

// The floor in these units, of which there is at least one: a block without mass is not kept for it.
std::uint32_t floor_units(float floor);

// Blocks that are always kept, as far as the query block sees them.
BSFA_HOST_DEVICE constexpr bool selector_keeps(std::int64_t sink_blocks, std::int64_t local_blocks,
                                               std::int64_t i, std::int64_t j, BlockShape block) {
  const BlockRange diagonal = always_kept_range(i, block);
  return j < sink_blocks || (j >= diagonal.begin - local_blocks && j < diagonal.end);
}

// SelectBlocksParams after validation. Members that are not looked at are as of a dense call in
// which v is k and out is of q's shape, so that what backends ask of a Problem holds.
struct SelectionProblem : Problem {
  SampledSelector selector;
  std::int32_t* indices = nullptr;
  std::int32_t* counts = nullptr;
  std::int64_t stride = 0;
  StridedView<float, 3> left_out;

  // Of a (sequence, head) and a row of the lists.
  std::int64_t list(std::int64_t sequence, std::int64_t head, std::int64_t row) const {
    return (sequence * num_heads_q + head) * q_blocks + row;
  }
};

Status make_selection_problem(const SelectBlocksParams& params, SelectionProblem* problem);

// What a plan does not look at: pointers, and what overlaps.
Status check_selection_memory(const SelectionProblem& problem, std::size_t workspace_bytes);

// The choice of a query block by itself; blocks count from the first that it sees.
struct BlockChoice {
  std::vector<std::uint8_t> kept;
  std::uint64_t kept_mass = 0;
  std::uint64_t total_mass = 0;
};

// `masses`, in units, and `always` of each visible block.
BlockChoice choose_blocks(const SampledSelector& selector, std::int64_t stride,
                          const std::vector<std::uint32_t>& masses,
                          const std::vector<std::uint8_t>& always);

// Adds what the query block before chose, `before` of each of these blocks, as far as there is room.
void add_previous(const std::vector<std::uint32_t>& masses, const std::vector<std::uint8_t>& before,
                  std::int64_t stride, BlockChoice* choice);

// Writes the list of a query block and its left_out; `first` is the column of the first block.
void write_choice(const SelectionProblem& problem, std::int64_t sequence, std::int64_t head,
                  std::int64_t row, std::int64_t first, const BlockChoice& choice);

}  // namespace bsfa
