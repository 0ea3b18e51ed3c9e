#include "cpu/selection.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "core/executor.hpp"
#include "core/geometry.hpp"
#include "cpu/offsets.hpp"
#include "cpu/rows.hpp"

// The keys of each KV head are packed into panels of 64, as for attention. Then a task takes the
// sampled rows of a query block, of as many heads that share keys as fit into a tile, through the
// panels it sees, and keeps of each row and panel the largest score and the sum of the weights
// relative to it. When all are there they become the masses of the blocks, and these a list.

namespace bsfa::cpu {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr std::int64_t kPanelsPerPackTask = 4;
// Query blocks of a task where each wants to know what the one before chose: of the first of them
// that is computed once more.
constexpr std::int64_t kBlocksPerRun = 8;

struct Task {
  std::int64_t cost;  // panels
  std::int32_t sequence;
  std::int32_t kv_head;
  std::int32_t first_head;  // of the group's
  std::int32_t heads;
  std::int64_t row_begin;  // rows of the lists
  std::int64_t row_end;
};

// The choices of a query block, one for each head of a task.
struct Choices {
  std::int64_t first = 0;  // column of the first visible block
  std::vector<std::vector<std::uint32_t>> masses;
  std::vector<BlockChoice> choices;
};

class Selection {
 public:
  Selection(const SelectionProblem& problem, const KernelSet& kernels,
            const SelectionLayout& layout, bool round_bf16)
      : problem_(problem),
        sequences_(problem.sequences),
        block_(problem.sequences.block),
        kernels_(kernels),
        layout_(layout),
        round_bf16_(round_bf16),
        scale_(problem) {}

  void run() {
    std::int64_t panels = 0;
    for (std::int64_t n = 0; n < sequences_.num_sequences; ++n) {
      first_panel_.push_back(panels);
      panels += panels_of(sequence_at(sequences_, n));
    }
    first_panel_.push_back(panels);
    for_each(ceil_div(panels, kPanelsPerPackTask) * problem_.num_heads_kv,
             [this](std::int64_t task, int) { pack(task); });
    const std::vector<Task> tasks = plan_tasks();
    for_each(static_cast<std::int64_t>(tasks.size()), [&](std::int64_t task, int worker) {
      select(tasks[static_cast<std::size_t>(task)], worker);
    });
  }

 private:
  template <typename F>
  void for_each(std::int64_t tasks, F&& f) {
    if (problem_.executor != nullptr) {
      problem_.executor->for_each(tasks, f);
    } else {
      for (std::int64_t task = 0; task < tasks; ++task) f(task, 0);
    }
  }

  static std::int64_t panels_of(const Sequence& s) { return ceil_div(s.seqlen_k, kPanelKeys); }

  void* k_panel(std::int64_t kv_head, std::int64_t stored) const {
    const auto index = static_cast<std::size_t>(kv_head * layout_.max_panels + stored);
    return at<char>(problem_.workspace, layout_.k + index * layout_.k_panel_bytes);
  }

  void pack(std::int64_t task) {
    const std::int64_t kv_head = task % problem_.num_heads_kv;
    const std::int64_t begin = task / problem_.num_heads_kv * kPanelsPerPackTask;
    const std::int64_t end = std::min(begin + kPanelsPerPackTask, first_panel_.back());
    for (std::int64_t stored = begin; stored < end; ++stored) {
      const auto after = std::upper_bound(first_panel_.begin(), first_panel_.end() - 1, stored);
      const Sequence s = sequence_at(sequences_, after - first_panel_.begin() - 1);
      const std::int64_t key = (stored - *(after - 1)) * kPanelKeys;
      kernels_.pack_k(source_rows(problem_.k, s.batch, s.k_begin + key, kv_head),
                      std::min<std::int64_t>(kPanelKeys, s.seqlen_k - key), problem_.head_dim,
                      round_bf16_, k_panel(kv_head, stored));
    }
  }

