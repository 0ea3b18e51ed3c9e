#pragma once

#include <cstdint>
#include <vector>

#include "core/problem.hpp"

// The policies that look at the rows of a block, in fp64.

namespace bsfa {

// One query block: rows present x key/value blocks of the sequence.
struct RowScores {
  std::int64_t rows = 0;
  std::int64_t kv_blocks = 0;
  std::vector<double> max;      // largest score that the row sees, NaN left out; -inf: none
  std::vector<double> lse;      // log-sum-exp of the scores that it sees, NaN if one is; -inf: none
  std::vector<double> error;    // how far a backend's scores may be from these
  std::vector<std::uint8_t> has_nan;  // [kv_blocks] whether any row sees a NaN

  std::size_t at(std::int64_t row, std::int64_t column) const {
    return static_cast<std::size_t>(row * kv_blocks + column);
  }
};

// What is decided of a block.
struct RowDecision {
  bool keep = false;
  bool undecided = false;  // so close that a backend's rounding may decide otherwise
};

// For each block of `visible` in ascending order; `listed` [kv_blocks] says which are visited. A
// block that is not is not kept. i: the query block; first_kv: the block of column 0.
std::vector<RowDecision> mass_decisions(const Policy& policy, BlockShape block, std::int64_t i,
                                        BlockRange visible, std::int64_t first_kv,
                                        const std::vector<std::uint8_t>& listed,
                                        const RowScores& scores);
std::vector<RowDecision> skip_softmax_decisions(const Policy& policy, BlockShape block,
                                                std::int64_t i, BlockRange visible,
                                                std::int64_t first_kv, const RowScores& scores);

}  // namespace bsfa
