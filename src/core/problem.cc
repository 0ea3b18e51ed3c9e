#include "core/problem.hpp"

#include <algorithm>
#include <cmath>
#include <string>

#include "bsfa/limits.hpp"
#include "core/block_lists.hpp"
#include "core/executor.hpp"
#include "core/memory.hpp"
#include "core/status.hpp"

namespace bsfa {
namespace {

Status check_range(const char* name, std::int64_t value, std::int64_t least, std::int64_t most) {
  if (value >= least && value <= most) return {};
  return invalid_argument(name, " is ", value, "; accepted: ", least, " to ", most);
}

// The same for what an operand has so many of.
Status check_at_most(const char* operand, const char* what, std::int64_t count, std::int64_t most) {
  if (count <= most) return {};
  return invalid_argument(operand, " has ", what, " ", count, "; accepted: up to ", most);
}

// Whether a value is one that has a name: through the C ABI any integer comes in. Without default,
// so that the compiler asks about every enumerator that is added.
constexpr bool known(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
    case DType::kFloat16:
    case DType::kBFloat16:
      return true;
  }
  return false;
}

constexpr bool known(ComputeType compute_type) {
  switch (compute_type) {
    case ComputeType::kNative:
    case ComputeType::kFloat32:
    case ComputeType::kBFloat16:
      return true;
  }
  return false;
}

constexpr bool known(SkipOrder order) {
  switch (order) {
    case SkipOrder::kAscending:
    case SkipOrder::kOutwards:
      return true;
  }
  return false;
}

constexpr bool known(DeviceType device) {
  switch (device) {
    case DeviceType::kCpu:
    case DeviceType::kCuda:
      return true;
  }
  return false;
}

template <typename View>
Status check_operand(const char* name, const View& view) {
  if (!known(view.dtype)) {
    return invalid_argument(name, " has dtype ", static_cast<int>(view.dtype),
                            "; accepted: float32, float16, bfloat16");
  }
  if (view.shape[3] > 1 && view.stride[3] != 1) {
    return invalid_argument(name, " has stride ", view.stride[3],
                            " on its last axis (head_dim); accepted: 1");
  }
  const Memory memory = memory_of(name, view);
  BSFA_RETURN_IF_ERROR(check_view(memory));
  const bool empty = std::count(view.shape, view.shape + 4, 0) > 0;
  if (!empty && view.data == nullptr) {
    return invalid_argument(name, " is a null pointer with shape ", shape_text(view.shape, 4));
  }
  return check_at_most(name, "head_dim", view.shape[3], kMaxHeadDim);
}

template <typename T, int kRank>
Status check_statistic(const char* name, const StridedView<T, kRank>& view,
                       const std::int64_t (&expected)[kRank]) {
  if (!view) return {};
  for (int axis = 0; axis < kRank; ++axis) {
    if (view.shape[axis] != expected[axis]) {
      return invalid_argument(name, " has shape ", shape_text(view.shape, kRank), "; expected ",
                              shape_text(expected, kRank));
    }
  }
  const Memory memory = memory_of(name, view);
  BSFA_RETURN_IF_ERROR(check_view(memory));
  return check_no_self_overlap(memory);
}

// The entries that a call reads: one table for all sequences, or one for each.
Memory memory_of_thresholds(const ThresholdView& table, std::int64_t num_sequences) {
  return {"policy.thresholds",
          table.data,
          sizeof(float),
          3,
          {table.stride_batch != 0 ? num_sequences : 1, table.num_heads, table.num_q_blocks},
          {table.stride_batch, table.stride_head, 1}};
}

Status check_table(const ThresholdView& table, BlockShape block, std::int64_t num_heads_q) {
  if (table.data == nullptr) {
    return invalid_argument("policy.thresholds.data is null; the threshold policy needs a table");
  }
  if (table.num_heads != num_heads_q) {
    return invalid_argument("policy.thresholds has ", table.num_heads, " heads; q has ",
                            num_heads_q);
  }
  if (table.num_q_blocks < 1 || table.num_q_blocks > kMaxTokens) {
    return invalid_argument("policy.thresholds has ", table.num_q_blocks,
                            " query blocks; accepted: 1 to ", kMaxTokens);
  }
  if (!(table.block == block)) {
    return invalid_argument("policy.thresholds was calibrated on blocks of ", table.block.q, "x",
                            table.block.kv, "; the call gates on ", block.q, "x", block.kv);
  }
  return {};
}

Status check_skip_softmax(const Policy& policy) {
  if (!(policy.skip_lambda > 0 && policy.skip_lambda <= 1)) {
    return invalid_argument("policy.skip_lambda is ", policy.skip_lambda,
                            "; accepted: above 0, at most 1");
  }
  if (!known(policy.skip_order)) {
    return invalid_argument("policy.skip_order is ", static_cast<int>(policy.skip_order),
                            "; accepted: ascending (0), outwards (1)");
  }
  return {};
}

Status check_policy(const AttentionParams& params, std::int64_t num_heads_q) {
  const BlockShape block = params.block;
  if ((block.q != 64 && block.q != 128) || (block.kv != 64 && block.kv != 128)) {
    return invalid_argument("block is ", block.q, "x", block.kv,
                            "; accepted: 64 or 128 query rows x 64 or 128 keys");
  }
  switch (params.policy.kind) {
    case PolicyKind::kDense:
      return {};
    case PolicyKind::kSlidingWindow:
      return check_range("policy.window_blocks", params.policy.window_blocks, 0, kMaxTokens);
    case PolicyKind::kThreshold:
      return check_table(params.policy.thresholds, block, num_heads_q);
    case PolicyKind::kMass:
      if (std::isfinite(params.policy.mass_c) && params.policy.mass_c > 0) return {};
      return invalid_argument("policy.mass_c is ", params.policy.mass_c,
                              "; accepted: a finite number above 0");
    case PolicyKind::kSkipSoftmax:
      return check_skip_softmax(params.policy);
  }
  return invalid_argument(
      "policy.kind is ", static_cast<int>(params.policy.kind),
      "; accepted: dense (0), threshold (1), sliding_window (2), mass (3), skip_softmax (4)");
}

Status check_cumulative(const char* name, const std::int32_t* offsets, std::int64_t count,
                        std::int64_t total, std::int64_t longest) {
  if (offsets[0] != 0) return invalid_argument(name, "[0] is ", offsets[0], "; expected 0");
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int64_t length = std::int64_t{offsets[i + 1]} - offsets[i];
    if (length < 0) {
      return invalid_argument(name, " falls from ", offsets[i], " to ", offsets[i + 1], " at ", i,
                              "; expected ascending offsets");
    }
    if (length > longest) {
      return invalid_argument(name, " has a sequence of ", length, " tokens at ", i,
                              ", more than its max_seqlen ", longest);
    }
  }
  if (offsets[count] > total) {
    return invalid_argument(name, " ends at ", offsets[count], "; the tensor has ", total,
                            " tokens");
  }
  return {};
}

