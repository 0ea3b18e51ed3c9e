#pragma once

#include <cstddef>
#include <cstdint>

#include "bsfa/attention.hpp"

// What is a call, and what are merely the places that it works on. Both are listed here once.

namespace bsfa {

// f(name, a's pointer, b's pointer) for every pointer to data of two calls. Those of operands are
// untyped.
template <typename A, typename B, typename F>
constexpr void for_each_pointer(A& a, B& b, F&& f) {
  f("q", a.q.data, b.q.data);
  f("k", a.k.data, b.k.data);
  f("v", a.v.data, b.v.data);
  f("out", a.out.data, b.out.data);
  f("sinks", a.sinks, b.sinks);
  f("policy.thresholds", a.policy.thresholds.data, b.policy.thresholds.data);
  f("lists.indices", a.lists.indices, b.lists.indices);
  f("lists.offsets", a.lists.offsets, b.lists.offsets);
  f("lists.counts", a.lists.counts, b.lists.counts);
  f("cu_seqlens_q", a.cu_seqlens_q, b.cu_seqlens_q);
  f("cu_seqlens_k", a.cu_seqlens_k, b.cu_seqlens_k);
  f("seqused_k", a.seqused_k, b.seqused_k);
  f("leftpad_k", a.leftpad_k, b.leftpad_k);
  f("q_offsets", a.q_offsets, b.q_offsets);
  f("page_table", a.page_table, b.page_table);
  f("lse", a.lse.data, b.lse.data);
  f("kept_blocks", a.kept_blocks.data, b.kept_blocks.data);
  f("visible_blocks", a.visible_blocks.data, b.visible_blocks.data);
  f("kept_mask", a.kept_mask.data, b.kept_mask.data);
  f("block_max", a.block_max.data, b.block_max.data);
}

// Whether `now` is the call `planned` on other pointers: everything else equal, the same pointers
// present, operands aligned as well (up to 16 bytes). Executor, stream and workspace do not count.
bool same_call(const AttentionParams& planned, const AttentionParams& now);

// The same as a refusal that names what differs.
Status check_same_call(const AttentionParams& planned, const AttentionParams& now);

}  // namespace bsfa
