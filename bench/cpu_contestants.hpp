#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "cpu_common.hpp"

namespace bsfa::bench {

struct Contestant {
  std::string name;
  std::function<void()> run;
  std::function<double()> error;  // largest relative error over the sampled rows
  std::function<double()> density = [] { return 1.0; };
  bool gated = false;
};

// One causal prefill call on the same numbers: bsfa dense in each precision, gated (bf16) near the
// densities 0.5, 0.24 and 0.1, and ggml where the build has it. The first is dense bf16.
class CpuContestants {
 public:
  CpuContestants(std::int64_t heads_q, std::int64_t heads_kv, std::int64_t head_dim,
                 std::int64_t tokens, int threads);

  const CausalProblem& problem() const { return problem_; }
  const std::vector<Contestant>& all() const { return contestants_; }
  // Instruction set of the first contestant, and its workspace at another length.
  std::string kernel() const;
  std::size_t workspace_bytes(std::int64_t tokens) const;
  double flops() const;  // 4 N^2 d H / 2

 private:
  struct Call;
  void add_call(const std::string& name, DType dtype, ComputeType compute, double density);
  void find_block_maxima();

  ThreadPool pool_;
  CausalProblem problem_;
  std::int64_t q_blocks_, kv_blocks_;
  AlignedMemory workspace_;
  std::vector<std::shared_ptr<Call>> calls_;
  std::vector<float> block_max_;
  std::shared_ptr<GgmlAttention> ggml_;
  std::vector<Contestant> contestants_;
};

}  // namespace bsfa::bench
