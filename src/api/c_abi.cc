#include "api/c_abi.hpp"

#include <type_traits>

#include "bsfa/backends.hpp"
#include "bsfa/limits.hpp"
#include "bsfa/selection.hpp"
#include "bsfa/text.hpp"

namespace bsfa::c_abi {
namespace {

template <typename Enum>
constexpr bool same(Enum value, int code) {
  return static_cast<int>(value) == code;
}

static_assert(same(ErrorCode::kOk, BSFA_OK) &&
              same(ErrorCode::kInvalidArgument, BSFA_INVALID_ARGUMENT) &&
              same(ErrorCode::kUnsupported, BSFA_UNSUPPORTED) &&
              same(ErrorCode::kFormat, BSFA_FORMAT) && same(ErrorCode::kIo, BSFA_IO) &&
              same(ErrorCode::kRuntime, BSFA_RUNTIME));
static_assert(same(DType::kFloat32, BSFA_FLOAT32) && same(DType::kFloat16, BSFA_FLOAT16) &&
              same(DType::kBFloat16, BSFA_BFLOAT16));
static_assert(same(DeviceType::kCpu, BSFA_CPU) && same(DeviceType::kCuda, BSFA_CUDA));
static_assert(same(ComputeType::kNative, BSFA_COMPUTE_NATIVE) &&
              same(ComputeType::kFloat32, BSFA_COMPUTE_FLOAT32) &&
              same(ComputeType::kBFloat16, BSFA_COMPUTE_BFLOAT16));
static_assert(same(PolicyKind::kDense, BSFA_DENSE) &&
              same(PolicyKind::kThreshold, BSFA_THRESHOLD) &&
              same(PolicyKind::kSlidingWindow, BSFA_SLIDING_WINDOW) &&
              same(PolicyKind::kMass, BSFA_MASS) &&
              same(PolicyKind::kSkipSoftmax, BSFA_SKIP_SOFTMAX));
static_assert(same(SkipOrder::kAscending, BSFA_SKIP_ASCENDING) &&
              same(SkipOrder::kOutwards, BSFA_SKIP_OUTWARDS));
static_assert(std::is_same_v<Executor::Body, bsfa_task>);

constexpr std::size_t kParamsV1 = BSFA_FIRST_VERSION(bsfa_attention_params, workspace_bytes);
constexpr std::size_t kPlanV1 = BSFA_FIRST_VERSION(bsfa_attention_plan, compute);
constexpr std::size_t kSelectBlocksV1 = BSFA_FIRST_VERSION(bsfa_select_blocks_params, left_out);
constexpr std::size_t kSelectionPlanV1 = BSFA_FIRST_VERSION(bsfa_selection_plan, kernel);
constexpr std::size_t kBackendV1 = BSFA_FIRST_VERSION(bsfa_backend_info, description);
constexpr std::size_t kExecutorV1 = BSFA_FIRST_VERSION(bsfa_executor, parallel_for);

// Empty after success. A fixed text if there was no memory for the message.
thread_local std::string last_error;
thread_local const char* last_error_text = "";

template <typename View, typename Given>
View tensor_view(const Given& from) {
  View view;
  view.data = from.data;
  view.dtype = static_cast<DType>(from.dtype);
  std::copy_n(from.shape, 4, view.shape);
  std::copy_n(from.stride, 4, view.stride);
  return view;
}

AttentionParams attention_params(const bsfa_attention_params& from, const CallerThreads& threads) {
  AttentionParams params;
  params.q = tensor_view<TensorView>(from.q);
  params.k = tensor_view<TensorView>(from.k);
  params.v = tensor_view<TensorView>(from.v);
  params.out = tensor_view<OutputView>(from.out);
  if (from.softmax_scale != 0) params.softmax_scale = from.softmax_scale;
  params.causal = from.causal != 0;
  if (from.has_q_offset != 0) {
    params.q_offset = from.q_offset;
  } else if (from.q_offset != 0) {
    throw Error(invalid_argument("q_offset is ", from.q_offset, " and has_q_offset 0; set both"));
  }
  params.kv_offset = from.kv_offset;
  if (from.window != 0) params.window = from.window;
  params.softcap = from.softcap;
  params.sinks = from.sinks;
  params.policy.kind = static_cast<PolicyKind>(from.policy);
  const bsfa_threshold_view& table = from.thresholds;
  params.policy.thresholds = {table.data,         table.num_heads,
                              table.num_q_blocks, table.stride_head,
                              table.stride_batch, {table.q_block, table.kv_block}};
  params.policy.window_blocks = from.window_blocks;
  if (from.mass_c != 0) params.policy.mass_c = from.mass_c;
  params.policy.skip_lambda = from.skip_lambda;
  params.policy.skip_order = static_cast<SkipOrder>(from.skip_order);
  const bsfa_block_lists& lists = from.lists;
  params.lists = {lists.indices, lists.num_indices, lists.offsets, lists.counts,
                  lists.stride,  lists.num_heads,   lists.q_blocks};
  params.block = block_shape(from.q_block, from.kv_block);
  params.compute_type = static_cast<ComputeType>(from.compute_type);
  params.cu_seqlens_q = from.cu_seqlens_q;
  params.cu_seqlens_k = from.cu_seqlens_k;
  params.seqused_k = from.seqused_k;
  params.leftpad_k = from.leftpad_k;
  params.q_offsets = from.q_offsets;
  params.num_sequences = from.num_sequences;
  params.max_seqlen_q = from.max_seqlen_q;
  params.max_seqlen_k = from.max_seqlen_k;
  params.page_table = from.page_table;
  params.page_size = from.page_size;
  params.page_table_stride = from.page_table_stride;
  params.lse = strided_view<float, 3>(from.lse);
  params.kept_blocks = strided_view<std::int64_t, 2>(from.kept_blocks);
  params.visible_blocks = strided_view<std::int64_t, 2>(from.visible_blocks);
  params.kept_mask = strided_view<std::uint8_t, 4>(from.kept_mask);
  params.block_max = strided_view<float, 4>(from.block_max);
  params.device = {static_cast<DeviceType>(from.device), from.device_index};
  params.backend = text_of(from.backend);
  params.stream = from.stream;
  params.executor = threads.get();
  params.workspace = from.workspace;
  params.workspace_bytes = from.workspace_bytes;
  return params;
}

// A number of blocks of which 0 means the default and -1 none.
std::int64_t blocks_or(std::int64_t given, std::int64_t usual) {
  if (given == -1) return 0;
  return given != 0 ? given : usual;
}

SelectBlocksParams select_blocks_params(const bsfa_select_blocks_params& from,
                                        const bsfa_attention_params& call,
                                        const CallerThreads& threads) {
  SelectBlocksParams params;
  params.call = attention_params(call, threads);
  SampledSelector& selector = params.selector;
  if (from.rows != 0) selector.rows = from.rows;
  if (from.coverage != 0) selector.coverage = from.coverage;
  if (from.floor != 0) selector.floor = from.floor;
  selector.sink_blocks = blocks_or(from.sink_blocks, selector.sink_blocks);
  selector.local_blocks = blocks_or(from.local_blocks, selector.local_blocks);
  selector.previous = from.previous != 0;
  if (from.max_left_out != 0) selector.max_left_out = from.max_left_out;
  params.indices = from.indices;
  params.counts = from.counts;
  params.stride = from.stride;
  params.left_out = strided_view<float, 3>(from.left_out);
  return params;
}

void write_plan(const AttentionPlan& from, bsfa_attention_plan* plan) {
  bsfa_attention_plan result{};
  result.workspace_bytes = from.workspace_bytes;
  result.q_blocks = from.q_blocks;
  result.kv_blocks = from.kv_blocks;
  copy_text(from.backend, result.backend);
  copy_text(from.kernel, result.kernel);
  copy_text(from.compute, result.compute);
  write_struct("plan", result, plan, kPlanV1);
}

}  // namespace

bsfa_status set_last_error(ErrorCode code, const char* message) noexcept {
  try {
    last_error = printable(message);
    last_error_text = last_error.c_str();
  } catch (...) {
    last_error_text = "out of memory";
  }
  return static_cast<bsfa_status>(code);
}

void clear_last_error() noexcept { last_error_text = ""; }

CallerThreads::CallerThreads(bsfa_thread_pool* pool, const bsfa_executor* callbacks) {
  if (pool != nullptr && callbacks != nullptr) {
    throw Error(
        invalid_argument("thread_pool and executor were both given; accepted: one of them"));
  }
  if (pool != nullptr) executor_ = &pool->pool;
  if (callbacks == nullptr) return;
  const bsfa_executor known = read_struct("executor", callbacks, kExecutorV1);
  required("executor->parallel_for", known.parallel_for);
  if (known.max_workers < 1 || known.max_workers > kMaxWorkers) {
    throw Error(invalid_argument("executor->max_workers is ", known.max_workers,
                                 "; accepted: 1 to ", kMaxWorkers));
  }
  executor_ = &callbacks_.emplace(known);
}

}  // namespace bsfa::c_abi

