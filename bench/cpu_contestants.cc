#include "cpu_contestants.hpp"

#include <cstdio>

namespace bsfa::bench {

// One bsfa call with what it writes.
struct CpuContestants::Call {
  AttentionParams params;
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

CpuContestants::CpuContestants(std::int64_t heads_q, std::int64_t heads_kv, std::int64_t head_dim,
                               std::int64_t tokens, int threads)
    : pool_(threads),
      problem_(heads_q, heads_kv, head_dim, tokens),
      q_blocks_((tokens + 127) / 128),
      kv_blocks_((tokens + 63) / 64) {
  add_call("bsfa bf16", DType::kBFloat16, ComputeType::kNative, 1);
  add_call("bsfa f16 as bf16", DType::kFloat16, ComputeType::kBFloat16, 1);
  add_call("bsfa f16", DType::kFloat16, ComputeType::kNative, 1);
  add_call("bsfa f32", DType::kFloat32, ComputeType::kNative, 1);
  find_block_maxima();
  for (const double density : {0.5, 0.24, 0.1}) {
    char name[64];
    std::snprintf(name, sizeof name, "bsfa bf16 gated %.2f", density);
    add_call(name, DType::kBFloat16, ComputeType::kNative, density);
  }
  if (!ggml_available()) return;
  ggml_ = make_ggml_attention(problem_, threads);
  contestants_.push_back({"ggml f16", [this] { ggml_->run(); },
                          [this] {
                            return problem_.error_of(
                                [this](std::int64_t t, std::int64_t h, std::int64_t d) {
                                  return ggml_->output(t, h, d);
                                },
                                DType::kFloat16, nullptr, 0);
                          }});
}

void CpuContestants::add_call(const std::string& name, DType dtype, ComputeType compute,
                              double density) {
  const std::int64_t tokens = problem_.tokens;
  const std::int64_t heads = problem_.heads_q;
  const std::int64_t dim = problem_.head_dim;
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
    call->thresholds = quantile_thresholds(block_max_, heads, q_blocks_, kv_blocks_, density);
    p.policy = Policy::threshold({call->thresholds.data(), heads, q_blocks_, q_blocks_, 0, {}});
    call->kept_mask.resize(static_cast<std::size_t>(heads * q_blocks_ * kv_blocks_));
    p.kept_mask = {call->kept_mask.data(),
                   {1, heads, q_blocks_, kv_blocks_},
                   {0, q_blocks_ * kv_blocks_, kv_blocks_, 1}};
  }
  p.workspace_bytes = workspace_size(p);
  workspace_.reserve(p.workspace_bytes);
  calls_.push_back(call);
  contestants_.push_back({name,
                          [this, call] {
                            AttentionParams params = call->params;
                            params.workspace = workspace_.data();
                            attention_forward(params);
                          },
                          [this, call, dtype, heads, dim] {
                            return problem_.error_of(
                                [&](std::int64_t t, std::int64_t h, std::int64_t d) {
                                  return load(call->out.data(), dtype, (t * heads + h) * dim + d);
                                },
                                dtype, call->kept_mask.empty() ? nullptr : call->kept_mask.data(),
                                kv_blocks_);
                          },
                          [call] { return call->density(); }, density < 1});
}

void CpuContestants::find_block_maxima() {
  block_max_.resize(static_cast<std::size_t>(problem_.heads_q * q_blocks_ * kv_blocks_));
  AttentionParams p = calls_.front()->params;
  p.block_max = {block_max_.data(),
                 {1, problem_.heads_q, q_blocks_, kv_blocks_},
                 {0, q_blocks_ * kv_blocks_, kv_blocks_, 1}};
  p.workspace = workspace_.data();
  attention_forward(p);
}

std::string CpuContestants::kernel() const { return plan_attention(calls_.front()->params).kernel; }

std::size_t CpuContestants::workspace_bytes(std::int64_t tokens) const {
  AttentionParams p = calls_.front()->params;
  p.q.shape[1] = p.k.shape[1] = p.v.shape[1] = p.out.shape[1] = tokens;
  return workspace_size(p);
}

double CpuContestants::flops() const {
  return 2.0 * static_cast<double>(problem_.tokens) * static_cast<double>(problem_.tokens) *
         static_cast<double>(problem_.head_dim * problem_.heads_q);
}

}  // namespace bsfa::bench