// The per-sequence arrays, where they can be read.
Status check_sequences_on_host(const AttentionParams& params, const SequenceLayout& layout) {
  if (layout.cu_seqlens_q != nullptr) {
    BSFA_RETURN_IF_ERROR(check_cumulative("cu_seqlens_q", layout.cu_seqlens_q, layout.num_sequences,
                                          params.q.shape[1], layout.max_seqlen_q));
  }
  if (layout.cu_seqlens_k != nullptr) {
    BSFA_RETURN_IF_ERROR(check_cumulative("cu_seqlens_k", layout.cu_seqlens_k, layout.num_sequences,
                                          params.k.shape[1], layout.max_seqlen_k));
  }
  for (std::int64_t b = 0; b < layout.num_sequences; ++b) {
    const std::int64_t begin = layout.leftpad_k != nullptr ? layout.leftpad_k[b] : 0;
    const std::int64_t keys =
        layout.seqused_k != nullptr ? layout.seqused_k[b] : layout.max_seqlen_k - begin;
    if (layout.cu_seqlens_k == nullptr &&
        (begin < 0 || keys < 0 || begin + keys > layout.max_seqlen_k)) {
      return invalid_argument("leftpad_k and seqused_k give sequence ", b, " the keys [", begin,
                              ", ", begin + keys, "); k has ", layout.max_seqlen_k);
    }
    if (layout.q_offsets != nullptr &&
        (layout.q_offsets[b] < -kMaxTokens || layout.q_offsets[b] > kMaxTokens)) {
      return invalid_argument("q_offsets[", b, "] is ", layout.q_offsets[b],
                              "; accepted: ", -kMaxTokens, " to ", kMaxTokens);
    }
    if (params.page_table == nullptr) continue;
    const std::int32_t* pages = params.page_table + b * params.page_table_stride;
    for (std::int64_t page = 0; page < ceil_div(keys, params.page_size); ++page) {
      if (pages[page] < 0 || pages[page] >= params.k.shape[0]) {
        return invalid_argument("page_table[", b, ", ", page, "] is ", pages[page], "; k has ",
                                params.k.shape[0], " pages");
      }
    }
  }
  return {};
}

