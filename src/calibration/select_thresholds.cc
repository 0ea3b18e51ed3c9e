#include "calibration/select_thresholds.hpp"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <vector>

#include "core/gate.hpp"
#include "core/status.hpp"
#include "core/threshold_metadata.hpp"

namespace bsfa {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

Status check_view(const char* name, const void* data, const std::int64_t* shape,
                  const std::int64_t* stride) {
  std::int64_t elements = 1;
  for (int axis = 0; axis < 3; ++axis) {
    if (shape[axis] < 0 || stride[axis] < 0) {
      return invalid_argument(name, " has extent ", shape[axis], " and stride ", stride[axis],
                              " on axis ", axis, "; accepted: 0 or more");
    }
    elements *= shape[axis] > 0 ? 1 : 0;
  }
  if (elements > 0 && data == nullptr) return invalid_argument(name, ".data is null");
  return {};
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
  if (params.num_budgets < 1 || params.budgets == nullptr) {
    return invalid_argument("budgets is ", params.budgets == nullptr ? "null" : "given", " with ",
                            params.num_budgets, " entries; expected at least one");
  }
  ThresholdMetadata metadata;
  metadata.budgets.assign(params.budgets, params.budgets + params.num_budgets);
  metadata.block = params.block;
  metadata.softmax_scale = 1;
  BSFA_RETURN_IF_ERROR(check_calibration_metadata(metadata));
  BSFA_RETURN_IF_ERROR(check_view("block_max", params.block_max.data, params.block_max.shape,
                                  params.block_max.stride));
  BSFA_RETURN_IF_ERROR(check_view("thresholds", params.thresholds.data, params.thresholds.shape,
                                  params.thresholds.stride));
  const std::int64_t expected[3] = {params.num_budgets, params.block_max.shape[0],
                                    params.block_max.shape[1]};
  if (!std::equal(expected, expected + 3, params.thresholds.shape)) {
    const std::int64_t* shape = params.thresholds.shape;
    return invalid_argument("thresholds has shape [", shape[0], ", ", shape[1], ", ", shape[2],
                            "]; expected [", expected[0], " budgets, ", expected[1], " heads, ",
                            expected[2], " query blocks]");
  }
  if (params.first_q_block < 0 || params.first_kv_block < 0) {
    return invalid_argument("first_q_block and first_kv_block are ", params.first_q_block, " and ",
                            params.first_kv_block, "; accepted: 0 or more");
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