  std::vector<Task> plan_tasks() {
    std::vector<Task> tasks;
    const std::int64_t run = problem_.selector.previous ? kBlocksPerRun : 1;
    for (std::int64_t n = 0; n < sequences_.num_sequences; ++n) {
      const Sequence s = sequence_at(sequences_, n);
      const std::int64_t q_blocks = q_block_range(s, block_).size();
      for (std::int64_t head = 0; head < problem_.num_heads_q; ++head) {
        for (std::int64_t row = q_blocks; row < problem_.q_blocks; ++row) {
          write_choice(problem_, n, head, row, 0, {});
        }
      }
      for (std::int64_t kv_head = 0; kv_head < problem_.num_heads_kv; ++kv_head) {
        for (std::int64_t head = 0; head < problem_.group; head += layout_.heads) {
          for (std::int64_t row = 0; row < q_blocks; row += run) {
            Task task{0,
                      static_cast<std::int32_t>(n),
                      static_cast<std::int32_t>(kv_head),
                      static_cast<std::int32_t>(head),
                      static_cast<std::int32_t>(std::min(layout_.heads, problem_.group - head)),
                      row,
                      std::min(row + run, q_blocks)};
            for (std::int64_t r = task.row_begin; r < task.row_end; ++r) {
              task.cost += visible_blocks(sequences_, s, first_q_block(s, block_) + r).size();
            }
            tasks.push_back(task);
          }
        }
      }
    }
    std::stable_sort(tasks.begin(), tasks.end(),
                     [](const Task& a, const Task& b) { return a.cost > b.cost; });
    return tasks;
  }

  char* scratch_of(int worker) const {
    return at<char>(problem_.workspace,
                    layout_.scratch + static_cast<std::size_t>(worker) * layout_.scratch_bytes);
  }

  void select(const Task& task, int worker);
  Choices choose(const Task& task, std::int64_t row, char* scratch) const;
  void pack_rows(const Task& task, const Sequence& s, BlockRange rows, void* q) const;
  void score_panel(const Task& task, const Sequence& s, BlockRange rows, std::int64_t panel,
                   char* scratch) const;
  std::vector<std::uint32_t> weigh(const float* row_max, const float* sums, BlockRange panels,
                                   std::int64_t first_row, BlockRange visible) const;

