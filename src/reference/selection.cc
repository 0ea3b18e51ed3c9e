#include "reference/selection.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "core/numeric.hpp"
#include "core/status.hpp"

namespace bsfa {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// A row of a head as fp64.
std::vector<double> load_row(const TensorView& tensor, std::int64_t batch, std::int64_t row,
                             std::int64_t head, DType precision) {
  const std::int64_t base =
      batch * tensor.stride[0] + row * tensor.stride[1] + head * tensor.stride[2];
  std::vector<double> values;
  for (std::int64_t d = 0; d < tensor.shape[3]; ++d) {
    values.push_back(rounded(load_element(tensor.data, tensor.dtype, base + d), precision));
  }
  return values;
}

double score(const SelectionProblem& problem, const std::vector<double>& q,
             const std::vector<double>& k) {
  const double dot = std::inner_product(q.begin(), q.end(), k.begin(), 0.0);
  const double scaled = dot * *problem.softmax_scale;
  return problem.softcap > 0 ? problem.softcap * std::tanh(scaled / problem.softcap) : scaled;
}

// The list by its words: blocks in descending mass until the coverage is reached, and all whose mass
// is not below the last one's or the floor.
std::vector<std::uint8_t> chosen(const SelectionProblem& problem,
                                 const std::vector<std::int64_t>& units,
                                 const std::vector<std::uint8_t>& always) {
  std::vector<std::size_t> order(units.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return units[a] > units[b]; });
  const auto total = static_cast<double>(std::accumulate(units.begin(), units.end(), std::int64_t{0}));
  const double target = std::ceil(double{problem.selector.coverage} * total);
  double held = 0;
  std::int64_t room = problem.stride;
  for (std::size_t n = 0; n < units.size(); ++n) {
    if (always[n] == 0) continue;
    held += static_cast<double>(units[n]);
    --room;
  }
  const auto floor = static_cast<std::int64_t>(floor_units(problem.selector.floor));
  std::vector<std::uint8_t> kept = always;
  for (std::size_t place = 0; place < order.size();) {
    // Blocks of equal mass come in together, or none of them.
    const std::int64_t mass = units[order[place]];
    if (mass == 0 || (held >= target && mass < floor)) break;
    std::size_t end = place;
    std::int64_t count = 0;
    for (; end < order.size() && units[order[end]] == mass; ++end) {
      count += always[order[end]] == 0 ? 1 : 0;
    }
    if (count > room) break;
    for (; place < end; ++place) {
      if (always[order[place]] != 0) continue;
      kept[order[place]] = 1;
      held += static_cast<double>(mass);
      --room;
    }
  }
  return kept;
}

}  // namespace

OracleMasses oracle_masses(const SelectionProblem& problem, std::int64_t sequence,
                           std::int64_t head, std::int64_t i, DType precision) {
  const SequenceLayout& layout = problem.sequences;
  const Sequence s = sequence_at(layout, sequence);
  const BlockRange rows = q_block_rows(s, i, layout.block);
  const BlockRange visible = visible_blocks(layout, s, i);
  const std::int64_t base = layout.kv_offset / layout.block.kv;
  OracleMasses result;
  result.first = visible.begin - base;
  result.mass.assign(static_cast<std::size_t>(visible.size()), 0.0);
  for (std::int64_t j = visible.begin; j < visible.end; ++j) {
    result.always.push_back(selector_keeps(problem.selector.sink_blocks,
                                           problem.selector.local_blocks, i, j, layout.block)
                                ? 1
                                : 0);
  }
  std::vector<std::vector<double>> k;
  for (std::int64_t c = 0; c < s.seqlen_k; ++c) {
    k.push_back(load_row(problem.k, s.batch, s.k_begin + c, head / problem.group, precision));
  }
  const int present = static_cast<int>(rows.size());
  const int wanted = static_cast<int>(problem.selector.rows);
  int counted = 0;
  for (int t = 0; t < sampled_rows(present, wanted); ++t) {
    const std::int64_t r = rows.begin + sampled_row(present, wanted, t);
    const BlockRange keys = visible_keys(layout, s, r);
    if (keys.size() == 0) continue;
    const std::vector<double> q = load_row(problem.q, s.batch, s.q_begin + r, head, precision);
    std::vector<double> scores;
    for (std::int64_t c = keys.begin; c < keys.end; ++c) {
      scores.push_back(score(problem, q, k[static_cast<std::size_t>(c)]));
    }
    const double largest = *std::max_element(scores.begin(), scores.end());
    double sum = 0;
    for (const double x : scores) sum += std::exp(x - largest);
    if (std::isnan(sum)) continue;  // a row that is not a number says nothing
    ++counted;
    for (std::size_t n = 0; n < scores.size(); ++n) {
      const std::int64_t block = (keys.begin + static_cast<std::int64_t>(n)) / layout.block.kv;
      result.mass[static_cast<std::size_t>(block - result.first)] +=
          std::exp(scores[n] - largest) / sum;
    }
  }
  for (double& mass : result.mass) mass /= std::max(counted, 1);
  return result;
}

Status plan_oracle_selection(const SelectionProblem& problem, SelectionPlan* plan) {
  if (problem.page_table != nullptr) {
    return unsupported("page_table was given; backend reference takes contiguous k and v");
  }
  plan->kernel = "fp64";
  plan->workspace_bytes = 0;
  return {};
}

Status run_oracle_selection(const SelectionProblem& problem) {
  const SequenceLayout& layout = problem.sequences;
  const DType precision = multiply_dtype(problem, true);
  for (std::int64_t n = 0; n < layout.num_sequences; ++n) {
    const Sequence s = sequence_at(layout, n);
    const std::int64_t first = first_q_block(s, layout.block);
    const BlockRange q_blocks = q_block_range(s, layout.block);
    for (std::int64_t head = 0; head < problem.num_heads_q; ++head) {
      std::vector<std::uint8_t> before;  // what the query block before chose by itself, by column
      for (std::int64_t row = 0; row < problem.q_blocks; ++row) {
        BlockChoice choice;
        if (row >= q_blocks.size()) {
          write_choice(problem, n, head, row, 0, choice);
          continue;
        }
        const OracleMasses masses = oracle_masses(problem, n, head, first + row, precision);
        std::vector<std::int64_t> units;
        for (const double mass : masses.mass) units.push_back(std::llrint(mass * kMassUnits));
        choice.kept = chosen(problem, units, masses.always);
        const std::vector<std::uint8_t> own = choice.kept;
        if (problem.selector.previous) {
          // Those that come in are chosen as the others are, in what room is left.
          std::vector<std::int64_t> added(units.size(), 0);
          for (std::size_t j = 0; j < units.size(); ++j) {
            const std::size_t column = static_cast<std::size_t>(masses.first) + j;
            if (column < before.size() && before[column] != 0 && own[j] == 0) {
              added[j] = units[j] + 1;
            }
          }
          SelectionProblem whole = problem;
          whole.selector.coverage = 1;
          choice.kept = chosen(whole, added, own);
        }
        for (std::size_t j = 0; j < units.size(); ++j) {
          choice.total_mass += static_cast<std::uint64_t>(units[j]);
          if (choice.kept[j] != 0) choice.kept_mass += static_cast<std::uint64_t>(units[j]);
        }
        write_choice(problem, n, head, row, masses.first, choice);
        before.assign(static_cast<std::size_t>(problem.kv_blocks), 0);
        for (std::size_t j = 0; j < own.size(); ++j) {
          before[static_cast<std::size_t>(masses.first) + j] = own[j];
        }
      }
    }
  }
  return {};
}

}  // namespace bsfa
