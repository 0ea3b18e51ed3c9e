#pragma once

#include <cstdint>
#include <vector>

#include "core/selection.hpp"

// The sampled selector in fp64, in its plainest form.

namespace bsfa {

// Of one query block and head: its visible blocks, of which the first is column `first`.
struct OracleMasses {
  std::int64_t first = 0;
  std::vector<double> mass;          // the mean share of the rows that see anything
  std::vector<std::uint8_t> always;  // always kept
};

// `i` is absolute. precision: of the products' operands.
OracleMasses oracle_masses(const SelectionProblem& problem, std::int64_t sequence,
                           std::int64_t head, std::int64_t i, DType precision);

Status plan_oracle_selection(const SelectionProblem& problem, SelectionPlan* plan);
Status run_oracle_selection(const SelectionProblem& problem);

}  // namespace bsfa
