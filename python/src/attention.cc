#include <algorithm>
#include <bsfa/selection.hpp>
#include <bsfa/text.hpp>
#include <cstdlib>
#include <new>

#include "binding.hpp"

namespace bsfa::python {
namespace {

using Pair = std::pair<std::int64_t, std::int64_t>;
constexpr std::size_t kWorkspaceAlignment = 256;

ComputeType compute_type_from(const std::string& name) {
  if (name == "native") return ComputeType::kNative;
  if (name == "float32") return ComputeType::kFloat32;
  if (name == "bfloat16") return ComputeType::kBFloat16;
  refuse("compute_type is " + quote(name) + "; accepted: native, float32, bfloat16");
}

struct AlignedDelete {
  void operator()(void* p) const { ::operator delete (p, std::align_val_t{kWorkspaceAlignment}); }
};
using AlignedBuffer = std::unique_ptr<void, AlignedDelete>;

// The arguments of one call as Python has them. Declared once for plan and forward.
struct Call {
  Borrow borrow;
  AttentionParams params;
  std::shared_ptr<Executor> executor;
  bool selects = false;  // whether the lists are made for the call
  SampledSelector selector;
  StridedView<float, 3> left_out;
  std::uint8_t* workspace = nullptr;
  std::int64_t workspace_bytes = 0;
  nb::handle allocate;  // called with a number of bytes if no workspace was given
};

SkipOrder skip_order_from(const std::string& name) {
  if (name == "ascending") return SkipOrder::kAscending;
  if (name == "outwards") return SkipOrder::kOutwards;
  refuse("skip_order is " + quote(name) + "; accepted: ascending, outwards");
}

// At most one argument may name a policy; none: dense.
void set_policy(Call* call, nb::handle thresholds, std::optional<Pair> thresholds_block,
                std::optional<std::int64_t> window_blocks, std::optional<float> mass_c,
                std::optional<float> skip_lambda, const std::string& skip_order) {
  const char* chosen = nullptr;
  const std::pair<const char*, bool> given[] = {{"thresholds", !thresholds.is_none()},
                                                {"window_blocks", window_blocks.has_value()},
                                                {"mass_c", mass_c.has_value()},
                                                {"skip_lambda", skip_lambda.has_value()}};
  for (const auto& [name, is_given] : given) {
    if (!is_given) continue;
    if (chosen != nullptr) {
      refuse(std::string(chosen) + " and " + name + " were both given; accepted: one of them");
    }
    chosen = name;
  }
  const SkipOrder order = skip_order_from(skip_order);
  if (order != SkipOrder::kAscending && !skip_lambda) {
    refuse("skip_order is " + quote(skip_order) + " without skip_lambda");
  }
  if (window_blocks) call->params.policy = Policy::sliding_window(*window_blocks);
  if (mass_c) call->params.policy = Policy::mass(*mass_c);
  if (skip_lambda) call->params.policy = Policy::skip_softmax(*skip_lambda, order);
  if (thresholds.is_none()) return;
  bool per_sequence = false;
  const auto view = call->borrow.table("thresholds", thresholds, &per_sequence);
  const std::int64_t batch =
      call->params.cu_seqlens_q != nullptr ? call->params.num_sequences : call->params.q.shape[0];
  if (per_sequence && view.shape[0] != batch) {
    refuse("thresholds has " + std::to_string(view.shape[0]) + " sequences; the call has " +
           std::to_string(batch));
  }
  if (view.shape[2] > 1 && view.stride[2] != 1) {
    refuse("thresholds has stride " + std::to_string(view.stride[2]) +
           " on its last axis; expected 1");
  }
  ThresholdView table;
  table.block = thresholds_block ? block_from(*thresholds_block) : call->params.block;
  table.data = view.data;
  table.num_heads = view.shape[1];
  table.num_q_blocks = view.shape[2];
  table.stride_head = view.stride[1];
  table.stride_batch = per_sequence ? view.stride[0] : 0;
  call->params.policy = Policy::threshold(table);
}

void set_selector(Call* call, std::optional<float> coverage, std::int64_t sampled_rows,
                  float mass_floor, nb::handle left_out) {
  call->left_out = call->borrow.view<float, 3>("left_out", left_out);
  call->selects = coverage.has_value();
  if (!call->selects) {
    if (call->left_out) refuse("left_out was given without coverage");
    return;
  }
  call->selector.coverage = *coverage;
  call->selector.rows = sampled_rows;
  call->selector.floor = mass_floor;
}

void set_sequences(Call* call, nb::handle cu_seqlens_q, nb::handle cu_seqlens_k,
                   std::optional<std::int64_t> max_seqlen_q,
                   std::optional<std::int64_t> max_seqlen_k, nb::handle seqused_k,
                   nb::handle leftpad_k, nb::handle q_offsets, nb::handle page_table,
                   std::int64_t page_size) {
  AttentionParams& params = call->params;
  const auto pages = call->borrow.view<const std::int32_t, 2>("page_table", page_table);
  const bool paged = pages.data != nullptr;
  params.page_table = pages.data;
  params.page_table_stride = pages.stride[0];
  params.page_size = page_size;
  const auto vector = [&](const char* name, nb::handle value, std::int64_t* length) {
    return call->borrow.vector<const std::int32_t>(name, value, length);
  };
  std::int64_t batch = params.q.shape[0];
  if (!cu_seqlens_q.is_none() || !cu_seqlens_k.is_none()) {
    std::int64_t length_q = 0, length_k = 0;
    params.cu_seqlens_q = vector("cu_seqlens_q", cu_seqlens_q, &length_q);
    params.cu_seqlens_k = vector("cu_seqlens_k", cu_seqlens_k, &length_k);
    if (paged && cu_seqlens_k.is_none()) length_k = length_q;  // seqused_k counts the keys
    if (length_q != length_k || length_q < 1) {
      refuse("cu_seqlens_q and cu_seqlens_k have " + std::to_string(length_q) + " and " +
             std::to_string(length_k) + " entries; expected batch + 1 in both");
    }
    params.num_sequences = batch = length_q - 1;
    params.max_seqlen_q = max_seqlen_q.value_or(params.q.shape[1]);
    params.max_seqlen_k = max_seqlen_k.value_or(params.k.shape[1]);
  } else if (max_seqlen_q || (max_seqlen_k && !paged)) {
    refuse("max_seqlen_q and max_seqlen_k belong to packed batches; cu_seqlens_q is missing");
  }
  if (paged) {
    const std::int64_t columns = pages.shape[1];
    if (pages.shape[0] != batch || (columns > 1 && pages.stride[1] != 1)) {
      refuse("page_table has shape [" + std::to_string(pages.shape[0]) + ", " +
             std::to_string(columns) + "] and stride " + std::to_string(pages.stride[1]) +
             " on its last axis; expected a contiguous row for each of " + std::to_string(batch) +
             " sequences");
    }
    std::int64_t held = 0;
    if (__builtin_mul_overflow(columns, page_size, &held)) held = 0;
    params.max_seqlen_k = max_seqlen_k.value_or(held);
    if (params.max_seqlen_k > held) {
      refuse("max_seqlen_k is " + std::to_string(params.max_seqlen_k) +
             "; page_table has room for " + std::to_string(held) + " keys of a sequence");
    }
  }
  const auto per_sequence = [&](const char* name, nb::handle value) -> const std::int32_t* {
    std::int64_t length = batch;
    const std::int32_t* data = vector(name, value, &length);
    if (length != batch) {
      refuse(std::string(name) + " has " + std::to_string(length) + " entries; the call has " +
             std::to_string(batch) + " sequences");
    }
    return data;
  };
  params.seqused_k = per_sequence("seqused_k", seqused_k);
  params.leftpad_k = per_sequence("leftpad_k", leftpad_k);
  params.q_offsets = per_sequence("q_offsets", q_offsets);
}

void set_workspace(Call* call, nb::handle workspace) {
  call->workspace =
      call->borrow.vector<std::uint8_t>("workspace", workspace, &call->workspace_bytes);
}

Call make_call(nb::handle q, nb::handle k, nb::handle v, nb::handle out,
               std::optional<float> softmax_scale, bool causal,
               const std::optional<Integer>& q_offset, const Integer& kv_offset,
               const std::optional<Integer>& window, float softcap, nb::handle sinks,
               nb::handle thresholds, std::optional<Pair> thresholds_block,
               const std::optional<Integer>& window_blocks, std::optional<float> mass_c,
               std::optional<float> skip_lambda, const std::string& skip_order,
               std::optional<float> coverage, const Integer& sampled_rows, float mass_floor,
               Pair block, const std::string& compute_type, nb::handle cu_seqlens_q,
               nb::handle cu_seqlens_k, const std::optional<Integer>& max_seqlen_q,
               const std::optional<Integer>& max_seqlen_k, nb::handle seqused_k,
               nb::handle leftpad_k, nb::handle q_offsets, nb::handle page_table,
               const Integer& page_size, nb::handle lse, nb::handle kept_blocks,
               nb::handle visible_blocks, nb::handle kept_mask, nb::handle block_max,
               nb::handle left_out, const std::string& backend, std::uintptr_t stream,
               const std::optional<Integer>& num_threads, nb::handle workspace) {
  Call call;
  AttentionParams& params = call.params;
  params.q = call.borrow.operand("q", q);
  params.k = call.borrow.operand("k", k);
  params.v = call.borrow.operand("v", v);
  params.out = call.borrow.output_operand("out", out);
  params.softmax_scale = softmax_scale;
  params.causal = causal;
  params.q_offset = get("q_offset", q_offset);
  params.kv_offset = kv_offset.get("kv_offset");
  params.window = get("window", window);
  params.softcap = softcap;
  params.block = block_from(block);
  params.compute_type = compute_type_from(compute_type);
  std::int64_t num_sinks = params.q.shape[2];
  params.sinks = call.borrow.vector<const float>("sinks", sinks, &num_sinks);
  if (num_sinks != params.q.shape[2]) {
    refuse("sinks has " + std::to_string(num_sinks) + " entries; q has " +
           std::to_string(params.q.shape[2]) + " heads");
  }
  set_sequences(&call, cu_seqlens_q, cu_seqlens_k, get("max_seqlen_q", max_seqlen_q),
                get("max_seqlen_k", max_seqlen_k), seqused_k, leftpad_k, q_offsets, page_table,
                page_size.get("page_size"));
  set_policy(&call, thresholds, thresholds_block, get("window_blocks", window_blocks), mass_c,
             skip_lambda, skip_order);
  set_selector(&call, coverage, sampled_rows.get("sampled_rows"), mass_floor, left_out);
  params.lse = call.borrow.view<float, 3>("lse", lse);
  params.kept_blocks = call.borrow.view<std::int64_t, 2>("kept_blocks", kept_blocks);
  params.visible_blocks = call.borrow.view<std::int64_t, 2>("visible_blocks", visible_blocks);
  params.kept_mask = call.borrow.view<std::uint8_t, 4>("kept_mask", kept_mask);
  params.block_max = call.borrow.view<float, 4>("block_max", block_max);
  if (PyCallable_Check(workspace.ptr()) != 0) {
    call.allocate = workspace;
  } else {
    set_workspace(&call, workspace);
  }
  params.device = call.borrow.device();
  params.backend = backend;
  params.stream = reinterpret_cast<void*>(stream);
  if (params.device.type == DeviceType::kCpu) {
    call.executor = shared_executor(get("num_threads", num_threads));
    params.executor = call.executor.get();
  }
  return call;
}

// The calls of late, prepared: the layers of a model, and its prompts of one length, are the same
// call on other tensors. Guarded by the GIL.
std::shared_ptr<const PreparedAttention> prepared_for(const AttentionParams& params) {
  constexpr std::size_t kKept = 32;
  // Never destroyed: nothing of it is needed when a process ends.
  static auto& calls = *new std::vector<std::shared_ptr<const PreparedAttention>>;
  auto found = std::find_if(calls.begin(), calls.end(),
                            [&](const auto& call) { return call->serves(params); });
  if (found == calls.end()) {
    auto made = std::make_shared<const PreparedAttention>(params);
    if (calls.size() == kKept) calls.pop_back();
    found = calls.insert(calls.end(), std::move(made));
  }
  std::rotate(calls.begin(), found, found + 1);
  return calls.front();
}

SelectBlocksParams selection_of(const Call& call) {
  SelectBlocksParams selection;
  selection.call = call.params;
  selection.selector = call.selector;
  selection.left_out = call.left_out;
  return selection;
}

// With room for all blocks that a list may have.
SelectionPlan plan_selection_of(const Call& call, SelectBlocksParams* selection) {
  const AttentionPlan extents = plan_attention(call.params);
  if (!extents.status.ok()) throw Error(extents.status);
  *selection = selection_of(call);
  selection->stride = extents.kv_blocks;
  return plan_selection(*selection);
}

template <typename... Args>
AttentionPlan plan(Args... args) {
  const Call call = make_call(args...);
  AttentionPlan plan = plan_attention(call.params);
  if (!call.selects || !plan.status.ok()) return plan;
  SelectBlocksParams selection;
  plan.status = plan_selection_of(call, &selection).status;
  return plan;
}

// Bytes of a call, from an aligned address on: the caller's, or on the CPU its own.
class Memory {
 public:
  // The caller's, whatever there is of them. `owner` is kept: what a tensor had may else be handed
  // out again for the next thing that the call needs.
  void borrow(nb::object owner, std::uint8_t* data, std::int64_t bytes) {
    owner_ = std::move(owner);
    const auto address = reinterpret_cast<std::uintptr_t>(data);
    const std::uintptr_t aligned =
        (address + kWorkspaceAlignment - 1) / kWorkspaceAlignment * kWorkspaceAlignment;
    const auto lost = static_cast<std::int64_t>(aligned - address);
    if (data == nullptr || bytes <= lost) return;
    data_ = reinterpret_cast<std::byte*>(aligned);
    bytes_ = static_cast<std::size_t>(bytes - lost);
  }
  void allocate(std::size_t bytes) {
    if (bytes == 0) return;
    own_.reset(::operator new (bytes, std::align_val_t{kWorkspaceAlignment}));
    data_ = static_cast<std::byte*>(own_.get());
    bytes_ = bytes;
  }
  std::byte* data() const { return data_; }
  std::size_t bytes() const { return bytes_; }

