#pragma once

#include <cstdint>
#include <string>

#include "core/problem.hpp"
#include "cuda/common/device.hpp"
#include "cuda/common/params.hpp"
#include "cuda/common/prepare.hpp"

// From a validated problem to what kernels are launched with, and the refusals that all CUDA
// families share. `backend` is the name for the messages.

namespace bsfa::cuda {

// Refuses what no family serves: dtypes, compute types, gate grids, policies, pages, sizes beyond
// 32-bit indices. head_dim and strides are the family's own matter.
Status check_features(const Problem& problem, const char* backend);

// Refuses pointers that the device of the call cannot follow, but for those that `checked` has too.
Status check_pointers(const Problem& problem, const AttentionParams& checked = {});

// "dense 128x64x128": the form of a kernel and its tile, for AttentionPlan::kernel.
std::string kernel_text(const Problem& problem);

// The query blocks of all sequences, or where lengths are on the device a bound: in a packed batch a
// sequence of n rows touches at most n / 128 + 2.
std::int64_t most_q_blocks(const Problem& problem);

// Which form of a kernel serves the problem.
Form form_of(const Problem& problem);

// Key/value heads worked on at a time, so that `tensors` of theirs (keys; keys and values) stay in
// the L2.
int section_kv_heads(const Problem& problem, const DeviceFacts& facts, int tensors);

// With the workspace as the tile counter.
KernelParams kernel_params(const Problem& problem, const DeviceFacts& facts);

PrepareParams prepare_params(const Problem& problem, const KernelParams& kernel);

}  // namespace bsfa::cuda
