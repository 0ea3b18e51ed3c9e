#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "core/problem.hpp"

// The fp64 oracle: docs/method.md as plainly as it can be written. Slow; every backend is tested
// against it.

namespace bsfa {

// One (sequence, query head). Rows and blocks are those of the sequence; block row 0 is the gate
// block of the first query, column 0 the gate block of position kv_offset.
struct OracleHead {
  std::int64_t seqlen_q = 0;
  std::int64_t q_blocks = 0;
  std::int64_t kv_blocks = 0;
  std::vector<double> out;         // [seqlen_q, head_dim_v]
  std::vector<double> lse;         // [seqlen_q]
  std::vector<double> block_max;   // [q_blocks, kv_blocks]; -inf where invisible
  std::vector<double> band;        // likewise: how far from the threshold a backend may differ
  std::vector<std::uint8_t> kept;  // likewise: 1 iff visible and kept
  // Policies that look at rows (mass, skip_softmax), likewise: what the policy decides, whatever
  // was forced, and where a backend's rounding may decide otherwise.
  std::vector<std::uint8_t> decided, undecided;
  std::int64_t visible_blocks = 0;
  std::int64_t kept_blocks = 0;
};

// `precision`: q, k and v are rounded to it first, as the backend under test sees them.
// `forced_kept`: the decisions to compute the output with, [q_blocks, kv_blocks], in place of the
// policy's; the other members are computed all the same.
OracleHead oracle_head(const Problem& problem, std::int64_t sequence, std::int64_t head,
                       DType precision,
                       const std::optional<std::vector<std::uint8_t>>& forced_kept = {});

}  // namespace bsfa