  const SelectionProblem& problem_;
  const SequenceLayout& sequences_;
  const BlockShape block_;
  const KernelSet& kernels_;
  const SelectionLayout& layout_;
  const bool round_bf16_;
  const ScoreScale scale_;
  std::vector<std::int64_t> first_panel_;  // [sequences + 1], as they are stored
};

// The tile has `slot` rows for each head, of which those that are not there are zeros that see
// nothing.
void Selection::pack_rows(const Task& task, const Sequence& s, BlockRange rows, void* q) const {
  const int present = static_cast<int>(rows.size());
  const int wanted = static_cast<int>(problem_.selector.rows);
  const auto row_bytes = static_cast<std::size_t>(layout_.steps) * 4;
  std::memset(q, 0, static_cast<std::size_t>(task.heads * layout_.slot) * row_bytes);
  for (std::int64_t h = 0; h < task.heads; ++h) {
    const std::int64_t head = task.kv_head * problem_.group + task.first_head + h;
    for (int t = 0; t < sampled_rows(present, wanted); ++t) {
      const std::int64_t token = s.q_begin + rows.begin + sampled_row(present, wanted, t);
      kernels_.pack_q(source_rows(problem_.q, s.batch, token, head), 1, problem_.head_dim,
                      round_bf16_,
                      static_cast<char*>(q) +
                          static_cast<std::size_t>(h * layout_.slot + t) * row_bytes);
    }
  }
}

void Selection::score_panel(const Task& task, const Sequence& s, BlockRange rows,
                            std::int64_t panel, char* scratch) const {
  int* const lo = at<int>(scratch, layout_.bounds);
  int* const hi = lo + kMaxRows;
  const int present = static_cast<int>(rows.size());
  const int wanted = static_cast<int>(problem_.selector.rows);
  const int count = static_cast<int>(task.heads * layout_.slot);
  std::fill_n(lo, kMaxRows, 0);
  std::fill_n(hi, kMaxRows, 0);
  const std::int64_t first_key = panel * kPanelKeys;
  for (int t = 0; t < sampled_rows(present, wanted); ++t) {
    const BlockRange keys =
        visible_keys(sequences_, s, rows.begin + sampled_row(present, wanted, t));
    const BlockRange seen =
        intersect({keys.begin - first_key, keys.end - first_key}, {0, kPanelKeys});
    if (seen.size() == 0) continue;
    for (std::int64_t h = 0; h < task.heads; ++h) {
      lo[h * layout_.slot + t] = static_cast<int>(seen.begin);
      hi[h * layout_.slot + t] = static_cast<int>(seen.end);
    }
  }
  float* const scores = at<float>(scratch, layout_.scores);
  float* const row_max = at<float>(scratch, layout_.row_max) + panel * kMaxRows;
  const char* const k = static_cast<const char*>(
      k_panel(task.kv_head, first_panel_[static_cast<std::size_t>(task.sequence)] + panel));
  Upcoming upcoming{{k, k}, {k, k}};
  if (panel + 1 < panels_of(s)) {
    upcoming.begin[0] = k + layout_.k_panel_bytes;
    upcoming.end[0] = upcoming.begin[0] + layout_.k_panel_bytes;
  }
  kernels_.scores(scratch + layout_.q, k, layout_.steps, 0, count, upcoming, scores, row_max);
  const bool whole = std::all_of(lo, lo + count, [](int low) { return low == 0; }) &&
                     std::all_of(hi, hi + count, [](int high) { return high == kPanelKeys; });
  if (!whole || scale_.early) {
    kernels_.mask(0, count, lo, hi, scale_.early ? *problem_.softmax_scale : 1.0f,
                  problem_.softcap, scores, row_max);
  }
  kernels_.weight_sums(count, scores, row_max, scale_.log2,
                       at<float>(scratch, layout_.sums) + panel * kMaxRows);
}

// The masses of a head's blocks, whose rows are the tile's from first_row on.
std::vector<std::uint32_t> Selection::weigh(const float* row_max, const float* sums,
                                            BlockRange panels, std::int64_t first_row,
                                            BlockRange visible) const {
  const int rows = static_cast<int>(layout_.slot);
  alignas(64) float reference[kMaxRows];
  alignas(64) float inverse[kMaxRows] = {};
  alignas(64) float factor[kMaxRows] = {};
  int counted = 0;
  for (int r = 0; r < rows; ++r) {
    float largest = -kInfinity;
    for (std::int64_t p = panels.begin; p < panels.end; ++p) {
      largest = std::max(largest, row_max[p * kMaxRows + first_row + r]);
    }
    double total = 0;
    for (std::int64_t p = panels.begin; p < panels.end; ++p) {
      const std::int64_t cell = p * kMaxRows + first_row + r;
      if (row_max[cell] == -kInfinity) continue;
      total += std::exp2((double{row_max[cell]} - double{largest}) * double{scale_.log2}) *
               double{sums[cell]};
    }
    // Of a row that sees nothing, or whose scores are not numbers, nothing counts.
    const bool counts = std::isfinite(total) && total > 0;
    reference[r] = counts ? largest : 0.0f;
    inverse[r] = counts ? static_cast<float>(1 / total) : 0.0f;
    counted += counts ? 1 : 0;
  }
  std::vector<std::uint32_t> masses;
  const std::int64_t per_block = block_.kv / kPanelKeys;
  const std::int64_t base = sequences_.kv_offset / block_.kv;
  for (std::int64_t j = visible.begin; j < visible.end; ++j) {
    double mass = 0;
    for (std::int64_t part = 0; part < per_block; ++part) {
      const std::int64_t p = (j - base) * per_block + part;
      if (!panels.contains(p)) continue;
      const float* const of_panel = row_max + p * kMaxRows + first_row;
      for (int r = 0; r < rows; ++r) {
        factor[r] = inverse[r] == 0 ? 0.0f : inverse[r] * sums[p * kMaxRows + first_row + r];
      }
      mass += double{kernels_.mass(rows, of_panel, of_panel, scale_.log2, reference, factor)};
    }
    masses.push_back(static_cast<std::uint32_t>(
        std::llrint(mass / std::max(counted, 1) * double{kMassUnits})));
  }
  return masses;
}

Choices Selection::choose(const Task& task, std::int64_t row, char* scratch) const {
  const Sequence s = sequence_at(sequences_, task.sequence);
  const std::int64_t i = first_q_block(s, block_) + row;
  const BlockRange rows = q_block_rows(s, i, block_);
  const BlockRange visible = visible_blocks(sequences_, s, i);
  const std::int64_t base = sequences_.kv_offset / block_.kv;
  const std::int64_t per_block = block_.kv / kPanelKeys;
  BlockRange panels{(visible.begin - base) * per_block,
                    std::min((visible.end - base) * per_block, panels_of(s))};
  if (visible.size() == 0) panels = {};

  pack_rows(task, s, rows, scratch + layout_.q);
  for (std::int64_t panel = panels.begin; panel < panels.end; ++panel) {
    score_panel(task, s, rows, panel, scratch);
  }
  std::vector<std::uint8_t> always;
  for (std::int64_t j = visible.begin; j < visible.end; ++j) {
    always.push_back(selector_keeps(problem_.selector.sink_blocks, problem_.selector.local_blocks,
                                    i, j, block_)
                         ? 1
                         : 0);
  }
  Choices result;
  result.first = visible.begin - base;
  for (std::int64_t h = 0; h < task.heads; ++h) {
    result.masses.push_back(weigh(at<float>(scratch, layout_.row_max),
                                  at<float>(scratch, layout_.sums), panels, h * layout_.slot,
                                  visible));
    result.choices.push_back(
        choose_blocks(problem_.selector, problem_.stride, result.masses.back(), always));
  }
  return result;
}

void Selection::select(const Task& task, int worker) {
  char* const scratch = scratch_of(worker);
  Choices before;
  if (problem_.selector.previous && task.row_begin > 0) {
    before = choose(task, task.row_begin - 1, scratch);
  }
  for (std::int64_t row = task.row_begin; row < task.row_end; ++row) {
    Choices now = choose(task, row, scratch);
    for (std::int64_t h = 0; h < task.heads; ++h) {
      const auto of_head = static_cast<std::size_t>(h);
      BlockChoice choice = now.choices[of_head];
      if (problem_.selector.previous && !before.choices.empty()) {
        const std::vector<std::uint8_t>& kept = before.choices[of_head].kept;
        std::vector<std::uint8_t> shifted(choice.kept.size(), 0);
        for (std::size_t n = 0; n < shifted.size(); ++n) {
          const std::int64_t there = now.first + static_cast<std::int64_t>(n) - before.first;
          if (there >= 0 && there < static_cast<std::int64_t>(kept.size())) {
            shifted[n] = kept[static_cast<std::size_t>(there)];
          }
        }
        add_previous(now.masses[of_head], shifted, problem_.stride, &choice);
      }
      const std::int64_t head = task.kv_head * problem_.group + task.first_head + h;
      write_choice(problem_, task.sequence, head, row, now.first, choice);
    }
    before = std::move(now);
  }
}

}  // namespace

