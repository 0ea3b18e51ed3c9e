#pragma once

#include <string>

#include "bsfa/attention.hpp"
#include "bsfa/executor.hpp"
#include "support/attention_case.hpp"

namespace bsfa::testing {

// Runs the case on a backend with a workspace of exactly the planned size between guards. Returns
// what went wrong ("" if nothing): a refusal, or a write outside the workspace or the outputs.
std::string run_case(AttentionData& data, const std::string& backend, Executor* executor = nullptr);

// The results of `data` against the fp64 oracle, empty if they agree:
// - block maxima within the rounding band, counts and mask consistent with each other;
// - the kept mask exact wherever the maximum is further from the threshold than the band, or, of the
//   policies that look at rows, wherever the oracle says that it is decided;
// - given that mask, in every tile of 64 rows: |out - ref64| <= factor |plain - ref64| + atol,
// `plain`
//   being a plain attention in the precision of the call.
// The message gives coordinates. `has_float16_unit`: whether fp16 is multiplied as such.
std::string compare_with_oracle(AttentionData& data, bool has_float16_unit, double factor = 2);

}  // namespace bsfa::testing
