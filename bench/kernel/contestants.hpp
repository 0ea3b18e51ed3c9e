#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "kernel/problem.hpp"

namespace bsfa::bench {

struct KernelShape {
  std::int64_t heads_q = 9;
  std::int64_t heads_kv = 3;
  std::int64_t head_dim = 64;
  std::int64_t tokens = 4096;
  int threads = 1;
};

struct Contestant {
  std::string name;
  std::function<void()> run;
  std::function<double()> error;  // CausalProblem::error_of the last run
  std::function<double()> density = [] { return 1.0; };
  bool gated = false;
};

// A result whose error is above this is not timed: bf16 and its weights stay well below.
inline constexpr double kLargestError = 0.03;

// One causal prefill call on the same numbers: bsfa dense in each precision, then gated (bf16) near
// the given densities. The first is dense bf16.
class KernelContestants {
 public:
  KernelContestants(const KernelShape& shape, const std::vector<double>& densities);

  const CausalProblem& problem() const { return problem_; }
  const std::vector<Contestant>& all() const { return contestants_; }
  // Somebody else's kernel on the same problem.
  void add(Contestant contestant) { contestants_.push_back(std::move(contestant)); }
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
  AlignedMemory workspace_;
  std::vector<std::shared_ptr<Call>> calls_;
  std::vector<float> block_max_;
  std::vector<Contestant> contestants_;
};

}  // namespace bsfa::bench
