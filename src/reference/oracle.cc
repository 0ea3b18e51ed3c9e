#include "reference/oracle.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/block_lists.hpp"
#include "core/numeric.hpp"
#include "reference/row_policies.hpp"

namespace bsfa {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// Rows [begin, begin + count) of one head as fp64, [count, dim].
std::vector<double> load_rows(const TensorView& tensor, std::int64_t batch, std::int64_t begin,
                              std::int64_t count, std::int64_t head, DType precision) {
  const std::int64_t dim = tensor.shape[3];
  std::vector<double> rows(static_cast<std::size_t>(count * dim));
  for (std::int64_t r = 0; r < count; ++r) {
    const std::int64_t base =
        batch * tensor.stride[0] + (begin + r) * tensor.stride[1] + head * tensor.stride[2];
    for (std::int64_t d = 0; d < dim; ++d) {
      rows[r * dim + d] = rounded(load_element(tensor.data, tensor.dtype, base + d), precision);
    }
  }
  return rows;
}

bool larger_or_nan(double value, double maximum) {
  return std::isnan(value) || (!std::isnan(maximum) && value > maximum);
}

bool policy_keeps(const Problem& problem, std::int64_t sequence, std::int64_t head, std::int64_t i,
                  std::int64_t j, double block_max, double* threshold) {
  const BlockShape block = problem.sequences.block;
  switch (problem.policy.kind) {
    case PolicyKind::kDense:
      return true;
    case PolicyKind::kSlidingWindow:
      return sliding_window_range(i, problem.policy.window_blocks, block).contains(j);
    case PolicyKind::kThreshold: {
      const ThresholdView& table = problem.policy.thresholds;
      *threshold = table.data[sequence * table.stride_batch + head * table.stride_head +
                              threshold_index(i, table.num_q_blocks)];
      // The comparison of core/gate.hpp, before block_max is rounded to fp32.
      return always_kept(i, j, block) || !(block_max < *threshold);
    }
    case PolicyKind::kMass:
    case PolicyKind::kSkipSoftmax:
      break;  // not reached: row_decisions
  }
  return true;  // not reached: other policies are refused by plan
}

bool looks_at_rows(PolicyKind kind) {
  return kind == PolicyKind::kMass || kind == PolicyKind::kSkipSoftmax;
}

// Scores [rows, seqlen_k] of which those that a row does not see are -inf, block by block.
// `magnitude` [rows, kv_blocks]: the largest sum of absolute products.
RowScores row_scores(const Problem& problem, std::int64_t rows, std::int64_t seqlen_k,
                     std::int64_t kv_blocks, const std::vector<double>& scores,
                     const std::vector<double>& magnitude) {
  const std::int64_t side = problem.sequences.block.kv;
  const auto cells = static_cast<std::size_t>(rows * kv_blocks);
  RowScores result;
  result.rows = rows;
  result.kv_blocks = kv_blocks;
  result.max.assign(cells, -kInfinity);
  result.lse.assign(cells, -kInfinity);
  result.error.assign(cells, 0.0);
  result.has_nan.assign(static_cast<std::size_t>(kv_blocks), 0);
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t column = 0; column < kv_blocks; ++column) {
      const std::size_t cell = result.at(r, column);
      const double* first = scores.data() + r * seqlen_k + column * side;
      const std::int64_t count = std::min(side, seqlen_k - column * side);
      bool has_nan = false;
      for (std::int64_t c = 0; c < count; ++c) {
        has_nan = has_nan || std::isnan(first[c]);
        result.max[cell] = std::max(result.max[cell], first[c]);  // a NaN is not larger
      }
      double sum = 0;
      for (std::int64_t c = 0; c < count; ++c) sum += std::exp(first[c] - result.max[cell]);
      if (result.max[cell] != -kInfinity) result.lse[cell] = result.max[cell] + std::log(sum);
      if (has_nan) {
        result.lse[cell] = std::numeric_limits<double>::quiet_NaN();
        result.has_nan[static_cast<std::size_t>(column)] = 1;
      }
      result.error[cell] = static_cast<double>(problem.head_dim) * 0x1p-24 *
                               *problem.softmax_scale * magnitude[cell] +
                           0x1p-20 * problem.softcap;
    }
  }
  return result;
}