void set_sequence_arrays(const AttentionParams& params, SequenceLayout* layout) {
  layout->cu_seqlens_q = params.cu_seqlens_q;
  layout->cu_seqlens_k = params.cu_seqlens_k;
  layout->seqused_k = params.seqused_k;
  layout->leftpad_k = params.leftpad_k;
  layout->q_offsets = params.q_offsets;
}

// k and v as pages; what a page table may stand beside.
Status check_pages(const AttentionParams& params) {
  if (params.page_table == nullptr) {
    if (params.page_size == 0 && params.page_table_stride == 0) return {};
    return invalid_argument("page_size is ", params.page_size, " and page_table_stride ",
                            params.page_table_stride, " without a page_table");
  }
  if (params.page_size < 16 || params.page_size % 16 != 0) {
    return invalid_argument("page_size is ", params.page_size,
                            " tokens; accepted: multiples of 16 from 16");
  }
  if (params.k.shape[1] != params.page_size) {
    return invalid_argument("k has pages of ", params.k.shape[1], " tokens; page_size is ",
                            params.page_size);
  }
  if (params.cu_seqlens_k != nullptr || params.leftpad_k != nullptr) {
    return invalid_argument(params.cu_seqlens_k != nullptr ? "cu_seqlens_k" : "leftpad_k",
                            " was given with a page_table; the keys of a paged call are counted by "
                            "seqused_k from the start of the first page");
  }
  if (params.seqused_k == nullptr) {
    return invalid_argument(
        "seqused_k is missing; with a page_table it counts the keys of each "
        "sequence");
  }
  // Also what says how many entries of a row of the table may be looked at.
  BSFA_RETURN_IF_ERROR(check_range("max_seqlen_k (of a paged call: the most keys of a sequence)",
                                   params.max_seqlen_k, 1, kMaxTokens));
  const std::int64_t row = ceil_div(params.max_seqlen_k, params.page_size);
  if (params.page_table_stride < 0 ||
      (params.page_table_stride != 0 && params.page_table_stride < row)) {
    return invalid_argument("page_table_stride is ", params.page_table_stride, "; max_seqlen_k ",
                            params.max_seqlen_k, " in pages of ", params.page_size,
                            " needs rows of ", row, " or more (0: one row for all sequences)");
  }
  return check_at_most("k", "pages", params.k.shape[0], kMaxPages);
}

// Who says how many sequences and tokens there are: cu_seqlens_* of a packed call, else the shapes;
// of paged keys max_seqlen_k in both.
Status set_extents(const AttentionParams& params, SequenceLayout* layout) {
  const bool paged = params.page_table != nullptr;
  layout->packed = params.cu_seqlens_q != nullptr || params.cu_seqlens_k != nullptr;
  if (!layout->packed) {
    if (params.num_sequences != 0 || params.max_seqlen_q != 0 ||
        (params.max_seqlen_k != 0 && !paged)) {
      return invalid_argument(
          "num_sequences, max_seqlen_q and max_seqlen_k belong to packed batches; cu_seqlens_q and "
          "cu_seqlens_k are missing");
    }
    layout->num_sequences = params.q.shape[0];
    layout->max_seqlen_q = params.q.shape[1];
    layout->max_seqlen_k = paged ? params.max_seqlen_k : params.k.shape[1];
    return {};
  }
  if (params.cu_seqlens_q == nullptr || (params.cu_seqlens_k == nullptr && !paged)) {
    return invalid_argument(params.cu_seqlens_q == nullptr ? "cu_seqlens_q" : "cu_seqlens_k",
                            " is missing; a packed batch needs cu_seqlens_q and cu_seqlens_k");
  }
  if (!paged && (params.seqused_k != nullptr || params.leftpad_k != nullptr)) {
    return invalid_argument(
        "seqused_k and leftpad_k belong to padded batches; they were given with cu_seqlens_q/k");
  }
  if (params.q.shape[0] != 1 || (params.k.shape[0] != 1 && !paged)) {
    return invalid_argument("packed q and k have ", params.q.shape[0], " and ", params.k.shape[0],
                            " batch entries; expected 1, with all tokens on axis 1");
  }
  layout->num_sequences = params.num_sequences;
  layout->max_seqlen_q = params.max_seqlen_q;
  layout->max_seqlen_k = params.max_seqlen_k;
  return {};
}

