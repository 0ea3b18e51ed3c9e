#include "core/threshold_metadata.hpp"

#include <algorithm>
#include <cmath>
#include <utility>

#include "bsfa/limits.hpp"
#include "bsfa/text.hpp"
#include "core/fingerprint.hpp"
#include "core/gate.hpp"
#include "core/status.hpp"

namespace bsfa {
namespace {

constexpr std::int64_t kMaxSamples = std::int64_t{1} << 40;  // so that merging cannot overflow

bool gate_side(std::int64_t side) { return side == 64 || side == 128; }

}  // namespace

std::string list_text(const std::vector<std::int64_t>& values) {
  constexpr std::size_t kShown = 32;
  std::string result;
  for (std::size_t n = 0; n < std::min(values.size(), kShown); ++n) {
    result += n > 0 ? ", " : "";
    result += std::to_string(values[n]);
  }
  if (values.size() > kShown) result += text(", ... (", values.size(), " in all)");
  return result;
}

Status check_calibration_metadata(const ThresholdMetadata& metadata) {
  const std::vector<std::int64_t>& budgets = metadata.budgets;
  if (budgets.empty()) return invalid_argument("budgets is empty; expected at least one");
  if (budgets.size() > kMaxBudgets) {
    return invalid_argument("budgets has ", budgets.size(), " entries; accepted: up to ",
                            kMaxBudgets);
  }
  for (std::size_t n = 0; n < budgets.size(); ++n) {
    if (budgets[n] < 1) {
      return invalid_argument("budgets holds ", budgets[n], "; accepted: 1 or more");
    }
    if (n > 0 && budgets[n] <= budgets[n - 1]) {
      return invalid_argument("budgets has ", budgets[n], " after ", budgets[n - 1],
                              "; expected ascending numbers");
    }
  }
  if (!gate_side(metadata.block.q)) {
    return invalid_argument("q_block is ", metadata.block.q, "; accepted: 64, 128");
  }
  if (!gate_side(metadata.block.kv)) {
    return invalid_argument("kv_block is ", metadata.block.kv, "; accepted: 64, 128");
  }
  if (!(std::isfinite(metadata.softmax_scale) && metadata.softmax_scale > 0)) {
    return invalid_argument("softmax_scale is ", metadata.softmax_scale,
                            "; accepted: a finite number above 0");
  }
  // A name that C would cut short is not the name, and JSON holds nothing but UTF-8.
  for (const auto& [field, name] :
       {std::pair{"model", &metadata.model}, std::pair{"producer", &metadata.producer}}) {
    if (!is_text(*name)) {
      return invalid_argument(field, " is ", quote(*name), "; accepted: UTF-8 text without NUL");
    }
  }
  if (metadata.recommended_budget &&
      std::find(budgets.begin(), budgets.end(), *metadata.recommended_budget) == budgets.end()) {
    return invalid_argument("recommended_budget is ", *metadata.recommended_budget,
                            "; accepted: one of the budgets ", list_text(budgets));
  }
  return check_fingerprint(metadata.fingerprint);
}

Status check_threshold_metadata(const ThresholdMetadata& metadata) {
  BSFA_RETURN_IF_ERROR(check_calibration_metadata(metadata));
  if (metadata.max_seqlen < 1) {
    return invalid_argument("max_seqlen is ", metadata.max_seqlen, "; accepted: 1 or more");
  }
  if (metadata.num_samples < 0 || metadata.num_samples > kMaxSamples) {
    return invalid_argument("num_samples is ", metadata.num_samples, "; accepted: 0 to ",
                            kMaxSamples);
  }
  return {};
}

std::int64_t num_q_blocks_of(std::int64_t seqlen, BlockShape block) {
  // Without adding to seqlen, which may be the largest number there is.
  return seqlen / block.q + (seqlen % block.q != 0 ? 1 : 0);
}

}  // namespace bsfa