std::vector<RowDecision> row_decisions(const Problem& problem, std::int64_t sequence,
                                       std::int64_t head, std::int64_t i, std::int64_t row,
                                       BlockRange visible, const RowScores& scores) {
  const BlockShape block = problem.sequences.block;
  const std::int64_t first_kv = problem.sequences.kv_offset / block.kv;
  if (problem.policy.kind == PolicyKind::kSkipSoftmax) {
    return skip_softmax_decisions(problem.policy, block, i, visible, first_kv, scores);
  }
  std::vector<std::uint8_t> listed;
  for (std::int64_t column = 0; column < scores.kv_blocks; ++column) {
    listed.push_back(
        is_listed(problem.lists, problem.num_heads_q, sequence, head, row, column) ? 1 : 0);
  }
  return mass_decisions(problem.policy, block, i, visible, first_kv, listed, scores);
}

}  // namespace

OracleHead oracle_head(const Problem& problem, std::int64_t sequence, std::int64_t head,
                       DType precision,
                       const std::optional<std::vector<std::uint8_t>>& forced_kept) {
  const SequenceLayout& layout = problem.sequences;
  const BlockShape block = layout.block;
  const Sequence s = sequence_at(layout, sequence);
  const std::int64_t dim = problem.head_dim;
  const std::int64_t dim_v = problem.head_dim_v;
  const std::int64_t kv_head = head / problem.group;
  const float softmax_scale = *problem.softmax_scale;
  const std::vector<double> q =
      load_rows(problem.q, s.batch, s.q_begin, s.seqlen_q, head, precision);
  const std::vector<double> k =
      load_rows(problem.k, s.batch, s.k_begin, s.seqlen_k, kv_head, precision);
  const std::vector<double> v =
      load_rows(problem.v, s.batch, s.k_begin, s.seqlen_k, kv_head, precision);

  OracleHead result;
  const BlockRange q_blocks = q_block_range(s, block);
  const std::int64_t first_kv = layout.kv_offset / block.kv;
  result.seqlen_q = s.seqlen_q;
  result.q_blocks = q_blocks.size();
  result.kv_blocks = ceil_div(s.seqlen_k, block.kv);
  const auto cells = static_cast<std::size_t>(result.q_blocks * result.kv_blocks);
  result.out.assign(static_cast<std::size_t>(s.seqlen_q * dim_v), 0.0);
  result.lse.assign(static_cast<std::size_t>(s.seqlen_q), -kInfinity);
  result.block_max.assign(cells, -kInfinity);
  result.band.assign(cells, 0.0);
  result.kept.assign(cells, 0);
  result.decided.assign(cells, 0);
  result.undecided.assign(cells, 0);

  std::vector<double> scores;  // of one query block, [rows, seqlen_k]
  for (std::int64_t i = q_blocks.begin; i < q_blocks.end; ++i) {
    const BlockRange rows = q_block_rows(s, i, block);
    const std::size_t row_of_blocks =
        static_cast<std::size_t>((i - q_blocks.begin) * result.kv_blocks);
    scores.assign(static_cast<std::size_t>(rows.size() * s.seqlen_k), -kInfinity);
    std::vector<double> magnitude(static_cast<std::size_t>(result.kv_blocks), 0.0);
    std::vector<double> row_magnitude(static_cast<std::size_t>(rows.size() * result.kv_blocks));

    for (std::int64_t r = rows.begin; r < rows.end; ++r) {
      const BlockRange keys = visible_keys(layout, s, r);
      for (std::int64_t c = keys.begin; c < keys.end; ++c) {
        double dot = 0;
        double absolute = 0;
        for (std::int64_t d = 0; d < dim; ++d) {
          const double product = q[r * dim + d] * k[c * dim + d];
          dot += product;
          absolute += std::abs(product);
        }
        double score = dot * softmax_scale;
        if (problem.softcap > 0) score = problem.softcap * std::tanh(score / problem.softcap);
        scores[(r - rows.begin) * s.seqlen_k + c] = score;
        const std::int64_t j = c / block.kv;
        double& maximum = result.block_max[row_of_blocks + j];
        if (larger_or_nan(score, maximum)) maximum = score;
        magnitude[j] = std::max(magnitude[j], absolute);
        double& of_row = row_magnitude[(r - rows.begin) * result.kv_blocks + j];
        of_row = std::max(of_row, absolute);
      }
    }

    const BlockRange visible = visible_blocks(layout, s, i);
    result.visible_blocks += visible.size();
    std::vector<RowDecision> decisions;
    if (looks_at_rows(problem.policy.kind)) {
      decisions = row_decisions(problem, sequence, head, i, i - q_blocks.begin, visible,
                                row_scores(problem, rows.size(), s.seqlen_k, result.kv_blocks,
                                           scores, row_magnitude));
    }
    for (std::int64_t j = visible.begin; j < visible.end; ++j) {
      const std::size_t cell = row_of_blocks + static_cast<std::size_t>(j - first_kv);
      double threshold = 0;
      bool keep = false;
      if (looks_at_rows(problem.policy.kind)) {
        const RowDecision& decision = decisions[static_cast<std::size_t>(j - visible.begin)];
        keep = decision.keep;
        result.decided[cell] = decision.keep ? 1 : 0;
        result.undecided[cell] = decision.undecided ? 1 : 0;
      } else {
        keep = policy_keeps(problem, sequence, head, i, j, result.block_max[cell], &threshold);
      }
      if (!is_listed(problem.lists, problem.num_heads_q, sequence, head, i - q_blocks.begin,
                     j - first_kv)) {
        keep = false;
        result.block_max[cell] = -kInfinity;
      }
      if (forced_kept) keep = (*forced_kept)[cell] != 0;
      result.kept[cell] = keep ? 1 : 0;
      result.kept_blocks += keep ? 1 : 0;
      result.band[cell] =
          static_cast<double>(dim) * 0x1p-24 * softmax_scale * magnitude[j - first_kv] +
          0x1p-20 * problem.softcap +
          (std::isfinite(threshold) ? 0x1p-22 * std::abs(threshold) : 0.0);
    }

    for (std::int64_t r = rows.begin; r < rows.end; ++r) {
      const BlockRange keys = visible_keys(layout, s, r);
      const double* row_scores = scores.data() + (r - rows.begin) * s.seqlen_k;
      const auto kept = [&](std::int64_t c) {
        return result.kept[row_of_blocks + static_cast<std::size_t>(c / block.kv)] != 0;
      };
      double maximum = -kInfinity;
      for (std::int64_t c = keys.begin; c < keys.end; ++c) {
        if (kept(c) && larger_or_nan(row_scores[c], maximum)) maximum = row_scores[c];
      }
      if (problem.sinks != nullptr) {
        maximum = std::max(maximum, static_cast<double>(problem.sinks[head]));
      }
      if (maximum == -kInfinity) continue;  // no kept key: out = 0, lse = -inf
      double sum = problem.sinks != nullptr ? std::exp(problem.sinks[head] - maximum) : 0.0;
      double* out = result.out.data() + r * dim_v;
      for (std::int64_t c = keys.begin; c < keys.end; ++c) {
        if (!kept(c)) continue;
        const double weight = std::exp(row_scores[c] - maximum);
        sum += weight;
        for (std::int64_t d = 0; d < dim_v; ++d) out[d] += weight * v[c * dim_v + d];
      }
      for (std::int64_t d = 0; d < dim_v; ++d) out[d] /= sum;
      result.lse[r] = maximum + std::log(sum);
    }
  }
  return result;
}

}  // namespace bsfa