Status make_layout(const AttentionParams& params, SequenceLayout* layout) {
  BSFA_RETURN_IF_ERROR(set_extents(params, layout));
  BSFA_RETURN_IF_ERROR(check_pages(params));
  const bool packed = layout->packed;
  BSFA_RETURN_IF_ERROR(check_range(packed ? "num_sequences" : "the batch axis of q",
                                   layout->num_sequences, 0, kMaxSequences));
  BSFA_RETURN_IF_ERROR(
      check_range(packed ? "max_seqlen_q" : "seqlen_q", layout->max_seqlen_q, 0, kMaxTokens));
  BSFA_RETURN_IF_ERROR(
      check_range(packed ? "max_seqlen_k" : "seqlen_k", layout->max_seqlen_k, 0, kMaxTokens));
  BSFA_RETURN_IF_ERROR(check_at_most("q", "rows", params.q.shape[1], kMaxTokens));
  BSFA_RETURN_IF_ERROR(check_at_most("k", "rows", params.k.shape[1], kMaxTokens));
  const std::int64_t kv_unit = params.block.kv > 64 ? params.block.kv : 64;
  if (params.kv_offset < 0 || params.kv_offset % kv_unit != 0 || params.kv_offset > kMaxTokens) {
    return invalid_argument("kv_offset is ", params.kv_offset, "; accepted: a multiple of ",
                            kv_unit, " from 0 to ", kMaxTokens);
  }
  if (params.window && (*params.window < 1 || *params.window > kMaxTokens)) {
    return invalid_argument("window is ", *params.window, " tokens; accepted: 1 to ", kMaxTokens);
  }
  if (params.window && !params.causal) {
    return invalid_argument("window needs causal attention; the call is bidirectional");
  }
  if (params.q_offset && params.q_offsets != nullptr) {
    return invalid_argument("q_offset and q_offsets were both given; accepted: one of them");
  }
  if (params.q_offset) {
    BSFA_RETURN_IF_ERROR(check_range("q_offset", *params.q_offset, -kMaxTokens, kMaxTokens));
  }
  layout->causal = params.causal;
  layout->kv_offset = params.kv_offset;
  layout->window = params.window.value_or(0);
  layout->block = params.block;
  layout->has_q_offset = params.q_offset.has_value();
  layout->q_offset = params.q_offset.value_or(0);
  set_sequence_arrays(params, layout);
  return {};
}

// What lies in memory beside the operands and the results.
struct Tables {
  Memory thresholds, sinks, cu_seqlens_q, cu_seqlens_k, seqused_k, leftpad_k, q_offsets, page_table;
  Memory list_indices, list_offsets, list_counts;

