#include "attention.hpp"

#include <algorithm>
#include <bsfa/error.hpp>
#include <charconv>
#include <chrono>
#include <cstring>
#include <limits>
#include <string>
#include <string_view>
#include <utility>

#include "identity.hpp"

#ifdef BSFA_GGML_OPENMP
#include "openmp_executor.hpp"
#endif

namespace bsfa::ggml {
namespace {

constexpr std::int64_t kMinQueries = 32;  // decode stays llama.cpp's own; so does its probe graph
constexpr std::size_t kWorkspaceAlignment = 256;

// The operands of ggml_flash_attn_ext:
//   q    [head_dim, num_queries, num_heads_q, streams]        fp32
//   k, v [head_dim, num_keys, num_heads_kv, streams]          views of the cache
//   mask [num_keys, num_queries or more, 1, streams]          fp16
//   node [head_dim_v, num_heads_q, num_queries, streams]      fp32
// A stream is one sequence with a cache of its own.
struct Operands {
  const ggml_tensor* q;
  const ggml_tensor* k;
  const ggml_tensor* v;
  const ggml_tensor* mask;
  const ggml_tensor* sinks;
  float softmax_scale;
  float max_bias;
  float softcap;
};

Operands operands(const ggml_tensor* node) {
  Operands result{node->src[0], node->src[1], node->src[2], node->src[3], node->src[4], 0, 0, 0};
  float values[3];
  std::memcpy(values, node->op_params, sizeof values);
  result.softmax_scale = values[0];
  result.max_bias = values[1];
  result.softcap = values[2];
  return result;
}

// The number in "cache_k_l<number>", the name of the cache that the key operand is a view of.
std::optional<int> layer_of(const ggml_tensor* k) {
  constexpr std::string_view kPrefix = "cache_k_l";
  while (k->view_src != nullptr) k = k->view_src;
  const std::string_view name = k->name;
  const std::size_t at = name.find(kPrefix);
  if (at == std::string_view::npos) return std::nullopt;
  const char* first = name.data() + at + kPrefix.size();
  int layer = 0;
  const auto [end, error] = std::from_chars(first, name.data() + name.size(), layer);
  if (error != std::errc() || end == first) return std::nullopt;
  return layer;
}

std::int64_t elements(std::size_t bytes, const ggml_tensor* tensor) {
  return static_cast<std::int64_t>(bytes / ggml_type_size(tensor->type));
}

// [1, ne1, ne2, head_dim] of one stream, from key (or query) `first` on.
TensorView operand_view(const ggml_tensor* t, std::int64_t stream, std::int64_t first,
                        std::int64_t count, DType dtype) {
  TensorView view;
  if (t->data != nullptr) {
    view.data = static_cast<const char*>(t->data) + stream * static_cast<std::int64_t>(t->nb[3]) +
                first * static_cast<std::int64_t>(t->nb[1]);
  }
  view.dtype = dtype;
  const std::int64_t shape[4] = {1, count, t->ne[2], t->ne[0]};
  const std::int64_t stride[4] = {0, elements(t->nb[1], t), elements(t->nb[2], t), 1};
  std::copy(std::begin(shape), std::end(shape), view.shape);
  std::copy(std::begin(stride), std::end(stride), view.stride);
  return view;
}

AttentionParams params_of(const ggml_tensor* node, std::int64_t stream, const CausalMask& mask,
                          int layer, const Settings& settings) {
  const Operands op = operands(node);
  AttentionParams params;
  params.q = operand_view(op.q, stream, 0, op.q->ne[1], DType::kFloat32);
  params.k = operand_view(op.k, stream, mask.first_key, mask.seqlen_k, DType::kFloat16);
  params.v = operand_view(op.v, stream, mask.first_key, mask.seqlen_k, DType::kFloat16);
  params.out.data = node->data == nullptr ? nullptr
                                          : static_cast<char*>(node->data) +
                                                stream * static_cast<std::int64_t>(node->nb[3]);
  const std::int64_t shape[4] = {1, node->ne[2], node->ne[1], node->ne[0]};
  const std::int64_t stride[4] = {0, elements(node->nb[2], node), elements(node->nb[1], node), 1};
  std::copy(std::begin(shape), std::end(shape), params.out.shape);
  std::copy(std::begin(stride), std::end(stride), params.out.stride);
  params.softmax_scale = op.softmax_scale;
  params.softcap = op.softcap;
  params.causal = true;
  params.q_offset = mask.q_offset;
  params.window = mask.window;
  params.compute_type =
      settings.compute == BSFA_GGML_EXACT ? ComputeType::kFloat32 : ComputeType::kBFloat16;
  params.backend = settings.backend;
  if (settings.mode == BSFA_GGML_THRESHOLD) {
    const ThresholdView table = settings.thresholds->view(settings.budget, layer);
    params.policy = Policy::threshold(table);
    params.block = table.block;
  } else if (settings.mode == BSFA_GGML_SLIDING_WINDOW) {
    params.policy = Policy::sliding_window(settings.budget);
  }
  return params;
}

bool rows_are_plain(const ggml_tensor* t) {
  const std::size_t size = ggml_type_size(t->type);
  return t->nb[0] == size && t->nb[1] % size == 0 && t->nb[2] % size == 0 && t->nb[3] % size == 0;
}

// By what the node itself shows.
Decline declined_by_node(const ggml_tensor* node, const Settings& settings) {
  if (settings.mode == BSFA_GGML_OFF) return Decline::kOff;
  const Operands op = operands(node);
  if (op.q->ne[1] < kMinQueries) return Decline::kFewQueries;
  if (op.mask == nullptr) return Decline::kNoMask;
  if (op.mask->type != GGML_TYPE_F16 || op.mask->ne[2] != 1 || op.mask->ne[3] != op.q->ne[3] ||
      op.mask->nb[0] != sizeof(ggml_fp16_t)) {
    return Decline::kMaskLayout;
  }
  if (op.max_bias != 0) return Decline::kAlibi;
  if (op.sinks != nullptr) return Decline::kSinks;
  if (op.q->type != GGML_TYPE_F32 || node->type != GGML_TYPE_F32) return Decline::kQueryType;
  if (op.k->type != GGML_TYPE_F16 || op.v->type != GGML_TYPE_F16) return Decline::kCacheType;
  if (!rows_are_plain(op.q) || !rows_are_plain(op.k) || !rows_are_plain(op.v)) {
    return Decline::kTensorLayout;
  }
  const std::optional<int> layer = layer_of(op.k);
  if (!layer) return Decline::kUnknownLayer;
  if (settings.mode == BSFA_GGML_HOST) return Decline::kNone;
  if (settings.mode == BSFA_GGML_THRESHOLD) {
    const ThresholdTable& table = *settings.thresholds;
    const float calibrated = table.metadata().softmax_scale;
    const float difference = calibrated - op.softmax_scale;
    if (*layer >= table.num_layers() || op.q->ne[2] != table.num_heads_q() ||
        difference * difference > 1e-12F * calibrated * calibrated) {
      return Decline::kThresholds;
    }
  }
  return Decline::kNone;
}

}  // namespace

Decline decline(const ggml_tensor* node, const Settings& settings) {
  const Decline reason = declined_by_node(node, settings);
  if (reason != Decline::kNone || settings.mode == BSFA_GGML_HOST) return reason;
  // The library says what it serves; its operands only have to be there, not to be read.
  const Operands op = operands(node);
  CausalMask mask;
  mask.seqlen_k = op.k->ne[1];
  mask.q_offset = mask.seqlen_k - op.q->ne[1];
  AttentionParams params = params_of(node, 0, mask, *layer_of(op.k), settings);
  alignas(kWorkspaceAlignment) static std::byte somewhere[kWorkspaceAlignment];
  params.q.data = params.k.data = params.v.data = somewhere;
  params.out.data = somewhere;
  return plan_attention(params).status.ok() ? Decline::kNone : Decline::kUnsupported;
}

Attention::~Attention() {
  if (host_ != nullptr) ggml_backend_free(host_);
}

Executor& Attention::executor() {
  const int wanted =
      current_settings()->num_threads > 0 ? current_settings()->num_threads : num_threads_;
  if (pool_ == nullptr || pool_->max_workers() != wanted) {
#ifdef BSFA_GGML_OPENMP
    pool_ = std::make_unique<OpenMpExecutor>(wanted);
#else
    pool_ = std::make_unique<ThreadPool>(wanted);
#endif
  }
  return *pool_;
}

void* Attention::workspace(std::size_t bytes) {
  if (workspace_.size() < bytes + kWorkspaceAlignment) {
    workspace_.resize(bytes + kWorkspaceAlignment);
  }
  void* data = workspace_.data();
  std::size_t space = workspace_.size();
  return std::align(kWorkspaceAlignment, bytes, data, space);
}

std::optional<CausalMask> Attention::mask_of(const ggml_tensor* node, std::int64_t stream,
                                             int layer) {
  const ggml_tensor* tensor = node->src[3];
  MaskView view;
  view.data = reinterpret_cast<const std::uint16_t*>(
      static_cast<const char*>(tensor->data) + stream * static_cast<std::int64_t>(tensor->nb[3]));
  view.num_rows = node->src[0]->ne[1];
  view.num_keys = tensor->ne[0];
  view.stride_row = elements(tensor->nb[1], tensor);
  const auto seen = masks_.find(view.data);
  if (seen != masks_.end() && layer > seen->second.layer && seen->second.meaning &&
      mask_ends_match(view, *seen->second.meaning)) {
    seen->second.layer = layer;
    return seen->second.meaning;
  }
  if (seen == masks_.end() && masks_.size() >= 64) masks_.clear();  // addresses of old graphs
  const std::optional<CausalMask> meaning = read_mask(view, executor());
  masks_.insert_or_assign(view.data, SeenMask{layer, meaning});
  return meaning;
}

void Attention::compute(ggml_tensor* node) {
  const std::shared_ptr<const Settings> settings = current_settings();
  // Asked again: the settings may have changed since the graph was divided, and a node that was
  // claimed must be computed whatever they say now.
  const auto leave_to_host = [&](Decline reason) {
    if (reason != Decline::kNone) Stats::instance().add_decline(reason);
    compute_on_host(node);
  };
  const Decline reason = declined_by_node(node, *settings);
  if (reason != Decline::kNone || settings->mode == BSFA_GGML_HOST) return leave_to_host(reason);
  if (checked_ != settings) {
    checked_ = settings;
    if (settings->mode == BSFA_GGML_THRESHOLD && !settings->allow_other_model) {
      warn_of_other_model(*settings->thresholds, node);
    }
  }
  const int layer = *layer_of(node->src[1]);
  const std::int64_t streams = node->src[0]->ne[3];
  std::vector<StreamCall> calls;
  for (std::int64_t stream = 0; stream < streams; ++stream) {
    const std::optional<CausalMask> mask = mask_of(node, stream, layer);
    if (!mask) return leave_to_host(Decline::kMaskContent);
    StreamCall call{params_of(node, stream, *mask, layer, *settings), *mask, 0, 0, nullptr};
    // What only the mask shows (a window) may be something that no backend serves.
    if (!prepare(&call, *settings)) return leave_to_host(Decline::kUnsupported);
    calls.push_back(std::move(call));
  }
  for (StreamCall& call : calls) run(&call, layer, *settings);
}

// The layers of a graph are the same call on other tensors: it is planned for the first of them.
std::shared_ptr<const PreparedAttention> Attention::prepared_for(const AttentionParams& params) {
  constexpr std::size_t kKept = 8;
  auto found = std::find_if(prepared_.begin(), prepared_.end(),
                            [&](const auto& prepared) { return prepared->serves(params); });
  if (found == prepared_.end()) {
    auto made = std::make_shared<const PreparedAttention>(params);
    if (prepared_.size() == kKept) prepared_.pop_back();
    found = prepared_.insert(prepared_.end(), std::move(made));
    ++num_prepared_;
  }
  std::rotate(prepared_.begin(), found, found + 1);
  return prepared_.front();
}

bool Attention::prepare(StreamCall* call, const Settings& settings) {
  AttentionParams& params = call->params;
  params.executor = &executor();
  const std::int64_t heads = params.q.shape[2];
  counts_.resize(static_cast<std::size_t>(2 * heads));
  params.kept_blocks = {counts_.data(), {1, heads}, {heads, 1}};
  params.visible_blocks = {counts_.data() + heads, {1, heads}, {heads, 1}};
  if (settings.mode == BSFA_GGML_CALIBRATE) {
    if (call->mask.q_offset % params.block.q != 0 || call->mask.first_key != 0) {
      throw Error(ErrorCode::kInvalidArgument,
                  "calibration: a chunk begins at token " + std::to_string(call->mask.q_offset) +
                      "; accepted: multiples of " + std::to_string(params.block.q) +
                      " (choose the batch size so)");
    }
    const AttentionPlan extents = plan_attention(params);
    call->q_blocks = extents.q_blocks;
    call->kv_blocks = extents.kv_blocks;
    const auto cells = static_cast<std::size_t>(heads * call->q_blocks * call->kv_blocks);
    if (block_max_.size() < cells) block_max_.resize(cells);
    params.block_max.data = block_max_.data();
    const std::int64_t shape[4] = {1, heads, call->q_blocks, call->kv_blocks};
    std::copy(std::begin(shape), std::end(shape), params.block_max.shape);
    set_contiguous(params.block_max.shape, params.block_max.stride);
  }
  try {
    call->prepared = prepared_for(params);
  } catch (const Error&) {
    return false;
  }
  return true;
}

void Attention::run(StreamCall* call, int layer, const Settings& settings) {
  const auto start = std::chrono::steady_clock::now();
  AttentionParams& params = call->params;
  const std::int64_t heads = params.q.shape[2];
  if (params.block_max) params.block_max.data = block_max_.data();  // may have grown since
  params.workspace_bytes = call->prepared->plan().workspace_bytes;
  params.workspace = workspace(params.workspace_bytes);
  call->prepared->run(params);
  std::int64_t kept = 0, visible = 0;
  for (std::int64_t head = 0; head < heads; ++head) {
    kept += counts_[static_cast<std::size_t>(head)];
    visible += counts_[static_cast<std::size_t>(heads + head)];
  }
  const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
  Stats::instance().add_call(layer, kept, visible, elapsed.count());
  if (settings.mode == BSFA_GGML_CALIBRATE &&
      settings.block_max(settings.user, layer, call->mask.q_offset, params.q.shape[1], heads,
                         call->q_blocks, call->kv_blocks, *params.softmax_scale,
                         block_max_.data()) != 0) {
    throw Error(ErrorCode::kRuntime, "the calibration callback asked to stop");
  }
}

void Attention::compute_on_host(ggml_tensor* node) {
  if (host_ == nullptr) {
    host_ = ggml_backend_init_by_type(GGML_BACKEND_DEVICE_TYPE_CPU, nullptr);
    if (host_ == nullptr) throw Error(ErrorCode::kRuntime, "ggml has no CPU backend");
  }
  const auto start = std::chrono::steady_clock::now();
  ggml_backend_reg_t reg = ggml_backend_dev_backend_reg(ggml_backend_get_device(host_));
  if (auto set_n_threads = reinterpret_cast<ggml_backend_set_n_threads_t>(
          ggml_backend_reg_get_proc_address(reg, "ggml_backend_set_n_threads"))) {
    set_n_threads(host_, num_threads_);
  }
  // A graph of this one node; the nodes that it reads have been computed.
  ggml_init_params init{ggml_graph_overhead_custom(1, false) + ggml_tensor_overhead(), nullptr,
                        true};
  ggml_context* context = ggml_init(init);
  if (context == nullptr) throw Error(ErrorCode::kRuntime, "ggml_init failed");
  ggml_cgraph* graph = ggml_new_graph_custom(context, 1, false);
  ggml_graph_add_node(graph, node);
  const ggml_status status = ggml_backend_graph_compute(host_, graph);
  ggml_free(context);
  const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
  Stats::instance().add_host_seconds(elapsed.count());
  if (status != GGML_STATUS_SUCCESS) {
    throw Error(ErrorCode::kRuntime,
                std::string("ggml's own attention failed: ") + ggml_status_to_string(status));
  }
}

}  // namespace bsfa::ggml
