#include "reference/row_policies.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/gate.hpp"

namespace bsfa {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// exp(a - b) and the weights that b is made of, as a backend computes them in fp32: each exponent
// is rounded in proportion to its size.
double rounding(double exponent) { return 0x1p-20 * (1 + std::abs(exponent)); }

// Log-sum-exp of some of a row's blocks, and how far a backend may be from it.
struct Reference {
  double lse = -kInfinity;
  double error = 0;
};

Reference reference_of(const RowScores& scores, std::int64_t row,
                       const std::vector<std::int64_t>& columns) {
  Reference reference;
  double maximum = -kInfinity;
  for (const std::int64_t column : columns) {
    const std::size_t cell = scores.at(row, column);
    if (std::isnan(scores.lse[cell])) return {scores.lse[cell], 0};
    maximum = std::max(maximum, scores.lse[cell]);
    reference.error = std::max(reference.error, scores.error[cell]);
  }
  if (maximum == -kInfinity) return reference;
  double sum = 0;
  for (const std::int64_t column : columns) {
    sum += std::exp(scores.lse[scores.at(row, column)] - maximum);
  }
  reference.lse = maximum + std::log(sum);
  return reference;
}

}  // namespace

std::vector<RowDecision> mass_decisions(const Policy& policy, BlockShape block, std::int64_t i,
                                        BlockRange visible, std::int64_t first_kv,
                                        const std::vector<std::uint8_t>& listed,
                                        const RowScores& scores) {
  std::vector<std::int64_t> always;  // columns
  for (std::int64_t j = visible.begin; j < visible.end; ++j) {
    const std::int64_t column = j - first_kv;
    if (in_mass_reference(i, j, block) && listed[static_cast<std::size_t>(column)] != 0) {
      always.push_back(column);
    }
  }
  std::vector<Reference> references;
  for (std::int64_t row = 0; row < scores.rows; ++row) {
    references.push_back(reference_of(scores, row, always));
  }
  const double level =
      std::min(double{kMostMassLevel}, double{policy.mass_c} / static_cast<double>(visible.size()));

  std::vector<RowDecision> decisions;
  for (std::int64_t j = visible.begin; j < visible.end; ++j) {
    const std::int64_t column = j - first_kv;
    RowDecision decision;
    if (listed[static_cast<std::size_t>(column)] != 0) {
      double mean = 0, least = 0, most = 0;
      for (std::int64_t row = 0; row < scores.rows; ++row) {
        const std::size_t cell = scores.at(row, column);
        const double maximum = scores.max[cell];
        if (maximum == -kInfinity) continue;  // sees nothing of the block
        const Reference& reference = references[static_cast<std::size_t>(row)];
        const double exponent = maximum - reference.lse;
        const double error = scores.error[cell] + reference.error + rounding(exponent);
        const double share = 1 / static_cast<double>(scores.rows);
        // Of a row that sees nothing of the reference this is infinite.
        mean += share * std::exp(exponent);
        least += share * std::exp(exponent - error);
        most += share * std::exp(exponent + error);
      }
      const bool always_kept = in_mass_reference(i, j, block);
      const bool has_nan = scores.has_nan[static_cast<std::size_t>(column)] != 0;
      // Not below: a NaN keeps its block.
      decision.keep = always_kept || has_nan || !(mean < level);
      decision.undecided = !always_kept && !has_nan && least < level && most >= level;
    }
    decisions.push_back(decision);
  }
  return decisions;
}

std::vector<RowDecision> skip_softmax_decisions(const Policy& policy, BlockShape block,
                                                std::int64_t i, BlockRange visible,
                                                std::int64_t first_kv, const RowScores& scores) {
  std::vector<std::int64_t> order;
  const bool outwards = policy.skip_order == SkipOrder::kOutwards;
  const BlockRange diagonal = intersect(always_kept_range(i, block), visible);
  if (outwards) {
    for (std::int64_t j = diagonal.begin; j < diagonal.end; ++j) order.push_back(j);
    if (visible.contains(kSinkBlock) && !diagonal.contains(kSinkBlock)) order.push_back(kSinkBlock);
    for (std::int64_t j = visible.end - 1; j >= visible.begin; --j) {
      if (j < always_kept_range(i, block).begin && j != kSinkBlock) order.push_back(j);
    }
    for (std::int64_t j = visible.begin; j < visible.end; ++j) {
      if (j >= always_kept_range(i, block).end && j != kSinkBlock) order.push_back(j);
    }
  } else {
    for (std::int64_t j = visible.begin; j < visible.end; ++j) order.push_back(j);
  }

  const double level = std::log(double{policy.skip_lambda});
  std::vector<RowDecision> decisions(static_cast<std::size_t>(visible.size()));
  // Largest score so far and its error. What is left out is below it, so that it does not matter
  // whether those blocks count.
  std::vector<double> running(static_cast<std::size_t>(scores.rows), -kInfinity);
  std::vector<double> running_error(running.size(), 0.0);
  for (const std::int64_t j : order) {
    const std::int64_t column = j - first_kv;
    double best = -kInfinity, least = -kInfinity, most = -kInfinity;
    bool undefined = scores.has_nan[static_cast<std::size_t>(column)] != 0;
    for (std::size_t row = 0; row < running.size(); ++row) {
      const std::size_t cell = scores.at(static_cast<std::int64_t>(row), column);
      const double maximum = scores.max[cell];
      if (maximum == -kInfinity) continue;
      const double rise = maximum - running[row];
      const double error = scores.error[cell] + running_error[row] + rounding(level);
      undefined = undefined || std::isnan(rise);
      best = std::max(best, rise);
      least = std::max(least, rise - error);
      most = std::max(most, rise + error);
    }
    const bool always = skip_softmax_always_keeps(i, j, block);
    RowDecision& decision = decisions[static_cast<std::size_t>(j - visible.begin)];
    decision.keep = always || undefined || best >= level;
    decision.undecided = !always && !undefined && least < level && most >= level;
    for (std::size_t row = 0; row < running.size(); ++row) {
      const std::size_t cell = scores.at(static_cast<std::int64_t>(row), column);
      running[row] = std::max(running[row], scores.max[cell]);
      running_error[row] = std::max(running_error[row], scores.error[cell]);
    }
  }
  return decisions;
}

}  // namespace bsfa