  explicit Tables(const Problem& problem) {
    const SequenceLayout& layout = problem.sequences;
    const std::int64_t count = layout.num_sequences;
    if (problem.policy.kind == PolicyKind::kThreshold) {
      thresholds = memory_of_thresholds(problem.policy.thresholds, count);
    }
    sinks = memory_of("sinks", problem.sinks, problem.num_heads_q);
    cu_seqlens_q = memory_of("cu_seqlens_q", layout.cu_seqlens_q, count + 1);
    cu_seqlens_k = memory_of("cu_seqlens_k", layout.cu_seqlens_k, count + 1);
    seqused_k = memory_of("seqused_k", layout.seqused_k, count);
    leftpad_k = memory_of("leftpad_k", layout.leftpad_k, count);
    q_offsets = memory_of("q_offsets", layout.q_offsets, count);
    if (problem.page_table != nullptr) {
      page_table = {"page_table",
                    count > 0 ? problem.page_table : nullptr,
                    sizeof(std::int32_t),
                    2,
                    {problem.page_table_stride != 0 ? count : 1,
                     ceil_div(layout.max_seqlen_k, problem.page_size)},
                    {problem.page_table_stride, 1}};
    }
    const BlockLists& lists = problem.lists;
    const std::int64_t list_count = number_of_lists(problem);
    list_indices = memory_of("lists.indices", lists.indices, lists.num_indices);
    list_offsets = memory_of("lists.offsets", lists.offsets, list_count + 1);
    list_counts = memory_of("lists.counts", lists.counts, list_count);
  }
};

Status check_tables(const Problem& problem) {
  const Tables tables(problem);
  for (const Memory* table :
       {&tables.thresholds, &tables.sinks, &tables.cu_seqlens_q, &tables.cu_seqlens_k,
        &tables.seqused_k, &tables.leftpad_k, &tables.q_offsets, &tables.page_table,
        &tables.list_indices, &tables.list_offsets, &tables.list_counts}) {
    BSFA_RETURN_IF_ERROR(check_view(*table));
  }
  return {};
}

Status check_executor(const AttentionParams& params) {
  if (params.device.type != DeviceType::kCpu || params.executor == nullptr) return {};
  return check_workers(*params.executor);
}

// Extent of the statistics: exact where all sequences stand alike, else the most that can occur.
void set_block_extents(Problem* problem) {
  const SequenceLayout& layout = problem->sequences;
  const bool alike = !layout.packed && layout.q_offsets == nullptr &&
                     (layout.has_q_offset || !layout.causal ||
                      (layout.seqused_k == nullptr && layout.leftpad_k == nullptr));
  problem->kv_blocks = ceil_div(layout.max_seqlen_k, layout.block.kv);
  if (layout.max_seqlen_q == 0) {
    problem->q_blocks = 0;
  } else if (alike) {
    SequenceLayout one = layout;
    one.seqused_k = nullptr;
    one.leftpad_k = nullptr;
    problem->q_blocks = q_block_range(sequence_at(one, 0), layout.block).size();
  } else {
    problem->q_blocks = (layout.max_seqlen_q + layout.block.q - 2) / layout.block.q + 1;
  }
}

// Lists, statistics and tiles are counted by sequence, head and query block.
Status check_query_blocks(const Problem& problem) {
  const std::int64_t sequences = problem.sequences.num_sequences;
  std::int64_t all = 0;
  if (!__builtin_mul_overflow(sequences * problem.num_heads_q, problem.q_blocks, &all) &&
      all <= kMaxElements) {
    return {};
  }
  return invalid_argument("the call has ", sequences, " sequences of ", problem.num_heads_q,
                          " heads of up to ", problem.q_blocks, " query blocks; accepted: up to ",
                          kMaxElements, " blocks in all");
}

}  // namespace

DType multiply_dtype(const Problem& problem, bool has_float16_unit) {
  switch (problem.compute_type) {
    case ComputeType::kBFloat16:
      return DType::kBFloat16;
    case ComputeType::kFloat32:
      return DType::kFloat32;
    case ComputeType::kNative:
      break;
  }
  if (problem.q.dtype != problem.k.dtype) return DType::kFloat32;
  if (problem.q.dtype == DType::kFloat16 && !has_float16_unit) return DType::kFloat32;
  return problem.q.dtype;
}

int workers_of(const AttentionParams& params) {
  if (params.device.type != DeviceType::kCpu || params.executor == nullptr) return 1;
  return params.executor->max_workers();
}

