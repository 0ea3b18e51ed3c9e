#include "core/backend.hpp"

#include "core/status.hpp"
#include "cpu/attention.hpp"
#include "cpu/isa.hpp"
#include "cpu/layout.hpp"
#include "cpu/selection.hpp"

namespace bsfa {
namespace cpu {
namespace {

constexpr std::int64_t kMaxHeadDim = 256;

struct Choice {
  const KernelSet* kernels = nullptr;
  DType multiply = DType::kFloat32;
};

Status check_head_dim(const char* name, std::int64_t dim) {
  if (dim % 8 != 0 || dim > kMaxHeadDim) {
    return unsupported(name, " is ", dim, "; backend cpu takes multiples of 8 up to ", kMaxHeadDim);
  }
  return {};
}

Status check_policy(PolicyKind kind) {
  switch (kind) {  // without default: the compiler asks about every policy that is added
    case PolicyKind::kDense:
    case PolicyKind::kThreshold:
    case PolicyKind::kSlidingWindow:
    case PolicyKind::kMass:
    case PolicyKind::kSkipSoftmax:
      return {};
  }
  return unsupported("policy.kind is ", static_cast<int>(kind),
                     "; backend cpu takes dense, threshold, sliding_window, mass, skip_softmax");
}

// What multiplies the operands, for attention and for the selector.
Status choose_kernels(const Problem& problem, Choice* choice) {
  if (problem.page_table != nullptr) {
    return unsupported("page_table was given; backend cpu takes contiguous k and v");
  }
  BSFA_RETURN_IF_ERROR(check_head_dim("head_dim", problem.head_dim));
  choice->multiply = multiply_dtype(problem, false);
  const bool bfloat16 = choice->multiply == DType::kBFloat16;
  Isa isa = Isa::kBaseline;
  BSFA_RETURN_IF_ERROR(choose_isa(bfloat16, &isa));
  choice->kernels = &kernels_of(isa, bfloat16);
  return {};
}

Status choose(const Problem& problem, Choice* choice) {
  BSFA_RETURN_IF_ERROR(check_policy(problem.policy.kind));
  BSFA_RETURN_IF_ERROR(choose_kernels(problem, choice));
  return check_head_dim("head_dim of v", problem.head_dim_v);
}

bool available() { return true; }

std::string describe() {
  std::string result = "instruction sets here: ";
  const char* separator = "";
  for (const Isa isa : available_isas()) {
    result += separator;
    result += isa_name(isa);
    separator = ", ";
  }
  for (const bool bfloat16 : {false, true}) {
    Isa isa = Isa::kBaseline;
    const Status status = choose_isa(bfloat16, &isa);
    if (!status.ok()) return result + "; " + status.message;
    result += std::string("; ") + (bfloat16 ? "bfloat16" : "float32") + " products with " +
              kernels_of(isa, bfloat16).name;
  }
  return result;
}

class CpuCall final : public PlannedCall {
 public:
  CpuCall(const KernelSet& kernels, const WorkspaceLayout& layout, bool round_bf16)
      : kernels_(kernels), layout_(layout), round_bf16_(round_bf16) {}

  Status check_pointers(const Problem&, const AttentionParams&) const override { return {}; }

  Status run(const Problem& problem) const override {
    run_attention(problem, kernels_, layout_, round_bf16_);
    return {};
  }

 private:
  const KernelSet& kernels_;
  const WorkspaceLayout layout_;
  const bool round_bf16_;
};

Status plan(const Problem& problem, AttentionPlan* plan, std::unique_ptr<PlannedCall>* call) {
  Choice choice;
  BSFA_RETURN_IF_ERROR(choose(problem, &choice));
  plan->kernel = choice.kernels->name;
  plan->compute = dtype_name(choice.multiply);
  const WorkspaceLayout layout = workspace_layout(problem, *choice.kernels);
  plan->workspace_bytes = layout.total;
  if (call != nullptr) {
    *call = std::make_unique<CpuCall>(*choice.kernels, layout, choice.multiply == DType::kBFloat16);
  }
  return {};
}

Status plan_selection(const SelectionProblem& problem, SelectionPlan* plan) {
  Choice choice;
  BSFA_RETURN_IF_ERROR(choose_kernels(problem, &choice));
  plan->kernel = choice.kernels->name;
  plan->workspace_bytes = selection_layout(problem, *choice.kernels).total;
  return {};
}

Status select_blocks(const SelectionProblem& problem) {
  Choice choice;
  BSFA_RETURN_IF_ERROR(choose_kernels(problem, &choice));
  run_selection(problem, *choice.kernels, selection_layout(problem, *choice.kernels),
                choice.multiply == DType::kBFloat16);
  return {};
}

}  // namespace
}  // namespace cpu

const Backend& cpu_backend() {
  static const Backend backend{"cpu",
                               DeviceType::kCpu,
                               0,
                               cpu::available,
                               cpu::describe,
                               cpu::plan,
                               nullptr,
                               cpu::plan_selection,
                               cpu::select_blocks};
  return backend;
}

}  // namespace bsfa