SelectionLayout selection_layout(const SelectionProblem& problem, const KernelSet& kernels) {
  const SequenceLayout& sequences = problem.sequences;
  SelectionLayout layout;
  layout.steps = problem.head_dim * kernels.words_per_pair / 2;
  // Whole vectors of rows, so that the rows of a head can be added up on their own.
  layout.slot = std::max<std::int64_t>(problem.selector.rows, kMaxLanes);
  layout.heads = std::min<std::int64_t>(problem.group, kMaxRows / layout.slot);
  std::int64_t longest = sequences.max_seqlen_k;
  if (sequences.packed) {
    longest = std::min(longest, problem.k.shape[1]);
    layout.max_panels = problem.k.shape[1] / kPanelKeys + sequences.num_sequences;
  } else {
    layout.max_panels = sequences.num_sequences * ceil_div(longest, kPanelKeys);
  }
  layout.k_panel_bytes = static_cast<std::size_t>(layout.steps * kPanelKeys) * 4;
  const auto cells = static_cast<std::size_t>(ceil_div(longest, kPanelKeys) * kMaxRows);

  Offsets offsets;
  layout.k = offsets.take(static_cast<std::size_t>(layout.max_panels * problem.num_heads_kv) *
                          layout.k_panel_bytes);
  Offsets scratch;
  layout.q = scratch.take(static_cast<std::size_t>(kMaxRows * layout.steps) * 4);
  layout.scores = scratch.take(std::size_t{kMaxRows} * kPanelKeys * 4);
  layout.bounds = scratch.take(std::size_t{2} * kMaxRows * sizeof(int));
  layout.row_max = scratch.take(cells * sizeof(float));
  layout.sums = scratch.take(cells * sizeof(float));
  layout.scratch_bytes = scratch.end();
  layout.scratch = offsets.take(layout.scratch_bytes * static_cast<std::size_t>(problem.workers));
  layout.total = offsets.end();
  return layout;
}

void run_selection(const SelectionProblem& problem, const KernelSet& kernels,
                   const SelectionLayout& layout, bool round_bf16) {
  Selection(problem, kernels, layout, round_bf16).run();
}

}  // namespace bsfa::cpu