Status make_problem(const AttentionParams& params, Problem* problem) {
  BSFA_RETURN_IF_ERROR(check_operand("q", params.q));
  BSFA_RETURN_IF_ERROR(check_operand("k", params.k));
  BSFA_RETURN_IF_ERROR(check_operand("v", params.v));
  BSFA_RETURN_IF_ERROR(check_operand("out", params.out));
  BSFA_RETURN_IF_ERROR(check_no_self_overlap(memory_of("out", params.out)));
  const std::int64_t num_heads_q = params.q.shape[2];
  const std::int64_t num_heads_kv = params.k.shape[2];
  const std::int64_t head_dim = params.q.shape[3];
  if (head_dim < 1) return invalid_argument("q has head_dim ", head_dim, "; accepted: 1 or more");
  if (params.k.shape[3] != head_dim) {
    return invalid_argument("k has head_dim ", params.k.shape[3], "; q has ", head_dim);
  }
  if (num_heads_q < 1 || num_heads_kv < 1 || num_heads_q % num_heads_kv != 0) {
    return invalid_argument("q has ", num_heads_q, " heads and k has ", num_heads_kv,
                            "; the heads of q must be a positive multiple of those of k");
  }
  BSFA_RETURN_IF_ERROR(check_at_most("q", "heads", num_heads_q, kMaxHeads));
  // A paged k and v is [page, page_size, ...]: its batch axis counts pages.
  if (params.page_table == nullptr && params.k.shape[0] != params.q.shape[0]) {
    return invalid_argument("k has ", params.k.shape[0], " batch entries; q has ",
                            params.q.shape[0]);
  }
  for (int axis = 0; axis < 3; ++axis) {
    if (params.v.shape[axis] != params.k.shape[axis]) {
      return invalid_argument("v has shape ", shape_text(params.v.shape, 4), "; k has ",
                              shape_text(params.k.shape, 4), " and only head_dim may differ");
    }
  }
  if (params.v.shape[3] < 1) {
    return invalid_argument("v has head_dim ", params.v.shape[3], "; accepted: 1 or more");
  }
  if (params.v.dtype != params.k.dtype) {
    return invalid_argument("v has dtype ", dtype_name(params.v.dtype), "; k has ",
                            dtype_name(params.k.dtype));
  }
  const std::int64_t out_shape[4] = {params.q.shape[0], params.q.shape[1], num_heads_q,
                                     params.v.shape[3]};
  for (int axis = 0; axis < 4; ++axis) {
    if (params.out.shape[axis] != out_shape[axis]) {
      return invalid_argument("out has shape ", shape_text(params.out.shape, 4), "; expected ",
                              shape_text(out_shape, 4));
    }
  }
  if (params.out.dtype != params.q.dtype) {
    return invalid_argument("out has dtype ", dtype_name(params.out.dtype), "; q has ",
                            dtype_name(params.q.dtype));
  }
  if (params.softmax_scale &&
      !(std::isfinite(*params.softmax_scale) && *params.softmax_scale > 0)) {
    return invalid_argument("softmax_scale is ", *params.softmax_scale,
                            "; accepted: a finite number above 0");
  }
  if (!(std::isfinite(params.softcap) && params.softcap >= 0)) {
    return invalid_argument("softcap is ", params.softcap, "; accepted: 0 (none) or above");
  }
  if (!known(params.compute_type)) {
    return invalid_argument("compute_type is ", static_cast<int>(params.compute_type),
                            "; accepted: native (0), float32 (1), bfloat16 (2)");
  }
  if (!known(params.device.type)) {
    return invalid_argument("device.type is ", static_cast<int>(params.device.type),
                            "; accepted: cpu (0), cuda (1)");
  }
  BSFA_RETURN_IF_ERROR(check_policy(params, num_heads_q));

  *problem = {};
  SequenceLayout& layout = problem->sequences;
  BSFA_RETURN_IF_ERROR(make_layout(params, &layout));
  static_cast<AttentionParams&>(*problem) = params;
  problem->softmax_scale =
      params.softmax_scale.value_or(1.0f / std::sqrt(static_cast<float>(head_dim)));
  problem->num_heads_q = num_heads_q;
  problem->num_heads_kv = num_heads_kv;
  problem->group = num_heads_q / num_heads_kv;
  problem->head_dim = head_dim;
  problem->head_dim_v = params.v.shape[3];
  set_block_extents(problem);
  BSFA_RETURN_IF_ERROR(check_query_blocks(*problem));
  BSFA_RETURN_IF_ERROR(check_lists(*problem));
  BSFA_RETURN_IF_ERROR(check_tables(*problem));
  BSFA_RETURN_IF_ERROR(check_executor(params));
  problem->workers = workers_of(params);
  if (params.device.type == DeviceType::kCpu) {
    BSFA_RETURN_IF_ERROR(check_sequences_on_host(params, layout));
  }
  // Where the position of the first query is known here, a table must have an entry for it. (Rows
  // before position 0 that come from left padding see nothing and are never gated.)
  const bool alike = !layout.packed && layout.q_offsets == nullptr && layout.seqused_k == nullptr &&
                     layout.leftpad_k == nullptr;
  if (params.policy.kind == PolicyKind::kThreshold && layout.num_sequences > 0 &&
      (layout.has_q_offset || alike)) {
    const std::int64_t q_offset =
        layout.has_q_offset ? layout.q_offset : sequence_at(layout, 0).q_offset;
    if (q_offset < 0) {
      return invalid_argument("q_offset is ", q_offset,
                              "; a threshold table has no entry for positions before 0");
    }
  }
  if (params.device.type == DeviceType::kCpu) {
    BSFA_RETURN_IF_ERROR(check_list_entries(*problem));
  }

  const std::int64_t batch = layout.num_sequences;
  const std::int64_t lse_shape[3] = {layout.packed ? 1 : batch, num_heads_q, params.q.shape[1]};
  const std::int64_t count_shape[2] = {batch, num_heads_q};
  const std::int64_t block_shape[4] = {batch, num_heads_q, problem->q_blocks, problem->kv_blocks};
  BSFA_RETURN_IF_ERROR(check_statistic("lse", params.lse, lse_shape));
  BSFA_RETURN_IF_ERROR(check_statistic("kept_blocks", params.kept_blocks, count_shape));
  BSFA_RETURN_IF_ERROR(check_statistic("visible_blocks", params.visible_blocks, count_shape));
  BSFA_RETURN_IF_ERROR(check_statistic("kept_mask", params.kept_mask, block_shape));
  BSFA_RETURN_IF_ERROR(check_statistic("block_max", params.block_max, block_shape));
  return {};
}

