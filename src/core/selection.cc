#include "core/selection.hpp"

#include <algorithm>
#include <cmath>

#include "bsfa/limits.hpp"
#include "core/memory.hpp"
#include "core/status.hpp"

namespace bsfa {
namespace {

Status check_share(const char* name, float value, bool zero) {
  if (value <= 1 && (value > 0 || (zero && value == 0))) return {};  // false of NaN
  return invalid_argument(name, " is ", value, "; accepted: ",
                          zero ? "0 to 1" : "above 0, up to 1");
}

Status check_blocks(const char* name, std::int64_t value) {
  if (value >= 0 && value <= kMaxTokens) return {};
  return invalid_argument(name, " is ", value, "; accepted: 0 to ", kMaxTokens);
}

Status check_selector(const SampledSelector& selector) {
  if (selector.rows != 8 && selector.rows != 16 && selector.rows != 32 && selector.rows != 64) {
    return invalid_argument("selector.rows is ", selector.rows, "; accepted: 8, 16, 32, 64");
  }
  BSFA_RETURN_IF_ERROR(check_share("selector.coverage", selector.coverage, false));
  BSFA_RETURN_IF_ERROR(check_share("selector.floor", selector.floor, false));
  BSFA_RETURN_IF_ERROR(check_share("selector.max_left_out", selector.max_left_out, true));
  BSFA_RETURN_IF_ERROR(check_blocks("selector.sink_blocks", selector.sink_blocks));
  return check_blocks("selector.local_blocks", selector.local_blocks);
}

// Room for the lists: what is always kept, and everything where a list may have to be whole.
Status check_stride(const SelectionProblem& problem) {
  const SampledSelector& selector = problem.selector;
  const BlockRange diagonal = always_kept_range(0, problem.sequences.block);
  const std::int64_t always = std::min(
      problem.kv_blocks, selector.sink_blocks + selector.local_blocks + diagonal.size());
  if (problem.stride < always) {
    return invalid_argument("stride is ", problem.stride, "; the blocks that are always kept are ",
                            always);
  }
  if (selector.max_left_out < 1 && problem.stride < problem.kv_blocks) {
    return invalid_argument("stride is ", problem.stride, " and selector.max_left_out ",
                            selector.max_left_out, "; lists that may be whole need ",
                            problem.kv_blocks);
  }
  // Indices of the lists' entries are counted in int64, and their memory is bounded as any other.
  const std::int64_t lists =
      problem.sequences.num_sequences * problem.num_heads_q * problem.q_blocks;
  if (problem.stride > kMaxElements / std::max<std::int64_t>(lists, 1)) {
    return invalid_argument("stride is ", problem.stride, " for ", lists,
                            " lists; accepted: up to ", kMaxElements, " entries in all");
  }
  return {};
}

Status check_left_out(const SelectionProblem& problem) {
  const StridedView<float, 3>& view = problem.left_out;
  if (!view) return {};
  const std::int64_t expected[3] = {problem.sequences.num_sequences, problem.num_heads_q,
                                    problem.q_blocks};
  if (!std::equal(expected, expected + 3, view.shape)) {
    return invalid_argument("left_out has shape ", shape_text(view.shape, 3), "; expected ",
                            shape_text(expected, 3));
  }
  return check_view(memory_of("left_out", view));
}

struct Held {
  std::uint64_t mass = 0;
  std::int64_t blocks = 0;
};

// What the blocks that are always kept and those from a level on hold.
Held held(const std::vector<std::uint32_t>& masses, const std::vector<std::uint8_t>& always,
          std::uint32_t level) {
  Held result;
  for (std::size_t n = 0; n < masses.size(); ++n) {
    if (always[n] == 0 && masses[n] < level) continue;
    result.mass += masses[n];
    ++result.blocks;
  }
  return result;
}

// The largest level for which `holds` is true, being so of all below it; 0 if it is of none.
template <typename Predicate>
std::uint32_t largest_level(Predicate&& holds) {
  std::uint32_t level = 0;
  for (std::uint32_t bit = kMassUnits; bit != 0; bit >>= 1) {
    if (holds(level | bit)) level |= bit;
  }
  return level;
}

// The smallest level, `level` or above, that leaves no more blocks than there is room for.
std::uint32_t fitting_level(const std::vector<std::uint32_t>& masses,
                            const std::vector<std::uint8_t>& always, std::uint32_t level,
                            std::int64_t stride) {
  if (held(masses, always, level).blocks <= stride) return level;
  return 1 + largest_level([&](std::uint32_t tried) {
           return held(masses, always, tried).blocks > stride;
         });
}

}  // namespace

std::uint32_t floor_units(float floor) {
  return std::max<std::uint32_t>(
      1, static_cast<std::uint32_t>(std::lrint(double{floor} * double{kMassUnits})));
}

Status make_selection_problem(const SelectBlocksParams& params, SelectionProblem* problem) {
  AttentionParams call = params.call;
  call.v = call.k;
  call.out.data = const_cast<void*>(call.q.data);  // not written
  call.out.dtype = call.q.dtype;
  std::copy_n(call.q.shape, 4, call.out.shape);
  std::copy_n(call.q.stride, 4, call.out.stride);
  call.sinks = nullptr;
  call.policy = Policy::dense();
  call.lists = {};
  call.lse = {};
  call.kept_blocks = {};
  call.visible_blocks = {};
  call.kept_mask = {};
  call.block_max = {};
  BSFA_RETURN_IF_ERROR(make_problem(call, problem));
  BSFA_RETURN_IF_ERROR(check_selector(params.selector));
  problem->selector = params.selector;
  problem->indices = params.indices;
  problem->counts = params.counts;
  problem->stride = params.stride;
  problem->left_out = params.left_out;
  BSFA_RETURN_IF_ERROR(check_stride(*problem));
  return check_left_out(*problem);
}

Status check_selection_memory(const SelectionProblem& problem, std::size_t workspace_bytes) {
  const std::int64_t lists =
      problem.sequences.num_sequences * problem.num_heads_q * problem.q_blocks;
  if (lists > 0 && problem.counts == nullptr) return invalid_argument("counts is null");
  if (lists > 0 && problem.stride > 0 && problem.indices == nullptr) {
    return invalid_argument("indices is null");
  }
  const Memory outputs[] = {
      memory_of<std::int32_t>("indices", problem.indices, lists * problem.stride),
      memory_of<std::int32_t>("counts", problem.counts, lists),
      memory_of("left_out", problem.left_out),
      memory_of("workspace", static_cast<const char*>(problem.workspace),
                static_cast<std::int64_t>(workspace_bytes)),
  };
  const std::int64_t sequences = problem.sequences.num_sequences;
  const Memory inputs[] = {
      memory_of("q", problem.q),
      memory_of("k", problem.k),
      memory_of("cu_seqlens_q", problem.cu_seqlens_q,
                problem.cu_seqlens_q != nullptr ? sequences + 1 : 0),
      memory_of("cu_seqlens_k", problem.cu_seqlens_k,
                problem.cu_seqlens_k != nullptr ? sequences + 1 : 0),
      memory_of("seqused_k", problem.seqused_k, problem.seqused_k != nullptr ? sequences : 0),
      memory_of("leftpad_k", problem.leftpad_k, problem.leftpad_k != nullptr ? sequences : 0),
      memory_of("q_offsets", problem.q_offsets, problem.q_offsets != nullptr ? sequences : 0),
  };
  for (const Memory& output : outputs) BSFA_RETURN_IF_ERROR(check_alignment(output));
  for (const Memory& input : inputs) BSFA_RETURN_IF_ERROR(check_alignment(input));
  return check_no_overlap(outputs, inputs);
}

BlockChoice choose_blocks(const SampledSelector& selector, std::int64_t stride,
                          const std::vector<std::uint32_t>& masses,
                          const std::vector<std::uint8_t>& always) {
  BlockChoice choice;
  for (const std::uint32_t mass : masses) choice.total_mass += mass;
  const auto target = static_cast<std::uint64_t>(
      std::ceil(double{selector.coverage} * static_cast<double>(choice.total_mass)));
  std::uint32_t level = largest_level(
      [&](std::uint32_t tried) { return held(masses, always, tried).mass >= target; });
  level = std::min(std::max(level, std::uint32_t{1}), floor_units(selector.floor));
  level = fitting_level(masses, always, level, stride);
  choice.kept_mass = held(masses, always, level).mass;
  for (std::size_t n = 0; n < masses.size(); ++n) {
    choice.kept.push_back(always[n] != 0 || masses[n] >= level ? 1 : 0);
  }
  return choice;
}

void add_previous(const std::vector<std::uint32_t>& masses, const std::vector<std::uint8_t>& before,
                  std::int64_t stride, BlockChoice* choice) {
  // Of the blocks that may come in, masses; of all others nothing that a level could let in.
  std::vector<std::uint32_t> added(masses.size(), 0);
  for (std::size_t n = 0; n < masses.size(); ++n) {
    if (before[n] != 0 && choice->kept[n] == 0) added[n] = masses[n] + 1;
  }
  const std::uint32_t level = fitting_level(added, choice->kept, 1, stride);
  for (std::size_t n = 0; n < masses.size(); ++n) {
    if (added[n] < level) continue;
    choice->kept[n] = 1;
    choice->kept_mass += masses[n];
  }
}

void write_choice(const SelectionProblem& problem, std::int64_t sequence, std::int64_t head,
                  std::int64_t row, std::int64_t first, const BlockChoice& choice) {
  float left_out = 0;
  if (choice.total_mass > 0) {
    left_out = static_cast<float>(static_cast<double>(choice.total_mass - choice.kept_mass) /
                                  static_cast<double>(choice.total_mass));
  }
  const bool whole = left_out > problem.selector.max_left_out;
  if (whole) left_out = 0;
  const std::int64_t list = problem.list(sequence, head, row);
  std::int32_t* const to = problem.indices + list * problem.stride;
  std::int32_t count = 0;
  for (std::size_t n = 0; n < choice.kept.size(); ++n) {
    if (!whole && choice.kept[n] == 0) continue;
    to[count++] = static_cast<std::int32_t>(first + static_cast<std::int64_t>(n));
  }
  problem.counts[list] = count;
  if (problem.left_out) {
    const std::int64_t(&stride)[3] = problem.left_out.stride;
    problem.left_out.data[sequence * stride[0] + head * stride[1] + row * stride[2]] = left_out;
  }
}

}  // namespace bsfa
