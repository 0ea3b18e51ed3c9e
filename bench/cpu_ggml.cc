// ggml's flash attention as a contestant: one FLASH_ATTN_EXT node over the whole prompt, fp32
// queries, fp16 keys and values, a causal fp16 mask, on ggml's own threads.

#include "cpu_ggml.hpp"

#include <cmath>
#include <stdexcept>

#include "ggml-backend.h"
#include "ggml-cpu.h"
#include "ggml.h"

namespace bsfa::bench {
namespace {

class GgmlCpuAttention {
 public:
  GgmlCpuAttention(const CausalProblem& problem, int threads) : problem_(problem) {
    backend_ = ggml_backend_cpu_init();
    if (backend_ == nullptr) throw std::runtime_error("ggml has no CPU backend");
    ggml_backend_cpu_set_n_threads(backend_, threads);
    context_ = ggml_init({16 * ggml_tensor_overhead() + ggml_graph_overhead(), nullptr, true});
    const std::int64_t n = problem.tokens;
    const std::int64_t d = problem.head_dim;
    ggml_tensor* q = ggml_new_tensor_3d(context_, GGML_TYPE_F32, d, problem.heads_q, n);
    ggml_tensor* k = ggml_new_tensor_3d(context_, GGML_TYPE_F16, d, problem.heads_kv, n);
    ggml_tensor* v = ggml_new_tensor_3d(context_, GGML_TYPE_F16, d, problem.heads_kv, n);
    ggml_tensor* mask = ggml_new_tensor_2d(context_, GGML_TYPE_F16, n, n);
    // [token][head][dim] in memory, handed over as llama.cpp does: tokens before heads.
    const float scale = 1.0f / std::sqrt(static_cast<float>(d));
    result_ = ggml_flash_attn_ext(context_, ggml_permute(context_, q, 0, 2, 1, 3),
                                  ggml_permute(context_, k, 0, 2, 1, 3),
                                  ggml_permute(context_, v, 0, 2, 1, 3), mask, scale, 0, 0);
    graph_ = ggml_new_graph(context_);
    ggml_build_forward_expand(graph_, result_);
    buffer_ = ggml_backend_alloc_ctx_tensors(context_, backend_);
    if (buffer_ == nullptr) throw std::runtime_error("ggml could not allocate the attention");
    const AttentionParams params = problem.params(DType::kFloat32, DType::kFloat16);
    ggml_backend_tensor_set(q, params.q.data, 0, ggml_nbytes(q));
    ggml_backend_tensor_set(k, params.k.data, 0, ggml_nbytes(k));
    ggml_backend_tensor_set(v, params.v.data, 0, ggml_nbytes(v));
    std::vector<std::uint16_t> causal(static_cast<std::size_t>(n * n), 0);
    for (std::int64_t t = 0; t < n; ++t) {
      for (std::int64_t c = t + 1; c < n; ++c) causal[static_cast<std::size_t>(t * n + c)] = 0xfc00;
    }
    ggml_backend_tensor_set(mask, causal.data(), 0, ggml_nbytes(mask));
  }
  ~GgmlCpuAttention() {
    ggml_backend_buffer_free(buffer_);
    ggml_free(context_);
    ggml_backend_free(backend_);
  }
  GgmlCpuAttention(const GgmlCpuAttention&) = delete;
  GgmlCpuAttention& operator=(const GgmlCpuAttention&) = delete;

  void run() {
    if (ggml_backend_graph_compute(backend_, graph_) != GGML_STATUS_SUCCESS) {
      throw std::runtime_error("ggml failed to compute the attention");
    }
  }

  float output(std::int64_t token, std::int64_t head, std::int64_t d) const {
    return static_cast<const float*>(
        result_->data)[(token * problem_.heads_q + head) * problem_.head_dim + d];
  }

 private:
  const CausalProblem& problem_;
  ggml_backend_t backend_ = nullptr;
  ggml_context* context_ = nullptr;
  ggml_backend_buffer_t buffer_ = nullptr;
  ggml_tensor* result_ = nullptr;
  ggml_cgraph* graph_ = nullptr;
};

}  // namespace

Contestant make_ggml_contestant(const CausalProblem& problem, int threads) {
  auto attention = std::make_shared<GgmlCpuAttention>(problem, threads);
  Contestant contestant;
  contestant.name = "ggml f16";
  contestant.run = [attention] { attention->run(); };
  contestant.error = [attention, &problem] {
    return problem.error_of(
        [&](std::int64_t t, std::int64_t h, std::int64_t d) { return attention->output(t, h, d); },
        DType::kFloat16);
  };
  return contestant;
}

}  // namespace bsfa::bench