Status move_problem(const Problem& planned, const AttentionParams& params, Problem* problem) {
  *problem = planned;
  static_cast<AttentionParams&>(*problem) = params;
  problem->softmax_scale = planned.softmax_scale;
  set_sequence_arrays(params, &problem->sequences);
  if (params.device.type == DeviceType::kCpu) {
    BSFA_RETURN_IF_ERROR(check_sequences_on_host(params, problem->sequences));
    BSFA_RETURN_IF_ERROR(check_list_entries(*problem));
  }
  BSFA_RETURN_IF_ERROR(check_executor(params));
  problem->workers = workers_of(params);
  if (problem->workers > planned.workers) {
    return invalid_argument("executor has max_workers() ", problem->workers,
                            "; the call was planned for ", planned.workers);
  }
  return {};
}

Status check_memory(const Problem& problem, std::size_t workspace_bytes) {
  const Tables tables(problem);
  const Memory outputs[] = {
      memory_of("out", problem.out),
      memory_of("lse", problem.lse),
      memory_of("kept_blocks", problem.kept_blocks),
      memory_of("visible_blocks", problem.visible_blocks),
      memory_of("kept_mask", problem.kept_mask),
      memory_of("block_max", problem.block_max),
      memory_of("workspace", static_cast<const char*>(problem.workspace),
                static_cast<std::int64_t>(workspace_bytes)),
  };
  const Memory inputs[] = {
      memory_of("q", problem.q),
      memory_of("k", problem.k),
      memory_of("v", problem.v),
      tables.thresholds,
      tables.sinks,
      tables.cu_seqlens_q,
      tables.cu_seqlens_k,
      tables.seqused_k,
      tables.leftpad_k,
      tables.q_offsets,
      tables.page_table,
      tables.list_indices,
      tables.list_offsets,
      tables.list_counts,
  };
  for (const Memory& output : outputs) BSFA_RETURN_IF_ERROR(check_alignment(output));
  for (const Memory& input : inputs) BSFA_RETURN_IF_ERROR(check_alignment(input));
  return check_no_overlap(outputs, inputs);
}

}  // namespace bsfa
