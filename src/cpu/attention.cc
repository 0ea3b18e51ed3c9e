#include "cpu/attention.hpp"

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>

#include "core/block_lists.hpp"
#include "core/block_order.hpp"
#include "core/gate.hpp"
#include "core/geometry.hpp"
#include "core/tiles.hpp"
#include "cpu/layout.hpp"
#include "cpu/rows.hpp"

// Two phases on the host's executor. First the keys and values of each KV head are packed into
// panels of 64 keys, once for all query heads of its group. Then a task takes one query block of
// one head through its key blocks: scores with their maximum, the gate's decision, and only for
// what is kept the softmax and the values.

namespace bsfa::cpu {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr std::int64_t kPanelsPerPackTask = 4;
constexpr std::int64_t kRowsPerBlankTask = 256;

// One panel of a key block, as seen by the rows of a task.
struct PanelWork {
  std::int64_t panel = 0;
  int row_begin = 0;  // rows that see any of its keys
  int row_end = 0;
  int key_begin = 0;  // keys that any of these rows sees
  int key_end = kPanelKeys;
  bool partial = false;     // some of these rows do not see some of these keys
  const int* lo = nullptr;  // [rows] if partial: the keys that a row sees
  const int* hi = nullptr;
  float* scores = nullptr;
  float* row_max = nullptr;
};

// A key block under way: its panels that any row sees.
struct BlockWork {
  PanelWork panels[2];
  int count = 0;
};

// What a policy knows of a task's rows.
struct RowGate {
  int rows = 0;
  float* reference = nullptr;  // mass: the score that the sums are relative to; skip_softmax: the
                               // largest so far
  float* factor = nullptr;     // mass: one over the sum of the weights of the reference's blocks
  bool complete = false;       // mass: whether both are filled
};

// The sums of a task's rows, and how far they have come.
struct Sums {
  SoftmaxState state;
  int rows = 0;
  std::int64_t group = -1;  // of panels, of which the last was added
  bool carried = false;     // whether the totals hold anything
};

class Call {
 public:
  Call(const Problem& problem, const KernelSet& kernels, const WorkspaceLayout& layout,
       bool round_bf16)
      : problem_(problem),
        sequences_(problem.sequences),
        block_(problem.sequences.block),
        kernels_(kernels),
        round_bf16_(round_bf16),
        layout_(layout),
        units_(at<Unit>(problem.workspace, layout_.units)),
        panels_(at<PackedPanels>(problem.workspace, layout_.panels)),
        scale_(problem) {
    skip_level_ = static_cast<float>(std::log(double{problem.policy.skip_lambda}));
  }

