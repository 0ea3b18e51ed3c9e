#include "calibration/select_thresholds.hpp"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <vector>

#include "bsfa/limits.hpp"
#include "core/executor.hpp"
#include "core/gate.hpp"
#include "core/memory.hpp"
#include "core/status.hpp"
#include "core/threshold_metadata.hpp"

namespace bsfa {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

template <typename T>
Status check_table(const char* name, const StridedView<T, 3>& view) {
  BSFA_RETURN_IF_ERROR(check_view(memory_of(name, view)));
  const bool empty = std::count(view.shape, view.shape + 3, 0) > 0;
  if (!empty && !view) return invalid_argument(name, ".data is null");
  return {};
}

Status check_extent(const char* what, std::int64_t value, std::int64_t most) {
  if (value >= 0 && value <= most) return {};
  return invalid_argument(what, " is ", value, "; accepted: 0 to ", most);
}

// One row of maxima: the candidates gathered, or the verdict that it is not finite.
bool gather(const SelectThresholdsParams& params, const float* row, std::int64_t stride,
            BlockRange diagonal, std::vector<float>* candidates) {
  std::int64_t first = 0;
  std::int64_t end = params.block_max.shape[2];
  while (first < end && row[first * stride] == -kInfinity) ++first;
  while (end > first && row[(end - 1) * stride] == -kInfinity) --end;
  candidates->clear();
  for (std::int64_t column = first; column < end; ++column) {
    const float value = row[column * stride];
    if (!std::isfinite(value)) return false;
    if (!diagonal.contains(params.first_kv_block + column)) candidates->push_back(value);
  }
  return true;
}

// All budgets of one row. From the largest budget down, each partition stays within the last one.
void select_row(const SelectThresholdsParams& params, std::vector<float>* candidates, bool finite,
                float* to, std::int64_t stride) {
  auto end = candidates->end();
  for (std::int64_t n = params.num_budgets - 1; n >= 0; --n) {
    const std::int64_t budget = params.budgets[n];
    float& threshold = to[n * stride];
    if (!finite) {
      threshold = std::numeric_limits<float>::quiet_NaN();
    } else if (static_cast<std::int64_t>(candidates->size()) <= budget) {
      threshold = -kInfinity;
    } else {
      const auto next = candidates->begin() + budget;  // the (budget+1)-th largest goes here
      std::nth_element(candidates->begin(), next, end, std::greater<float>());
      const float last = *std::min_element(candidates->begin(), next);
      threshold = static_cast<float>((static_cast<double>(last) + static_cast<double>(*next)) / 2);
      end = next;
    }
  }
}

}  // namespace

Status check_select_thresholds(const SelectThresholdsParams& params) {
  if (params.num_budgets < 1 || params.budgets == nullptr || params.num_budgets > kMaxBudgets) {
    return invalid_argument("budgets is ", params.budgets == nullptr ? "null" : "given", " with ",
                            params.num_budgets, " entries; accepted: 1 to ", kMaxBudgets);
  }
  const Memory budgets = memory_of("budgets", params.budgets, params.num_budgets);
  BSFA_RETURN_IF_ERROR(check_view(budgets));
  ThresholdMetadata metadata;
  metadata.budgets.assign(params.budgets, params.budgets + params.num_budgets);
  metadata.block = params.block;
  metadata.softmax_scale = 1;
  BSFA_RETURN_IF_ERROR(check_calibration_metadata(metadata));
  BSFA_RETURN_IF_ERROR(check_table("block_max", params.block_max));
  BSFA_RETURN_IF_ERROR(check_table("thresholds", params.thresholds));
  const std::int64_t* shape = params.block_max.shape;
  const std::int64_t expected[3] = {params.num_budgets, shape[0], shape[1]};
  if (!std::equal(expected, expected + 3, params.thresholds.shape)) {
    return invalid_argument("thresholds has shape ", shape_text(params.thresholds.shape, 3),
                            "; expected [", expected[0], " budgets, ", expected[1], " heads, ",
                            expected[2], " query blocks]");
  }
  BSFA_RETURN_IF_ERROR(check_extent("the heads axis of block_max", shape[0], kMaxHeads));
  const std::int64_t q_blocks = kMaxTokens / params.block.q;
  const std::int64_t kv_blocks = kMaxTokens / params.block.kv;
  BSFA_RETURN_IF_ERROR(check_extent("the query block axis of block_max", shape[1], q_blocks));
  BSFA_RETURN_IF_ERROR(check_extent("the key/value block axis of block_max", shape[2], kv_blocks));
  BSFA_RETURN_IF_ERROR(check_extent("first_q_block", params.first_q_block, q_blocks));
  BSFA_RETURN_IF_ERROR(check_extent("first_kv_block", params.first_kv_block, kv_blocks));
  const Memory outputs[] = {memory_of("thresholds", params.thresholds)};
  BSFA_RETURN_IF_ERROR(check_no_self_overlap(outputs[0]));
  const Memory inputs[] = {memory_of("block_max", params.block_max), budgets};
  BSFA_RETURN_IF_ERROR(check_no_overlap(outputs, inputs));
  if (params.device.type == DeviceType::kCpu && params.executor != nullptr) {
    return check_workers(*params.executor);
  }
  return {};
}

void select_thresholds_on_host(const SelectThresholdsParams& params) {
  const std::int64_t heads = params.block_max.shape[0];
  const std::int64_t rows = params.block_max.shape[1];
  const int workers = params.executor != nullptr ? params.executor->max_workers() : 1;
  std::vector<std::vector<float>> scratch(static_cast<std::size_t>(workers));
  for (auto& candidates : scratch) {
    candidates.reserve(static_cast<std::size_t>(params.block_max.shape[2]));
  }
  // The last rows see the most columns and come first.
  const auto select = [&](std::int64_t task, int worker) {
    const std::int64_t head = task % heads;
    const std::int64_t i = rows - 1 - task / heads;
    const auto& from = params.block_max;
    const auto& to = params.thresholds;
    std::vector<float>& candidates = scratch[static_cast<std::size_t>(worker)];
    const bool finite =
        gather(params, from.data + head * from.stride[0] + i * from.stride[1], from.stride[2],
               always_kept_range(params.first_q_block + i, params.block), &candidates);
    select_row(params, &candidates, finite, to.data + head * to.stride[1] + i * to.stride[2],
               to.stride[0]);
  };
  const std::int64_t tasks = heads * rows;
  if (params.executor != nullptr) {
    params.executor->for_each(tasks, select);
  } else {
    for (std::int64_t task = 0; task < tasks; ++task) select(task, 0);
  }
}

}  // namespace bsfa