using namespace bsfa;         // the definitions below are in the global namespace, as C wants them
using namespace bsfa::c_abi;  // NOLINT

const char* bsfa_last_error(void) { return last_error_text; }

const char* bsfa_version(void) { return version(); }

bsfa_status bsfa_thread_pool_create(int32_t num_threads, bsfa_thread_pool** pool) {
  return guarded([&] {
    required("pool", pool);  // on its own: the right side of an assignment is evaluated first
    *pool = new bsfa_thread_pool(num_threads);
  });
}

void bsfa_thread_pool_free(bsfa_thread_pool* pool) { delete pool; }

bsfa_status bsfa_plan_attention(const bsfa_attention_params* params, bsfa_attention_plan* plan) {
  return guarded([&] {
    const bsfa_attention_params known = read_struct("params", params, kParamsV1);
    check_struct_size<bsfa_attention_plan>("plan", required("plan", plan)->struct_size, kPlanV1);
    const CallerThreads threads(known.thread_pool, known.executor);
    const AttentionPlan planned = plan_attention(attention_params(known, threads));
    write_plan(planned, plan);
    if (!planned.status.ok()) throw Error(planned.status);
  });
}

bsfa_status bsfa_attention_forward(const bsfa_attention_params* params) {
  return guarded([&] {
    const bsfa_attention_params known = read_struct("params", params, kParamsV1);
    const CallerThreads threads(known.thread_pool, known.executor);
    attention_forward(attention_params(known, threads));
  });
}