 private:
  AlignedBuffer own_;
  nb::object owner_;
  std::byte* data_ = nullptr;
  std::size_t bytes_ = 0;
};

// `bytes` for a call. On the CPU they are allocated without the caller.
Memory memory_for(Call* call, std::size_t bytes) {
  Memory memory;
  if (bytes == 0) return memory;
  if (call->allocate.is_valid()) {
    nb::object made = call->allocate(bytes + kWorkspaceAlignment);
    set_workspace(call, made);
    memory.borrow(std::move(made), call->workspace, call->workspace_bytes);
  } else if (call->workspace != nullptr) {
    memory.borrow({}, call->workspace, call->workspace_bytes);
  } else if (call->params.device.type == DeviceType::kCpu) {
    memory.allocate(bytes);
  }
  return memory;
}

// Makes the lists of a call. What is returned holds them, for as long as the call needs them.
Memory make_lists(Call* call) {
  if (call->workspace != nullptr) {
    refuse("coverage was given with the bytes of a workspace; accepted: a function that returns "
           "them, or on the CPU None");
  }
  SelectBlocksParams selection;
  const SelectionPlan plan = plan_selection_of(*call, &selection);
  if (!plan.status.ok()) throw Error(plan.status);
  AttentionParams& params = call->params;
  const std::int64_t sequences =
      params.cu_seqlens_q != nullptr ? params.num_sequences : params.q.shape[0];
  const std::int64_t lists = sequences * params.q.shape[2] * plan.q_blocks;
  const auto aligned = [](std::size_t bytes) {
    return (bytes + kWorkspaceAlignment - 1) / kWorkspaceAlignment * kWorkspaceAlignment;
  };
  const std::size_t index_bytes = aligned(static_cast<std::size_t>(lists * selection.stride) * 4);
  const std::size_t count_bytes = aligned(static_cast<std::size_t>(lists) * 4);
  Memory memory = memory_for(call, index_bytes + count_bytes + plan.workspace_bytes);
  if (memory.data() == nullptr && lists > 0) {
    refuse("workspace is None; the lists of a call on a device need a function that returns bytes");
  }
  selection.indices = reinterpret_cast<std::int32_t*>(memory.data());
  selection.counts = reinterpret_cast<std::int32_t*>(memory.data() + index_bytes);
  selection.call.workspace = memory.data() + index_bytes + count_bytes;
  selection.call.workspace_bytes = plan.workspace_bytes;
  {
    const nb::gil_scoped_release released;
    select_blocks(selection);
  }
  params.lists.indices = selection.indices;
  params.lists.num_indices = lists * selection.stride;
  params.lists.counts = selection.counts;
  params.lists.stride = selection.stride;
  params.lists.num_heads = params.q.shape[2];
  params.lists.q_blocks = plan.q_blocks;
  call->workspace = nullptr;
  return memory;
}

template <typename... Args>
void forward(Args... args) {
  Call call = make_call(args...);
  AttentionParams& params = call.params;
  Memory lists;
  if (call.selects) lists = make_lists(&call);
  const std::shared_ptr<const PreparedAttention> prepared = prepared_for(params);
  const Memory workspace = memory_for(&call, prepared->plan().workspace_bytes);
  params.workspace = workspace.data();
  params.workspace_bytes = workspace.bytes();
  const nb::gil_scoped_release released;
  prepared->run(params);
}

constexpr const char* kForwardDoc =
    R"(One attention call, written into `out`. The low-level entry: see flash_attn_func for torch.

Tensors are anything with DLPack or the buffer protocol, all on one device, last axis contiguous.

q: [batch, seqlen_q, num_heads_q, head_dim], float32, float16 or bfloat16
k, v: [batch, seqlen_k, num_heads_kv, head_dim]
out: [batch, seqlen_q, num_heads_q, head_dim], dtype of q
softmax_scale: default 1/sqrt(head_dim)
q_offset: position of query row 0, tokens; default seqlen_k - seqlen_q if causal, else 0
kv_offset: position of key 0, tokens, a multiple of 64
window: the model's own window, tokens
thresholds: float32 [num_heads_q, num_q_blocks] or [batch, num_heads_q, num_q_blocks]
window_blocks: the paper's baseline instead: blocks kept before the diagonal
mass_c: the mass policy instead, with this c: finite, > 0 (0.1 is the method's)
skip_lambda: the skip-softmax baseline instead: above 0, at most 1; skip_order: ascending from block
    0, or outwards from the diagonal
coverage: above 0, up to 1: only blocks that hold this share of the attention of sampled_rows rows of
    each query block (8, 16, 32 or 64), which are scored exactly before, and blocks of at least
    mass_floor of it; what the lists leave is gated as the policy says
block: the gate grid, query rows and keys per block
compute_type: native, float32 or bfloat16
cu_seqlens_q, cu_seqlens_k: int32 [batch + 1], packed batches (batch axis 1)
seqused_k, leftpad_k, q_offsets: int32 [batch]
page_table, page_size: int32 [batch, pages], k and v being [pages, page_size, heads, head_dim], with
    seqused_k; max_seqlen_k: default what the table holds. No backend of this version serves it.
lse: float32 [batch, num_heads_q, seqlen_q]
kept_blocks, visible_blocks: int64 [batch, num_heads_q]
kept_mask: uint8, block_max: float32 [batch, num_heads_q, q_blocks, kv_blocks] (see plan)
left_out: float32 [batch, num_heads_q, q_blocks]: with coverage, the share that each list leaves out
backend: a name from backends(); empty: the best that serves the call
stream: cudaStream_t as an integer
num_threads: CPU threads; default all
workspace: uint8 bytes, plan(...).workspace_bytes + 256; or a function that is called with a number
    of bytes and returns such a tensor (with coverage twice, and not bytes); on the CPU allocated for the call if None

Raises bsfa.Error before anything is written.)";

template <typename F>
void define(nb::module_& module, const char* name, F&& function, const char* doc) {
  module.def(name, std::forward<F>(function), "q"_a, "k"_a, "v"_a, "out"_a, nb::kw_only(),
             "softmax_scale"_a = nb::none(), "causal"_a = false, "q_offset"_a = nb::none(),
             "kv_offset"_a = 0, "window"_a = nb::none(), "softcap"_a = 0.0f, "sinks"_a = nb::none(),
             "thresholds"_a = nb::none(), "thresholds_block"_a = nb::none(),
             "window_blocks"_a = nb::none(), "mass_c"_a = nb::none(),
             "skip_lambda"_a = nb::none(), "skip_order"_a = "ascending",
             "coverage"_a = nb::none(), "sampled_rows"_a = 32, "mass_floor"_a = 0.003f,
             "block"_a = Pair(128, 64), "compute_type"_a = "native",
             "cu_seqlens_q"_a = nb::none(), "cu_seqlens_k"_a = nb::none(),
             "max_seqlen_q"_a = nb::none(), "max_seqlen_k"_a = nb::none(),
             "seqused_k"_a = nb::none(), "leftpad_k"_a = nb::none(), "q_offsets"_a = nb::none(),
             "page_table"_a = nb::none(), "page_size"_a = 0, "lse"_a = nb::none(),
             "kept_blocks"_a = nb::none(), "visible_blocks"_a = nb::none(),
             "kept_mask"_a = nb::none(), "block_max"_a = nb::none(), "left_out"_a = nb::none(),
             "backend"_a = "",
             "stream"_a = 0, "num_threads"_a = nb::none(), "workspace"_a = nb::none(), doc);
}

// The types of make_call's parameters, given to `plan` and `forward`.
template <typename... Args>
void define_both(nb::module_& module, Call (*)(Args...)) {
  define(module, "attention_forward",
         static_cast<void (*)(std::decay_t<Args>...)>(&forward<std::decay_t<Args>...>),
         kForwardDoc);
  define(module, "plan_attention",
         static_cast<AttentionPlan (*)(std::decay_t<Args>...)>(&plan<std::decay_t<Args>...>),
         "What attention_forward would do with these arguments: looks at shapes and dtypes, never\n"
         "at data. What is not supported is in the plan's `error`, not raised.");
}

}  // namespace

void bind_attention(nb::module_& module) {
  nb::class_<AttentionPlan>(module, "AttentionPlan", "What a call would do.")
      .def_prop_ro("ok", [](const AttentionPlan& plan) { return plan.status.ok(); })
      .def_prop_ro(
          "error",
          [](const AttentionPlan& plan) -> std::optional<std::string> {
            if (plan.status.ok()) return std::nullopt;
            return plan.status.message;
          },
          "Why no backend serves the call; None if one does.")
      .def_ro("backend", &AttentionPlan::backend)
      .def_ro("kernel", &AttentionPlan::kernel, "Instruction set or tile.")
      .def_ro("compute", &AttentionPlan::compute, "What is multiplied: float32, bfloat16, float16.")
      .def_ro("workspace_bytes", &AttentionPlan::workspace_bytes)
      .def_ro("q_blocks", &AttentionPlan::q_blocks, "Extent of kept_mask and block_max.")
      .def_ro("kv_blocks", &AttentionPlan::kv_blocks, "Extent of kept_mask and block_max.");
  define_both(module, &make_call);
}

}  // namespace bsfa::python
