#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "bsfa/selection.hpp"
#include "support/attention_case.hpp"

namespace bsfa::testing {

// A call of the sampled selector on the data of an attention case: its results, by value.
struct SelectionCase {
  explicit SelectionCase(AttentionData& data, SampledSelector selector = {},
                         std::int64_t stride = 0);

  // Views of everything; poisons the results.
  SelectBlocksParams params();

  // The blocks of a list.
  std::vector<std::int32_t> list(std::int64_t sequence, std::int64_t head, std::int64_t row) const;

  AttentionData& data;
  SampledSelector selector;
  std::int64_t stride;  // of the lists; 0 given: all blocks
  std::vector<std::int32_t> indices, counts;
  std::vector<float> left_out;
};

// Runs the selector on host memory; the message of an error, else "".
std::string run_selection(SelectionCase& call, const std::string& backend);

// Compares the lists of a case with what the definition says of the oracle's masses: a block may
// only be chosen otherwise if its mass is within a thousandth of the level or of what decides
// (bfloat16 and float16 scores of a backend are rounded after the sum, not before). Not for
// `previous`. What is wrong, or "".
std::string compare_with_definition(const SelectionCase& call);

}  // namespace bsfa::testing
