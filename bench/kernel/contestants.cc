#include "kernel/contestants.hpp"

#include <cstdio>
#include <optional>

namespace bsfa::bench {

// One bsfa call with what it writes.
struct KernelContestants::Call {
  AttentionParams params;
  std::optional<PreparedAttention> prepared;
  std::vector<std::uint8_t> out;
  std::vector<std::uint8_t> kept_mask;
  std::vector<std::int64_t> kept, visible;
  std::vector<float> thresholds;

  double density() const {
    std::int64_t k = 0;
    std::int64_t v = 0;
    for (const std::int64_t x : kept) k += x;
    for (const std::int64_t x : visible) v += x;
    return static_cast<double>(k) / static_cast<double>(v);
  }
};

KernelContestants::KernelContestants(const KernelShape& shape, const std::vector<double>& densities)
    : pool_(shape.threads), problem_(shape.heads_q, shape.heads_kv, shape.head_dim, shape.tokens) {
  add_call("bsfa bf16", DType::kBFloat16, ComputeType::kNative, 1);
  add_call("bsfa f16 as bf16", DType::kFloat16, ComputeType::kBFloat16, 1);
  add_call("bsfa f16", DType::kFloat16, ComputeType::kNative, 1);
  add_call("bsfa f32", DType::kFloat32, ComputeType::kNative, 1);
  find_block_maxima();
  for (const double density : densities) {
    char name[64];
    std::snprintf(name, sizeof name, "bsfa bf16 gated %.2f", density);
    add_call(name, DType::kBFloat16, ComputeType::kNative, density);
  }
}

void KernelContestants::add_call(const std::string& name, DType dtype, ComputeType compute,
                                 double density) {
  const std::int64_t tokens = problem_.tokens;
  const std::int64_t heads = problem_.heads_q;
  const std::int64_t dim = problem_.head_dim;
  const std::int64_t q_blocks = problem_.q_blocks();
  const std::int64_t kv_blocks = problem_.kv_blocks();
  auto call = std::make_shared<Call>();
  call->params = problem_.params(dtype, dtype);
  AttentionParams& p = call->params;
  p.compute_type = compute;
  p.executor = &pool_;
  call->out.resize(static_cast<std::size_t>(tokens * heads * dim * dtype_size(dtype)));
  p.out = contiguous<void*>(call->out.data(), dtype, 1, tokens, heads, dim);
  call->kept.resize(static_cast<std::size_t>(heads));
  call->visible.resize(call->kept.size());
  p.kept_blocks = {call->kept.data(), {1, heads}, {heads, 1}};
  p.visible_blocks = {call->visible.data(), {1, heads}, {heads, 1}};
  if (density < 1) {
    call->thresholds = quantile_thresholds(block_max_, heads, q_blocks, kv_blocks, density);
    p.policy = Policy::threshold({call->thresholds.data(), heads, q_blocks, q_blocks, 0, {}});
    call->kept_mask.resize(static_cast<std::size_t>(heads * q_blocks * kv_blocks));
    p.kept_mask = {call->kept_mask.data(),
                   {1, heads, q_blocks, kv_blocks},
                   {0, q_blocks * kv_blocks, kv_blocks, 1}};
  }
  call->prepared.emplace(p);
  p.workspace_bytes = call->prepared->plan().workspace_bytes;
  workspace_.reserve(p.workspace_bytes);
  calls_.push_back(call);
  contestants_.push_back({name,
                          [this, call] {
                            AttentionParams params = call->params;
                            params.workspace = workspace_.data();
                            call->prepared->run(params);
                          },
                          [this, call, dtype, heads, dim] {
                            return problem_.error_of(
                                [&](std::int64_t t, std::int64_t h, std::int64_t d) {
                                  return load(call->out.data(), dtype, (t * heads + h) * dim + d);
                                },
                                dtype,
                                call->thresholds.empty()
                                    ? GateResult{}
                                    : GateResult{call->thresholds.data(), call->kept_mask.data()});
                          },
                          [call] { return call->density(); }, density < 1});
}

void KernelContestants::find_block_maxima() {
  const std::int64_t q_blocks = problem_.q_blocks();
  const std::int64_t kv_blocks = problem_.kv_blocks();
  block_max_.resize(static_cast<std::size_t>(problem_.heads_q * q_blocks * kv_blocks));
  AttentionParams p = calls_.front()->params;
  p.block_max = {block_max_.data(),
                 {1, problem_.heads_q, q_blocks, kv_blocks},
                 {0, q_blocks * kv_blocks, kv_blocks, 1}};
  p.workspace = workspace_.data();
  attention_forward(p);
}

std::string KernelContestants::kernel() const {
  return calls_.front()->prepared->plan().kernel;
}

std::size_t KernelContestants::workspace_bytes(std::int64_t tokens) const {
  AttentionParams p = calls_.front()->params;
  p.q.shape[1] = p.k.shape[1] = p.v.shape[1] = p.out.shape[1] = tokens;
  return workspace_size(p);
}

double KernelContestants::flops() const {
  return 2.0 * static_cast<double>(problem_.tokens) * static_cast<double>(problem_.tokens) *
         static_cast<double>(problem_.head_dim * problem_.heads_q);
}

}  // namespace bsfa::bench
