#pragma once

#include <cstddef>
#include <cstdint>

#include "core/problem.hpp"
#include "cpu/kernels.hpp"

// Where everything lies in the caller's workspace. Sizes depend on shapes, policy and the number of
// workers alone, so that a plan can state them.

namespace bsfa::cpu {

// One query block of one sequence; a task is a unit and a query head.
struct Unit {
  std::int64_t cost;  // key blocks to score
  std::int32_t sequence;
  std::int32_t q_block;  // absolute
};

// The packed keys and values of one sequence: panels [begin, end) of 64 keys, counted from its
// first key, stored from `first` on.
struct PackedPanels {
  std::int64_t begin;
  std::int64_t end;
  std::int64_t first;
};

// Two key blocks in flight, each of at most two panels.
inline constexpr int kScoreTiles = 4;

struct WorkspaceLayout {
  std::int64_t steps = 0;         // words along head_dim
  std::int64_t padded_dim_v = 0;  // head_dim_v rounded up to a full vector
  std::int64_t key_steps = 0;     // words along the 64 keys of a v panel
  std::int64_t max_units = 0;
  std::int64_t max_panels = 0;  // of all sequences, for one KV head
  int workers = 1;

  // Bytes from the start of the workspace.
  std::size_t units = 0;         // Unit [max_units]
  std::size_t panels = 0;        // PackedPanels [num_sequences]
  std::size_t k = 0;             // [num_heads_kv][max_panels] k panels
  std::size_t v = 0;             // [num_heads_kv][max_panels] v panels
  std::size_t v_not_finite = 0;  // uint8 [num_heads_kv][max_panels]
  std::size_t scratch = 0;       // [workers] of scratch_bytes
  std::size_t total = 0;

  // One panel.
  std::size_t k_panel_bytes = 0;
  std::size_t v_panel_bytes = 0;

  // Bytes from the start of a worker's scratch.
  std::size_t scratch_bytes = 0;
  std::size_t q = 0;        // packed rows
  std::size_t scores = 0;   // float [kScoreTiles][kMaxRows][64]
  std::size_t row_max = 0;  // float [kScoreTiles][kMaxRows]
  std::size_t visible = 0;  // int [kScoreTiles][lo, hi][kMaxRows]
  std::size_t state = 0;    // SoftmaxState's arrays
  std::size_t gate = 0;     // float [2][kMaxRows]: what a policy knows of each row
  std::size_t spare_v = 0;  // a v panel
};

WorkspaceLayout workspace_layout(const Problem& problem, const KernelSet& kernels);

}  // namespace bsfa::cpu
