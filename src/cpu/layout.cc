#include "cpu/layout.hpp"

#include "core/gate.hpp"
#include "cpu/offsets.hpp"

namespace bsfa::cpu {
WorkspaceLayout workspace_layout(const Problem& problem, const KernelSet& kernels) {
  const SequenceLayout& sequences = problem.sequences;
  const std::int64_t count = sequences.num_sequences;
  WorkspaceLayout layout;
  layout.steps = problem.head_dim * kernels.words_per_pair / 2;
  layout.padded_dim_v = ceil_div(problem.head_dim_v, kMaxLanes) * kMaxLanes;
  layout.key_steps = kPanelKeys * kernels.words_per_pair / 2;
  layout.workers = problem.workers;
  if (sequences.packed) {
    // Each sequence adds at most one panel that is not full, and two such query blocks.
    layout.max_units = problem.q.shape[1] / sequences.block.q + 2 * count;
    layout.max_panels = problem.k.shape[1] / kPanelKeys + count;
  } else {
    layout.max_units = count * problem.q_blocks;
    layout.max_panels = count * ceil_div(sequences.max_seqlen_k, kPanelKeys);
  }
  layout.k_panel_bytes = static_cast<std::size_t>(layout.steps * kPanelKeys) * 4;
  layout.v_panel_bytes = static_cast<std::size_t>(layout.key_steps * layout.padded_dim_v) * 4;

  const auto all_panels = static_cast<std::size_t>(layout.max_panels * problem.num_heads_kv);
  Offsets offsets;
  layout.units = offsets.take(static_cast<std::size_t>(layout.max_units) * sizeof(Unit));
  layout.panels = offsets.take(static_cast<std::size_t>(count) * sizeof(PackedPanels));
  layout.k = offsets.take(all_panels * layout.k_panel_bytes);
  layout.v = offsets.take(all_panels * layout.v_panel_bytes);
  layout.v_not_finite = offsets.take(all_panels);

  Offsets scratch;
  layout.q = scratch.take(static_cast<std::size_t>(kMaxRows * layout.steps) * 4);
  layout.scores = scratch.take(std::size_t{kScoreTiles} * kMaxRows * kPanelKeys * 4);
  layout.row_max = scratch.take(std::size_t{kScoreTiles} * kMaxRows * 4);
  layout.visible = scratch.take(std::size_t{kScoreTiles} * 2 * kMaxRows * 4);
  const std::int64_t group = 3 + kMaxLanes + layout.padded_dim_v;  // columns of SoftmaxState
  const std::int64_t total = 1 + kMaxLanes + layout.padded_dim_v;
  layout.state = scratch.take(static_cast<std::size_t>(kMaxRows * (group + total)) * 4);
  layout.gate = scratch.take(std::size_t{2} * kMaxRows * 4);
  layout.spare_v = scratch.take(layout.v_panel_bytes);
  layout.scratch_bytes = scratch.end();
  layout.scratch = offsets.take(layout.scratch_bytes * static_cast<std::size_t>(layout.workers));
  layout.total = offsets.end();
  return layout;
}

}  // namespace bsfa::cpu