bsfa_status bsfa_plan_selection(const bsfa_select_blocks_params* params,
                                bsfa_selection_plan* plan) {
  return guarded([&] {
    const bsfa_select_blocks_params known = read_struct("params", params, kSelectBlocksV1);
    const bsfa_attention_params call = read_struct("params->call", known.call, kParamsV1);
    check_struct_size<bsfa_selection_plan>("plan", required("plan", plan)->struct_size,
                                           kSelectionPlanV1);
    const CallerThreads threads(call.thread_pool, call.executor);
    const SelectionPlan planned = plan_selection(select_blocks_params(known, call, threads));
    bsfa_selection_plan result{};
    result.workspace_bytes = planned.workspace_bytes;
    result.q_blocks = planned.q_blocks;
    result.kv_blocks = planned.kv_blocks;
    copy_text(planned.backend, result.backend);
    copy_text(planned.kernel, result.kernel);
    write_struct("plan", result, plan, kSelectionPlanV1);
    if (!planned.status.ok()) throw Error(planned.status);
  });
}

bsfa_status bsfa_select_blocks(const bsfa_select_blocks_params* params) {
  return guarded([&] {
    const bsfa_select_blocks_params known = read_struct("params", params, kSelectBlocksV1);
    const bsfa_attention_params call = read_struct("params->call", known.call, kParamsV1);
    const CallerThreads threads(call.thread_pool, call.executor);
    select_blocks(select_blocks_params(known, call, threads));
  });
}

struct bsfa_prepared_attention {
  explicit bsfa_prepared_attention(const bsfa_attention_params& params)
      : threads(params.thread_pool, params.executor),
        attention(attention_params(params, threads)) {}

  CallerThreads threads;  // of a run without params
  PreparedAttention attention;
};

bsfa_status bsfa_prepared_attention_create(const bsfa_attention_params* params,
                                           bsfa_prepared_attention** prepared) {
  return guarded([&] {
    required("prepared", prepared);
    *prepared = new bsfa_prepared_attention(read_struct("params", params, kParamsV1));
  });
}

void bsfa_prepared_attention_free(bsfa_prepared_attention* prepared) { delete prepared; }

bsfa_status bsfa_prepared_attention_get_plan(const bsfa_prepared_attention* prepared,
                                             bsfa_attention_plan* plan) {
  return guarded([&] { write_plan(required("prepared", prepared)->attention.plan(), plan); });
}

bsfa_status bsfa_prepared_attention_serves(const bsfa_prepared_attention* prepared,
                                           const bsfa_attention_params* params, int32_t* serves) {
  return guarded([&] {
    required("prepared", prepared);
    required("serves", serves);
    const bsfa_attention_params known = read_struct("params", params, kParamsV1);
    const CallerThreads threads(known.thread_pool, known.executor);
    *serves = prepared->attention.serves(attention_params(known, threads)) ? 1 : 0;
  });
}

bsfa_status bsfa_prepared_attention_run(const bsfa_prepared_attention* prepared,
                                        const bsfa_attention_params* params) {
  return guarded([&] {
    required("prepared", prepared);
    if (params == nullptr) return prepared->attention.run();
    const bsfa_attention_params known = read_struct("params", params, kParamsV1);
    const CallerThreads threads(known.thread_pool, known.executor);
    prepared->attention.run(attention_params(known, threads));
  });
}

int32_t bsfa_num_backends(void) {
  int32_t count = 0;
  (void)guarded([&] { count = static_cast<int32_t>(backends().size()); });
  return count;
}

bsfa_status bsfa_get_backend(int32_t index, bsfa_backend_info* info) {
  return guarded([&] {
    const std::vector<BackendInfo> all = backends();
    if (index < 0 || static_cast<std::size_t>(index) >= all.size()) {
      throw Error(invalid_argument("index is ", index, "; accepted: 0 to ",
                                   static_cast<std::int64_t>(all.size()) - 1));
    }
    const BackendInfo& backend = all[static_cast<std::size_t>(index)];
    bsfa_backend_info result{};
    result.device = static_cast<bsfa_device_type>(backend.device);
    result.available = backend.available ? 1 : 0;
    copy_text(backend.name, result.name);
    copy_text(backend.description, result.description);
    write_struct("info", result, info, kBackendV1);
  });
}
