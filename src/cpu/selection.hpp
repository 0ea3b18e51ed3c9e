#pragma once

#include <cstddef>
#include <cstdint>

#include "core/selection.hpp"
#include "cpu/kernels.hpp"

// The sampled selector on the CPU.

namespace bsfa::cpu {

// Where everything lies in the caller's workspace, as WorkspaceLayout.
struct SelectionLayout {
  std::int64_t steps = 0;       // words along head_dim
  std::int64_t max_panels = 0;  // of all sequences, for one KV head
  std::int64_t slot = 0;        // rows of a tile that belong to a head
  std::int64_t heads = 0;       // heads of a tile
  std::size_t k_panel_bytes = 0;

  // Bytes from the start of the workspace.
  std::size_t k = 0;        // [num_heads_kv][max_panels] k panels
  std::size_t scratch = 0;  // [workers] of scratch_bytes
  std::size_t total = 0;

  // Bytes from the start of a worker's scratch.
  std::size_t scratch_bytes = 0;
  std::size_t q = 0;        // packed rows
  std::size_t scores = 0;   // float [kMaxRows][64]
  std::size_t bounds = 0;   // int [lo, hi][kMaxRows]
  std::size_t row_max = 0;  // float [panels of a sequence][kMaxRows]
  std::size_t sums = 0;     // likewise: of the weights relative to row_max
};

SelectionLayout selection_layout(const SelectionProblem& problem, const KernelSet& kernels);

void run_selection(const SelectionProblem& problem, const KernelSet& kernels,
                   const SelectionLayout& layout, bool round_bf16);

}  // namespace bsfa::cpu
