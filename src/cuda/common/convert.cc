#include "cuda/common/convert.hpp"

#include <algorithm>
#include <limits>

#include "core/gate.hpp"
#include "core/same_call.hpp"
#include "core/status.hpp"

namespace bsfa::cuda {
namespace {

constexpr std::int64_t kMaxIndex = std::numeric_limits<std::int32_t>::max() - 1024;

template <int kRank>
void copy_strides(const std::int64_t (&from)[kRank], std::int64_t (&to)[kRank]) {
  std::copy(from, from + kRank, to);
}

// Key/value heads of a section: at most `most`, and sections as equal as can be. The tiles of a
// last section that is much smaller than the others would not go round, and the longest would be
// waited for.
constexpr std::int64_t section_heads(std::int64_t kv_heads, std::int64_t most) {
  const std::int64_t sections = ceil_div(kv_heads, std::max<std::int64_t>(most, 1));
  return ceil_div(kv_heads, sections);
}
static_assert(section_heads(8, 7) == 4);
static_assert(section_heads(8, 3) == 3);
static_assert(section_heads(8, 9) == 8);
static_assert(section_heads(5, 0) == 1);

constexpr const char* kPoliciesTaken = " takes dense, threshold, sliding_window";

Status check_policy(PolicyKind kind, const char* backend) {
  switch (kind) {  // without default: the compiler asks about every policy that is added
    case PolicyKind::kDense:
    case PolicyKind::kThreshold:
    case PolicyKind::kSlidingWindow:
      return {};
    case PolicyKind::kMass:
      return unsupported("policy is mass; ", backend, kPoliciesTaken);
    case PolicyKind::kSkipSoftmax:
      return unsupported("policy is skip_softmax; ", backend, kPoliciesTaken);
  }
  return unsupported("policy.kind is ", static_cast<int>(kind), "; ", backend, kPoliciesTaken);
}

const char* form_name(Form form) {
  switch (form) {
    case Form::kDense:
      return "dense";
    case Form::kGated:
      return "gated";
    case Form::kCalibrating:
      return "calibrating";
  }
  return "";  // not reached
}

// Blocks before the always-kept ones that the policy leaves; < 0: all.
std::int64_t window_blocks(const Policy& policy) {
  switch (policy.kind) {
    case PolicyKind::kDense:
    case PolicyKind::kThreshold:
    case PolicyKind::kMass:         // not reached: refused by check_features
    case PolicyKind::kSkipSoftmax:  // likewise
      return -1;
    case PolicyKind::kSlidingWindow:
      return policy.window_blocks;
  }
  return -1;  // not reached: other policies are refused by check_features
}

}  // namespace

Status check_features(const Problem& problem, const char* backend) {
  BSFA_RETURN_IF_ERROR(check_policy(problem.policy.kind, backend));
  const SequenceLayout& layout = problem.sequences;
  if (!(layout.block == BlockShape{})) {
    return unsupported("block is ", layout.block.q, "x", layout.block.kv, "; ", backend,
                       " gates on ", BlockShape{}.q, "x", BlockShape{}.kv);
  }
  if (problem.q.dtype == DType::kFloat32 || problem.q.dtype != problem.k.dtype) {
    return unsupported("q and k have dtypes ", dtype_name(problem.q.dtype), " and ",
                       dtype_name(problem.k.dtype), "; ", backend,
                       " accepts float16 for both or bfloat16 for both");
  }
  if (multiply_dtype(problem, true) != problem.q.dtype) {
    return unsupported("compute_type asks for ", dtype_name(multiply_dtype(problem, true)), "; ",
                       backend, " multiplies ", dtype_name(problem.q.dtype), " inputs as such");
  }
  if (problem.head_dim_v != problem.head_dim) {
    return unsupported("v has head_dim ", problem.head_dim_v, "; ", backend, " accepts that of q, ",
                       problem.head_dim);
  }
  if (problem.page_table != nullptr) {
    return unsupported("page_table was given; ", backend, " takes k and v that are not paged");
  }
  if (problem.block_max && problem.policy.kind == PolicyKind::kSlidingWindow) {
    return unsupported("block_max was asked for with the sliding_window policy; ", backend,
                       " computes no scores outside the window");
  }
  const std::int64_t heads = layout.num_sequences * problem.num_heads_q;
  if (heads > 65535 || heads * std::max<std::int64_t>(problem.q_blocks, 1) > kMaxIndex / 2) {
    return unsupported("the call has ", heads, " (sequence, head) pairs of ", problem.q_blocks,
                       " query blocks; ", backend, " accepts 65535 pairs and 2^30 blocks in all");
  }
  for (const std::int64_t tokens : {problem.q.shape[1], problem.k.shape[1],
                                    layout.max_seqlen_k + layout.kv_offset, layout.window}) {
    if (tokens > kMaxIndex) {
      return unsupported("the call has an extent of ", tokens, " tokens; ", backend,
                         " accepts up to ", kMaxIndex);
    }
  }
  return {};
}

Status check_pointers(const Problem& problem, const AttentionParams& checked) {
  Status status;
  for_each_pointer(problem, checked, [&](const char* name, const void* pointer, const void* known) {
    if (status.ok() && pointer != known) status = check_pointer(name, pointer, problem.device);
  });
  return status;
}

std::int64_t most_q_blocks(const Problem& problem) {
  const SequenceLayout& layout = problem.sequences;
  const std::int64_t bound = layout.num_sequences * problem.q_blocks;
  if (!layout.packed) return bound;
  const std::int64_t rows = problem.q.shape[0] * problem.q.shape[1];
  return std::min(bound, rows / BlockShape{}.q + 2 * layout.num_sequences);
}

Form form_of(const Problem& problem) {
  switch (problem.policy.kind) {
    case PolicyKind::kThreshold:
      return Form::kGated;
    case PolicyKind::kDense:
    case PolicyKind::kSlidingWindow:
    case PolicyKind::kMass:         // not reached: refused by check_features
    case PolicyKind::kSkipSoftmax:  // likewise
      break;
  }
  return problem.block_max ? Form::kCalibrating : Form::kDense;
}

std::string kernel_text(const Problem& problem) {
  const BlockShape block;
  return std::string(form_name(form_of(problem))) + " " + std::to_string(block.q) + "x" +
         std::to_string(block.kv) + "x" + std::to_string(problem.head_dim);
}

int section_kv_heads(const Problem& problem, const DeviceFacts& facts, int tensors) {
  // Half of the L2 for the heads under way; the rest is for what passes.
  const SequenceLayout& layout = problem.sequences;
  const std::int64_t head_bytes =
      std::max<std::int64_t>(2 * tensors * layout.max_seqlen_k * problem.head_dim, 1);
  const std::int64_t kv_heads =
      std::max<std::int64_t>(layout.num_sequences * problem.num_heads_kv, 1);
  return static_cast<int>(section_heads(kv_heads, facts.l2_bytes / 2 / head_bytes));
}

KernelParams kernel_params(const Problem& problem, const DeviceFacts& facts) {
  const SequenceLayout& layout = problem.sequences;
  KernelParams p{};
  p.sequences = layout;
  p.window_blocks = window_blocks(problem.policy);
  p.num_heads_q = static_cast<int>(problem.num_heads_q);
  p.group = static_cast<int>(problem.group);
  p.q_blocks = static_cast<int>(problem.q_blocks);
  p.section_kv_heads = section_kv_heads(problem, facts, 2);
  p.softmax_scale = *problem.softmax_scale;
  p.scale_log2 = *problem.softmax_scale * 1.44269504088896340736f;
  p.slack = kSoftmaxSlack / p.scale_log2;
  p.far = kFarExponent / p.scale_log2;
  p.cap = problem.softcap / *problem.softmax_scale;
  p.inverse_cap = p.cap > 0 ? 1 / p.cap : 0.0f;
  p.zero_value_tail = layout.packed || layout.seqused_k != nullptr || layout.leftpad_k != nullptr;
  p.sinks = problem.sinks;
  p.out = problem.out.data;
  std::copy(problem.out.stride, problem.out.stride + 3, p.out_stride);
  p.lse = problem.lse.data;
  copy_strides(problem.lse.stride, p.lse_stride);
  const ThresholdView& table = problem.policy.thresholds;
  p.thresholds = table.data;
  p.threshold_stride[0] = table.stride_batch;
  p.threshold_stride[1] = table.stride_head;
  p.threshold_blocks = static_cast<int>(std::min<std::int64_t>(table.num_q_blocks, kMaxIndex));
  p.kept_blocks = problem.kept_blocks.data;
  copy_strides(problem.kept_blocks.stride, p.kept_stride);
  p.kept_mask = problem.kept_mask.data;
  copy_strides(problem.kept_mask.stride, p.mask_stride);
  p.block_max = problem.block_max.data;
  copy_strides(problem.block_max.stride, p.max_stride);
  p.lists = problem.lists;
  p.tile_counter = static_cast<int*>(problem.workspace);
  return p;
}

PrepareParams prepare_params(const Problem& problem, const KernelParams& kernel) {
  PrepareParams preparation{};
  preparation.kernel = kernel;
  preparation.form = form_of(problem);
  preparation.kv_blocks = static_cast<int>(problem.kv_blocks);
  preparation.visible_blocks = problem.visible_blocks.data;
  copy_strides(problem.visible_blocks.stride, preparation.visible_stride);
  preparation.packed_rows = problem.sequences.packed ? problem.q.shape[1] : 0;
  preparation.head_dim_v = static_cast<int>(problem.head_dim_v);
  return preparation;
}

}  // namespace bsfa::cuda