  void run() {
    plan_panels();
    plan_units();
    clear_statistics();
    blank_rows_of_nobody();
    for_each(ceil_div(num_panels_, kPanelsPerPackTask) * problem_.num_heads_kv,
             [this](std::int64_t task, int) { pack(task); });
    for_each(num_units_ * problem_.num_heads_q,
             [this](std::int64_t task, int worker) { attend(task, worker); });
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

  // The key blocks that query block i scores: all that it sees, or the policy's window where nobody
  // asks for the maxima of the others.
  BlockRange blocks_to_score(const Sequence& s, std::int64_t i) const {
    std::int64_t window_blocks = -1;
    switch (problem_.policy.kind) {
      case PolicyKind::kDense:
      case PolicyKind::kThreshold:
      case PolicyKind::kMass:
      case PolicyKind::kSkipSoftmax:
        break;
      case PolicyKind::kSlidingWindow:
        if (!problem_.block_max) window_blocks = problem_.policy.window_blocks;
        break;
    }
    return scored_blocks(sequences_, s, i, window_blocks);
  }

  std::int64_t first_kv_block() const { return sequences_.kv_offset / block_.kv; }

  void plan_panels() {
    for (std::int64_t n = 0; n < sequences_.num_sequences; ++n) {
      const Sequence s = sequence_at(sequences_, n);
      PackedPanels packed{0, 0, num_panels_};
      const BlockRange q_blocks = q_block_range(s, block_);
      const std::int64_t per_block = block_.kv / kPanelKeys;
      for (std::int64_t i = q_blocks.begin; i < q_blocks.end; ++i) {
        const BlockRange blocks = blocks_to_score(s, i);
        if (blocks.size() == 0) continue;
        const std::int64_t begin = (blocks.begin - first_kv_block()) * per_block;
        const std::int64_t end =
            std::min((blocks.end - first_kv_block()) * per_block, ceil_div(s.seqlen_k, kPanelKeys));
        packed.begin = packed.end == 0 ? begin : std::min(packed.begin, begin);
        packed.end = std::max(packed.end, end);
      }
      num_panels_ += packed.end - packed.begin;
      panels_[n] = packed;
    }
  }

  void plan_units() {
    for (std::int64_t n = 0; n < sequences_.num_sequences; ++n) {
      const Sequence s = sequence_at(sequences_, n);
      const BlockRange q_blocks = q_block_range(s, block_);
      for (std::int64_t i = q_blocks.begin; i < q_blocks.end; ++i) {
        units_[num_units_++] = {blocks_to_score(s, i).size(), static_cast<std::int32_t>(n),
                                static_cast<std::int32_t>(i)};
      }
    }
    std::sort(units_, units_ + num_units_, [](const Unit& a, const Unit& b) {
      if (a.cost != b.cost) return a.cost > b.cost;
      return a.sequence != b.sequence ? a.sequence < b.sequence : a.q_block < b.q_block;
    });
  }

  // Counts start from 0; rows of blocks that a sequence does not have hold nothing.
  void clear_statistics() {
    const bool counts = problem_.kept_blocks || problem_.visible_blocks;
    const bool blocks = problem_.kept_mask || problem_.block_max;
    if (!counts && !blocks) return;
    for (std::int64_t n = 0; n < sequences_.num_sequences; ++n) {
      const std::int64_t q_blocks = q_block_range(sequence_at(sequences_, n), block_).size();
      for (std::int64_t head = 0; head < problem_.num_heads_q; ++head) {
        for (const auto* view : {&problem_.kept_blocks, &problem_.visible_blocks}) {
          if (*view) view->data[n * view->stride[0] + head * view->stride[1]] = 0;
        }
        if (!blocks) continue;
        for (std::int64_t row = q_blocks; row < problem_.q_blocks; ++row) {
          clear_block_row(n, head, row);
        }
      }
    }
  }

  // Rows of a packed call that belong to no sequence: out = 0, lse = -inf.
  void blank_rows_of_nobody() {
    const BlockRange rows = rows_of_nobody(sequences_, problem_.q.shape[1]);
    for_each(ceil_div(rows.size(), kRowsPerBlankTask), [&](std::int64_t task, int) {
      const std::int64_t begin = rows.begin + task * kRowsPerBlankTask;
      const std::int64_t end = std::min(begin + kRowsPerBlankTask, rows.end);
      for (std::int64_t row = begin; row < end; ++row) {
        for (std::int64_t head = 0; head < problem_.num_heads_q; ++head) blank_row(row, head);
      }
    });
  }

  void blank_row(std::int64_t row, std::int64_t head) {
    const OutputView& out = problem_.out;
    const StridedView<float, 3>& lse = problem_.lse;
    std::memset(element(out.data, out.dtype, row * out.stride[1] + head * out.stride[2]), 0,
                static_cast<std::size_t>(problem_.head_dim_v * dtype_size(out.dtype)));
    if (lse) lse.data[head * lse.stride[1] + row * lse.stride[2]] = -kInfinity;
  }

  void clear_block_row(std::int64_t n, std::int64_t head, std::int64_t row) {
    for (std::int64_t j = 0; j < problem_.kv_blocks; ++j) {
      if (problem_.kept_mask) *cell(problem_.kept_mask, n, head, row, j) = 0;
      if (problem_.block_max) *cell(problem_.block_max, n, head, row, j) = -kInfinity;
    }
  }

  template <typename T>
  static T* cell(const StridedView<T, 4>& view, std::int64_t n, std::int64_t head, std::int64_t row,
                 std::int64_t column) {
    return view.data + n * view.stride[0] + head * view.stride[1] + row * view.stride[2] +
           column * view.stride[3];
  }

  void pack(std::int64_t task) {
    const std::int64_t kv_head = task % problem_.num_heads_kv;
    const std::int64_t begin = task / problem_.num_heads_kv * kPanelsPerPackTask;
    const std::int64_t end = std::min(begin + kPanelsPerPackTask, num_panels_);
    const PackedPanels* const all = panels_;
    const PackedPanels* const last = all + sequences_.num_sequences;
    const PackedPanels* owner = std::upper_bound(all, last, begin,
                                                 [](std::int64_t panel, const PackedPanels& p) {
                                                   return panel < p.first;
                                                 }) -
                                1;
    for (std::int64_t stored = begin; stored < end; ++stored) {
      while (stored >= owner->first + (owner->end - owner->begin)) ++owner;
      const Sequence s = sequence_at(sequences_, owner - all);
      const std::int64_t panel = owner->begin + stored - owner->first;
      const std::int64_t keys = std::min<std::int64_t>(kPanelKeys, s.seqlen_k - panel * kPanelKeys);
      kernels_.pack_k(panel_rows(problem_.k, s, panel, kv_head), keys, problem_.head_dim,
                      round_bf16_, k_panel(kv_head, stored));
      const bool not_finite =
          kernels_.pack_v(panel_rows(problem_.v, s, panel, kv_head), 0, keys, problem_.head_dim_v,
                          layout_.padded_dim_v, round_bf16_, v_panel(kv_head, stored));
      *v_not_finite(kv_head, stored) = not_finite ? 1 : 0;
    }
  }

  static SourceRows panel_rows(const TensorView& tensor, const Sequence& s, std::int64_t panel,
                               std::int64_t kv_head) {
    return source_rows(tensor, s.batch, s.k_begin + panel * kPanelKeys, kv_head);
  }

  void* k_panel(std::int64_t kv_head, std::int64_t stored) const {
    return panel_at(layout_.k, kv_head, stored, layout_.k_panel_bytes);
  }
  void* v_panel(std::int64_t kv_head, std::int64_t stored) const {
    return panel_at(layout_.v, kv_head, stored, layout_.v_panel_bytes);
  }
  std::uint8_t* v_not_finite(std::int64_t kv_head, std::int64_t stored) const {
    return static_cast<std::uint8_t*>(panel_at(layout_.v_not_finite, kv_head, stored, 1));
  }
  void* panel_at(std::size_t base, std::int64_t kv_head, std::int64_t stored,
                 std::size_t bytes) const {
    const auto index = static_cast<std::size_t>(kv_head * layout_.max_panels + stored);
    return at<char>(problem_.workspace, base + index * bytes);
  }

  // A task: unit and head, heads that share keys next to each other.
  void attend(std::int64_t task, int worker);
  // Fills in which rows and keys meet; false if none do.
  bool meet(const Sequence& s, BlockRange rows, std::int64_t panel, int* bounds,
            PanelWork* work) const;
  BlockStatistic score(const PanelWork& work, const void* q, const void* k,
                       const Upcoming& upcoming) const;
  SoftmaxState softmax_state(char* scratch) const;
  void add(const PanelWork& work, const Sequence& s, std::int64_t kv_head, std::int64_t stored,
           Sums* sums, void* spare_v) const;
  void carry(Sums* sums) const;
  SoftmaxState finished(Sums* sums) const;
  RowGate row_gate(char* scratch, int rows) const;
  void complete_reference(const Sums& sums, RowGate* gate) const;
  bool keeps_mass(const BlockWork& block, float level, const RowGate& gate) const;
  bool keeps_skip_softmax(const BlockWork& block, RowGate* gate) const;

  const Problem& problem_;
  const SequenceLayout& sequences_;
  const BlockShape block_;
  const KernelSet& kernels_;
  const bool round_bf16_;
  const WorkspaceLayout& layout_;
  Unit* const units_;
  PackedPanels* const panels_;
  std::int64_t num_units_ = 0;
  std::int64_t num_panels_ = 0;
  const ScoreScale scale_;
  float skip_level_ = 0;  // what a row may lie below its largest score so far
};

bool Call::meet(const Sequence& s, BlockRange rows, std::int64_t panel, int* bounds,
                PanelWork* work) const {
  const std::int64_t first_key = panel * kPanelKeys;
  const int count = static_cast<int>(rows.size());
  const auto keys_of = [&](int row) {
    const BlockRange keys = visible_keys(sequences_, s, rows.begin + row);
    return BlockRange{keys.begin - first_key, keys.end - first_key};
  };
  work->panel = panel;
  work->row_begin = 0;
  work->row_end = count;
  const std::int64_t key = s.q_offset + rows.begin - sequences_.kv_offset;  // of the first row
  if (whole_blocks<kPanelKeys>(key, rows.size(), s.seqlen_k, sequences_.causal, sequences_.window)
          .contains(panel)) {
    return true;
  }

  int* lo = bounds;
  int* hi = bounds + kMaxRows;
  int begin = count;
  int end = 0;
  work->key_begin = kPanelKeys;
  work->key_end = 0;
  for (int row = 0; row < count; ++row) {
    const BlockRange keys = intersect(keys_of(row), {0, kPanelKeys});
    lo[row] = keys.size() > 0 ? static_cast<int>(keys.begin) : 0;
    hi[row] = keys.size() > 0 ? static_cast<int>(keys.end) : 0;
    if (keys.size() == 0) continue;
    begin = std::min(begin, row);
    end = row + 1;
    work->key_begin = std::min(work->key_begin, lo[row]);
    work->key_end = std::max(work->key_end, hi[row]);
  }
  work->row_begin = begin;
  work->row_end = end;
  work->partial = true;
  work->lo = lo;
  work->hi = hi;
  return begin < end;
}

BlockStatistic Call::score(const PanelWork& work, const void* q, const void* k,
                           const Upcoming& upcoming) const {
  const BlockStatistic statistic = kernels_.scores(
      q, k, layout_.steps, work.row_begin, work.row_end, upcoming, work.scores, work.row_max);
  if (!work.partial && !scale_.early) return statistic;
  static constexpr auto kNone = [] {
    std::array<int, kMaxRows> bounds{};
    return bounds;
  }();
  static constexpr auto kAll = [] {
    std::array<int, kMaxRows> bounds{};
    bounds.fill(kPanelKeys);
    return bounds;
  }();
  return kernels_.mask(work.row_begin, work.row_end, work.partial ? work.lo : kNone.data(),
                       work.partial ? work.hi : kAll.data(),
                       scale_.early ? *problem_.softmax_scale : 1.0f, problem_.softcap, work.scores,
                       work.row_max);
}

SoftmaxState Call::softmax_state(char* scratch) const {
  float* next = at<float>(scratch, layout_.state);
  const auto take = [&](std::int64_t columns) {
    float* const array = next;
    next += kMaxRows * columns;
    return array;
  };
  SoftmaxState state{};
  state.padded_dim_v = layout_.padded_dim_v;
  state.reference = take(1);
  state.subtract = take(1);
  state.rescale = take(1);
  state.sum = take(kMaxLanes);
  state.out = take(layout_.padded_dim_v);
  state.total_reference = take(1);
  state.total_sum = take(kMaxLanes);
  state.total_out = take(layout_.padded_dim_v);
  std::fill_n(state.reference, kMaxRows, -kInfinity);
  std::fill_n(state.subtract, kMaxRows, 0.0f);
  std::fill_n(state.sum, kMaxRows * kMaxLanes, 0.0f);
  std::fill_n(state.out, kMaxRows * layout_.padded_dim_v, 0.0f);
  return state;
}

void Call::carry(Sums* sums) const {
  kernels_.carry(sums->rows, !sums->carried, scale_.log2, sums->state);
  sums->carried = true;
}

// With the sums of all groups in place of the last one's.
SoftmaxState Call::finished(Sums* sums) const {
  SoftmaxState state = sums->state;
  if (!sums->carried) return state;
  carry(sums);
  state.sum = state.total_sum;
  state.out = state.total_out;
  return state;
}

void Call::add(const PanelWork& work, const Sequence& s, std::int64_t kv_head, std::int64_t stored,
               Sums* sums, void* spare_v) const {
  // Groups are of the sequence, not of what was kept: the bits of a row do not depend on others.
  const std::int64_t group = work.panel / kGroupPanels;
  if (sums->group >= 0 && sums->group != group) carry(sums);
  sums->group = group;
  const SoftmaxState& state = sums->state;
  kernels_.softmax_step(work.row_begin, work.row_end, work.row_max, scale_.log2, state);
  if (!work.partial || *v_not_finite(kv_head, stored) == 0) {
    kernels_.add_values(work.row_begin, work.row_end, work.key_begin, work.key_end, work.scores,
                        scale_.log2, v_panel(kv_head, stored), state);
    return;
  }
  // A value that is NaN or infinite reaches only the rows that see it: a weight of 0 would not keep
  // it from the others. So each row gets a panel of what it sees.
  for (int row = work.row_begin; row < work.row_end; ++row) {
    kernels_.pack_v(panel_rows(problem_.v, s, work.panel, kv_head), work.lo[row], work.hi[row],
                    problem_.head_dim_v, layout_.padded_dim_v, round_bf16_, spare_v);
    kernels_.add_values(row, row + 1, work.lo[row], work.hi[row], work.scores, scale_.log2, spare_v,
                        state);
  }
}

RowGate Call::row_gate(char* scratch, int rows) const {
  float* const arrays = at<float>(scratch, layout_.gate);
  const RowGate gate{rows, arrays, arrays + kMaxRows};
  std::fill_n(gate.reference, kMaxRows, -kInfinity);
  std::fill_n(gate.factor, kMaxRows, 0.0f);
  return gate;
}

// The sums so far are those of the blocks that the mass policy always keeps. exp(score - their
// log-sum-exp) is exp(score - reference) / sum: no logarithm is taken. The factor of a row that has
// seen nothing of them is infinite, which keeps whatever it sees.
void Call::complete_reference(const Sums& sums, RowGate* gate) const {
  const SoftmaxState& state = sums.state;
  for (int row = 0; row < gate->rows; ++row) {
    const auto lanes = [&](const float* sum) {
      double total = 0;
      for (int lane = 0; lane < kMaxLanes; ++lane) total += double{sum[row * kMaxLanes + lane]};
      return total;
    };
    double sum = lanes(state.sum);
    if (sums.carried) {
      const float rise = state.total_reference[row] - state.subtract[row];
      sum += lanes(state.total_sum) * std::exp2(double{rise} * double{scale_.log2});
    }
    gate->reference[row] = state.subtract[row];
    gate->factor[row] = static_cast<float>(1 / sum);
  }
  gate->complete = true;
}

bool Call::keeps_mass(const BlockWork& block, float level, const RowGate& gate) const {
  if (block.count == 0) return false;
  const float* const row_max = block.panels[0].row_max;
  const float* const other_max = block.panels[block.count - 1].row_max;
  const float mass =
      kernels_.mass(gate.rows, row_max, other_max, scale_.log2, gate.reference, gate.factor);
  return keep_mass(mass, level, gate.rows);
}

// Also raises the rows' largest scores: those of a block that is left out are all below them.
bool Call::keeps_skip_softmax(const BlockWork& block, RowGate* gate) const {
  bool keep = false;
  for (int row = 0; row < gate->rows; ++row) {
    float largest = -kInfinity;
    for (int i = 0; i < block.count; ++i) {
      largest = std::max(largest, block.panels[i].row_max[row]);
    }
    if (largest == -kInfinity) continue;  // sees nothing of the block
    float& running = gate->reference[row];
    const float rise = (largest - running) * scale_.late;
    keep = keep || !(rise < skip_level_);
    running = std::max(running, largest);
  }
  return keep;
}

void Call::attend(std::int64_t task, int worker) {
  const Unit unit = units_[task / problem_.num_heads_q];
  const std::int64_t head = task % problem_.num_heads_q;
  const std::int64_t kv_head = head / problem_.group;
  const std::int64_t n = unit.sequence;
  const Sequence s = sequence_at(sequences_, n);
  const BlockRange rows = q_block_rows(s, unit.q_block, block_);
  const int count = static_cast<int>(rows.size());
  const PackedPanels packed = panels_[n];

  char* const scratch =
      at<char>(problem_.workspace,
               layout_.scratch + static_cast<std::size_t>(worker) * layout_.scratch_bytes);
  void* const q = scratch + layout_.q;
  void* const spare_v = scratch + layout_.spare_v;
  const SoftmaxState state = softmax_state(scratch);
  Sums sums{state, count};
  RowGate gate = row_gate(scratch, count);

  const std::int64_t first_row = s.q_begin + rows.begin;
  kernels_.pack_q(source_rows(problem_.q, s.batch, first_row, head), count, problem_.head_dim,
                  round_bf16_, q);

  const std::int64_t block_row = unit.q_block - first_q_block(s, block_);
  if (problem_.kept_mask || problem_.block_max) clear_block_row(n, head, block_row);
  std::int64_t kept_blocks = 0;
  const int per_block = static_cast<int>(block_.kv / kPanelKeys);
  const std::int64_t i = unit.q_block;
  const BlockRange blocks = blocks_to_score(s, i);
  const std::int64_t visible = visible_blocks(sequences_, s, i).size();
  const auto stored = [&](std::int64_t panel) { return packed.first + panel - packed.begin; };

  // The values of a kept block are added one block later, while they come into the cache: they are
  // not touched before the decision.
  BlockWork works[2];
  BlockWork* pending = nullptr;
  const auto add_pending = [&] {
    if (pending == nullptr) return;
    for (int part = 0; part < pending->count; ++part) {
      const PanelWork& work = pending->panels[part];
      add(work, s, kv_head, stored(work.panel), &sums, spare_v);
    }
    pending = nullptr;
  };
  const auto keeps = [&](std::int64_t j, float block_max, const BlockWork& block) {
    switch (problem_.policy.kind) {
      case PolicyKind::kDense:
        return true;
      case PolicyKind::kSlidingWindow:
        return sliding_window_range(i, problem_.policy.window_blocks, block_).contains(j);
      case PolicyKind::kThreshold: {
        const ThresholdView& table = problem_.policy.thresholds;
        const float threshold = table.data[n * table.stride_batch + head * table.stride_head +
                                           threshold_index(i, table.num_q_blocks)];
        return keep_block(block_max, threshold, always_kept(i, j, block_));
      }
      case PolicyKind::kMass: {
        if (in_mass_reference(i, j, block_)) return true;
        if (!gate.complete) complete_reference(sums, &gate);
        const float level = mass_level(problem_.policy.mass_c, visible);
        return std::isnan(block_max) || keeps_mass(block, level, gate);
      }
      case PolicyKind::kSkipSoftmax: {
        const bool close = keeps_skip_softmax(block, &gate);
        return close || std::isnan(block_max) || skip_softmax_always_keeps(i, j, block_);
      }
    }
    return true;  // not reached: other policies are refused by plan
  };
  const auto visit = [&](std::int64_t j) {
    const int slot = pending == &works[0] ? 1 : 0;
    BlockWork& block = works[slot];
    block.count = 0;
    BlockStatistic statistic{-kInfinity, false};
    for (int half = 0; half < per_block; ++half) {
      const std::int64_t panel = (j - first_kv_block()) * per_block + half;
      const int tile = 2 * slot + block.count;
      PanelWork& work = block.panels[block.count];
      work = {};
      work.scores = at<float>(scratch, layout_.scores) + tile * kMaxRows * kPanelKeys;
      work.row_max = at<float>(scratch, layout_.row_max) + tile * kMaxRows;
      int* bounds = at<int>(scratch, layout_.visible) + tile * 2 * kMaxRows;
      if (!meet(s, rows, panel, bounds, &work)) continue;
      ++block.count;
      const char* const k = static_cast<const char*>(k_panel(kv_head, stored(panel)));
      Upcoming upcoming{{k, k}, {k, k}};
      if (panel + 1 < packed.end) {
        upcoming.begin[0] = k + layout_.k_panel_bytes;
        upcoming.end[0] = upcoming.begin[0] + layout_.k_panel_bytes;
      }
      if (pending != nullptr && half < pending->count) {
        const std::int64_t kept = stored(pending->panels[half].panel);
        upcoming.begin[1] = static_cast<const char*>(v_panel(kv_head, kept));
        upcoming.end[1] = upcoming.begin[1] + layout_.v_panel_bytes;
      }
      const BlockStatistic part = score(work, q, k, upcoming);
      statistic.max = std::max(statistic.max, part.max);
      statistic.has_nan = statistic.has_nan || part.has_nan;
    }
    add_pending();
    const float block_max =
        statistic.has_nan ? std::numeric_limits<float>::quiet_NaN() : statistic.max * scale_.late;
    const std::int64_t column = j - first_kv_block();
    if (problem_.block_max) *cell(problem_.block_max, n, head, block_row, column) = block_max;
    if (!keeps(j, block_max, block)) return;
    ++kept_blocks;
    if (problem_.kept_mask) *cell(problem_.kept_mask, n, head, block_row, column) = 1;
    pending = &block;
  };

  const BlockOrder order = block_order(problem_.policy, i, blocks, block_);
  int run = 0;
  for (; run < order.reference_runs; ++run) {
    for (std::int64_t step = 0; step < order.runs[run].count; ++step) {
      const std::int64_t j = order.runs[run].at(step);
      if (is_listed(problem_.lists, problem_.num_heads_q, n, head, block_row,
                    j - first_kv_block())) {
        visit(j);
      }
    }
  }
  if (problem_.lists) {
    const BlockList list = block_list(problem_.lists, problem_.num_heads_q, n, head, block_row);
    for (std::int64_t step = 0; step < list.count; ++step) {
      const std::int64_t j = first_kv_block() + list.blocks[step];
      const bool visited = order.reference_runs > 0 && in_mass_reference(i, j, block_);
      if (blocks.contains(j) && !visited) visit(j);
    }
  } else {
    for (; run < BlockOrder::kRuns; ++run) {
      for (std::int64_t step = 0; step < order.runs[run].count; ++step) {
        visit(order.runs[run].at(step));
      }
    }
  }
  add_pending();

  // Query blocks of a head are counted by whichever workers ran them.
  const auto count_blocks = [&](const StridedView<std::int64_t, 2>& view, std::int64_t value) {
    if (!view) return;
    std::atomic_ref<std::int64_t>(view.data[n * view.stride[0] + head * view.stride[1]])
        .fetch_add(value, std::memory_order_relaxed);
  };
  count_blocks(problem_.kept_blocks, kept_blocks);
  count_blocks(problem_.visible_blocks, visible);

  const OutputView& out = problem_.out;
  const StridedView<float, 3>& lse = problem_.lse;
  float* lse_row = nullptr;
  if (lse) {
    lse_row = lse.data + s.batch * lse.stride[0] + head * lse.stride[1] + first_row * lse.stride[2];
  }
  kernels_.finish(
      count, problem_.head_dim_v, scale_.late, finished(&sums),
      problem_.sinks != nullptr ? problem_.sinks + head : nullptr,
      element(out.data, out.dtype,
              s.batch * out.stride[0] + first_row * out.stride[1] + head * out.stride[2]),
      out.stride[1], static_cast<int>(out.dtype), lse_row, lse ? lse.stride[2] : 0);
}

}  // namespace

void run_attention(const Problem& problem, const KernelSet& kernels, const WorkspaceLayout& layout,
                   bool round_bf16) {
  Call(problem, kernels, layout, round_bf16).run();
}

}  // namespace bsfa::cpu
