#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "bsfa/attention.hpp"
#include "bsfa/error.hpp"
#include "bsfa/export.hpp"
#include "bsfa/tensor.hpp"

// Which key/value blocks are worth visiting, chosen before attention is computed: from a few rows of
// each query block, scored exactly. docs/method.md, "Sampled selection".

namespace bsfa {

// Of each query block `rows` rows, spread evenly and the last always among them, are scored against
// all keys that they see. The mass of a key/value block is the share of their attention that it
// has, on average. A list has the fewest blocks, largest mass first, that hold `coverage` of it
// together with those that are always kept, and every block of at least `floor`.
struct SampledSelector {
  std::int64_t rows = 32;         // 8, 16, 32 or 64
  float coverage = 0.98f;         // in (0, 1]
  float floor = 0.003f;           // in (0, 1]; 1: coverage alone decides
  std::int64_t sink_blocks = 1;   // always kept: so many blocks from position 0 on; >= 0
  std::int64_t local_blocks = 2;  // and so many before the diagonal, which always is; >= 0
  // Whether a list has besides what was chosen for the query block before, if that is in the call.
  // The choices are then not those of the same rows in other chunks.
  bool previous = false;
  // A query block whose list leaves out a larger share is listed whole; in [0, 1].
  float max_left_out = 1;
};

struct SelectBlocksParams {
  // The attention call to come: q, k and what says who sees what (scale, softcap, causal, offsets,
  // window, packed or padded lengths, block), and where it runs, as there. The other members (v,
  // out, sinks, policy, lists, results on request) are not looked at.
  AttentionParams call;
  SampledSelector selector;

  // The lists, as BlockLists with counts takes them: blocks ascend. On the device of the call.
  std::int32_t* indices = nullptr;  // [batch, num_heads_q, q_blocks, stride]
  std::int32_t* counts = nullptr;   // [batch, num_heads_q, q_blocks]
  // Entries of a list: SelectionPlan::kv_blocks, or fewer, which is then a budget: of the blocks
  // that are not always kept the largest are taken as far as they fit. At least what is always kept.
  std::int64_t stride = 0;
  // What each list leaves out of the attention of the rows that were scored, 0 to 1.
  StridedView<float, 3> left_out;  // [batch, num_heads_q, q_blocks]; may be none
};

struct SelectionPlan {
  Status status;                    // ok, or why no backend serves the call
  std::string backend;              // "cpu", "cuda-sm90", "reference", ...
  std::string kernel;               // e.g. the instruction set or the tile
  std::size_t workspace_bytes = 0;  // linear in the sequence lengths
  std::int64_t q_blocks = 0;        // as AttentionPlan's
  std::int64_t kv_blocks = 0;
};

// Never throws for what is not supported; neither workspace nor the lists' pointers are looked at.
BSFA_API SelectionPlan plan_selection(const SelectBlocksParams& params);

// Writes every count and every left_out, and of indices what the counts say. On CUDA by enqueueing
// on `stream`, without allocation or synchronisation. Throws Error before anything is written.
BSFA_API void select_blocks(const SelectBlocksParams& params);

}  // namespace bsfa
