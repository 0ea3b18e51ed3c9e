#include "support/selection_case.hpp"

#include <algorithm>
#include <cmath>
#include <sstream>

#include "core/selection.hpp"
#include "reference/selection.hpp"

namespace bsfa::testing {
namespace {

constexpr double kBand = 1e-3;

// The share that the list of a query block must hold, and what it holds, by the oracle's masses.
class Judge {
 public:
  Judge(const SelectionProblem& problem, const OracleMasses& masses,
        const std::vector<std::int32_t>& list)
      : problem_(problem), masses_(masses), listed_(masses.mass.size(), 0) {
    for (const std::int32_t column : list) {
      const std::int64_t n = column - masses.first;
      if (n < 0 || n >= static_cast<std::int64_t>(listed_.size())) {
        say("lists block ", column, " which is not visible");
      } else if (listed_[static_cast<std::size_t>(n)]++ != 0) {
        say("lists block ", column, " twice");
      }
    }
    if (!std::is_sorted(list.begin(), list.end())) say("is not in ascending order");
    for (const double mass : masses.mass) total_ += mass;
    for (std::size_t n = 0; n < listed_.size(); ++n) held_ += listed_[n] != 0 ? masses.mass[n] : 0;
  }

  void check() {
    const SampledSelector& selector = problem_.selector;
    const auto blocks = static_cast<std::int64_t>(
        std::count_if(listed_.begin(), listed_.end(), [](int n) { return n != 0; }));
    if (blocks == static_cast<std::int64_t>(listed_.size())) return;  // whole lists are always right
    // Where the lists have less room than there are blocks, a tie of equal ones may not fit.
    const bool budget = problem_.stride < static_cast<std::int64_t>(listed_.size());
    double least = 2;     // the least mass that is listed without being always kept
    double largest = -1;  // and the largest that is not listed
    for (std::size_t n = 0; n < listed_.size(); ++n) {
      if (masses_.always[n] != 0) {
        if (listed_[n] == 0) say("misses block ", masses_.first + static_cast<std::int64_t>(n),
                                 ", which is always kept");
      } else if (listed_[n] != 0) {
        least = std::min(least, masses_.mass[n]);
      } else {
        largest = std::max(largest, masses_.mass[n]);
      }
    }
    if (largest > least * (1 + kBand) + kUnit) {
      say("leaves out a block of ", largest, " and has one of ", least);
    }
    // Enough is held, unless there was no room for more: the next block is not needed, but for
    // what rounding makes of its mass.
    const double slack = kBand * std::max(largest, 0.0) + kUnit * 64;
    if (!budget && held_ < selector.coverage * total_ - slack) {
      say("holds ", held_, " of ", selector.coverage * total_);
    }
    if (!budget && largest > selector.floor * (1 + kBand) + kUnit) {
      say("leaves out a block of ", largest, ", above the floor");
    }
    // And not more than that: without the least block, and those as large, too little is held.
    double others = held_;
    for (std::size_t n = 0; n < listed_.size(); ++n) {
      const bool tied = masses_.mass[n] <= least * (1 + kBand) + kUnit;
      if (listed_[n] != 0 && masses_.always[n] == 0 && tied) others -= masses_.mass[n];
    }
    if (least < 2 && least < selector.floor * (1 - kBand) - kUnit &&
        others > selector.coverage * total_ + kBand * least + kUnit * 64) {
      say("has a block of ", least, " although larger ones hold ", others, " of ",
          selector.coverage * total_);
    }
  }

  double left_out() const { return total_ > 0 ? 1 - held_ / total_ : 0; }
  const std::string& problems() const { return problems_; }

 private:
  static constexpr double kUnit = 0x1p-29;

  template <typename... Parts>
  void say(const Parts&... parts) {
    std::ostringstream text;
    (text << ... << parts);
    problems_ += "; " + text.str();
  }

  const SelectionProblem& problem_;
  const OracleMasses& masses_;
  std::vector<int> listed_;
  double total_ = 0;
  double held_ = 0;
  std::string problems_;
};

}  // namespace

SelectionCase::SelectionCase(AttentionData& of, SampledSelector with, std::int64_t entries)
    : data(of), selector(with), stride(entries != 0 ? entries : of.kv_blocks) {
  const auto lists =
      static_cast<std::size_t>(of.num_sequences * of.c.num_heads_q * of.q_blocks);
  indices.resize(lists * static_cast<std::size_t>(stride));
  counts.resize(lists);
  left_out.resize(lists);
}

SelectBlocksParams SelectionCase::params() {
  std::fill(indices.begin(), indices.end(), -7);
  std::fill(counts.begin(), counts.end(), -7);
  std::fill(left_out.begin(), left_out.end(), -7.0f);
  SelectBlocksParams result;
  result.call = data.params();
  result.selector = selector;
  result.indices = indices.data();
  result.counts = counts.data();
  result.stride = stride;
  const std::int64_t heads = data.c.num_heads_q;
  result.left_out = {left_out.data(),
                     {data.num_sequences, heads, data.q_blocks},
                     {heads * data.q_blocks, data.q_blocks, 1}};
  return result;
}

std::vector<std::int32_t> SelectionCase::list(std::int64_t sequence, std::int64_t head,
                                              std::int64_t row) const {
  const auto at =
      static_cast<std::size_t>((sequence * data.c.num_heads_q + head) * data.q_blocks + row);
  const auto begin = indices.begin() + static_cast<std::ptrdiff_t>(at) * stride;
  return {begin, begin + counts[at]};
}

std::string run_selection(SelectionCase& call, const std::string& backend) {
  SelectBlocksParams params = call.params();
  params.call.backend = backend;
  const SelectionPlan plan = plan_selection(params);
  if (!plan.status.ok()) return plan.status.message;
  std::vector<std::uint8_t> workspace(plan.workspace_bytes + 256);
  const auto address = reinterpret_cast<std::uintptr_t>(workspace.data());
  params.call.workspace = workspace.data() + (256 - address % 256) % 256;
  params.call.workspace_bytes = plan.workspace_bytes;
  try {
    select_blocks(params);
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

std::string compare_with_definition(const SelectionCase& call) {
  SelectBlocksParams params;
  params.call = call.data.params();
  params.call.device = {};
  params.selector = call.selector;
  params.stride = call.stride;
  SelectionProblem problem;
  if (const Status status = make_selection_problem(params, &problem); !status.ok()) {
    return status.message;
  }
  const DType precision = multiply_dtype(problem, true);
  for (std::int64_t n = 0; n < call.data.num_sequences; ++n) {
    const Sequence s = sequence_at(problem.sequences, n);
    const BlockRange q_blocks = q_block_range(s, problem.sequences.block);
    for (std::int64_t head = 0; head < problem.num_heads_q; ++head) {
      for (std::int64_t row = 0; row < problem.q_blocks; ++row) {
        std::ostringstream where;
        where << "list of sequence " << n << ", head " << head << ", query block " << row;
        const auto at = static_cast<std::size_t>(problem.list(n, head, row));
        const std::int32_t count = call.counts[at];
        if (count < 0 || count > call.stride) return where.str() + " has a count out of range";
        if (row >= q_blocks.size()) {
          if (count != 0 || call.left_out[at] != 0) return where.str() + " is of nobody";
          continue;
        }
        const OracleMasses masses =
            oracle_masses(problem, n, head, q_blocks.begin + row, precision);
        Judge judge(problem, masses, call.list(n, head, row));
        judge.check();
        if (!judge.problems().empty()) return where.str() + judge.problems();
        if (std::abs(judge.left_out() - double{call.left_out[at]}) > 1e-3) {
          where << " says it leaves out " << call.left_out[at] << "; it is " << judge.left_out();
          return where.str();
        }
        if (judge.left_out() > double{call.selector.max_left_out} + 1e-3) {
          where << " leaves out " << judge.left_out() << ", more than is allowed";
          return where.str();
        }
      }
    }
  }
  return "";
}

}  // namespace bsfa::testing
