#include "bsfa/attention.hpp"

#include "api/registry.hpp"
#include "bsfa/calibration.hpp"
#include "bsfa/text.hpp"
#include "core/same_call.hpp"
#include "core/status.hpp"

namespace bsfa {
namespace {

constexpr std::size_t kWorkspaceAlignment = 256;

// Fills plan and, unless it is null, call.
Status plan_with(const Backend& backend, const Problem& problem, AttentionPlan* plan,
                 std::unique_ptr<PlannedCall>* call) {
  if (!backend.available()) return unsupported("not available here: ", backend.describe());
  BSFA_RETURN_IF_ERROR(backend.plan(problem, plan, call));
  plan->backend = backend.name;
  return {};
}

// The plan of the backend that serves the problem. Every refusal is reported: a caller learns why
// each candidate declined.
Status plan_problem(const Problem& problem, AttentionPlan* plan,
                    std::unique_ptr<PlannedCall>* call) {
  if (!problem.backend.empty()) {
    const Backend* backend = nullptr;
    BSFA_RETURN_IF_ERROR(find_backend(problem.backend, problem.device.type, &backend));
    if (!backend->available()) {
      return unsupported("backend ", quote(problem.backend),
                         " is not available here: ", backend->describe());
    }
    return plan_with(*backend, problem, plan, call);
  }
  std::string reasons;
  ErrorCode code = ErrorCode::kUnsupported;
  for (const Backend* backend : registered_backends()) {
    if (backend->device != problem.device.type || backend->priority < 0) continue;
    const Status status = plan_with(*backend, problem, plan, call);
    if (status.ok()) return {};
    code = status.code;
    reasons += (reasons.empty() ? "" : "; ") + std::string(backend->name) + ": " + status.message;
  }
  if (reasons.empty()) {
    return unsupported("this build of bsfa has no backend for ",
                       problem.device.type == DeviceType::kCpu ? "cpu" : "cuda", " tensors");
  }
  return {code, reasons};
}

Status plan_call(const AttentionParams& params, Problem* problem, AttentionPlan* plan,
                 std::unique_ptr<PlannedCall>* call) {
  BSFA_RETURN_IF_ERROR(make_problem(params, problem));
  plan->q_blocks = problem->q_blocks;
  plan->kv_blocks = problem->kv_blocks;
  return plan_problem(*problem, plan, call);
}

Status check_workspace(const Problem& problem, const AttentionPlan& plan) {
  if (problem.workspace_bytes < plan.workspace_bytes) {
    return invalid_argument("workspace_bytes is ", problem.workspace_bytes, "; this call needs ",
                            plan.workspace_bytes);
  }
  if (plan.workspace_bytes > 0 && problem.workspace == nullptr) {
    return invalid_argument("workspace is null; this call needs ", plan.workspace_bytes, " bytes");
  }
  if (reinterpret_cast<std::uintptr_t>(problem.workspace) % kWorkspaceAlignment != 0) {
    return invalid_argument("workspace is not aligned to ", kWorkspaceAlignment, " bytes");
  }
  return {};
}

void throw_if_error(const Status& status) {
  if (!status.ok()) throw Error(status);
}

}  // namespace

AttentionPlan plan_attention(const AttentionParams& params) {
  AttentionPlan plan;
  Problem problem;
  plan.status = plan_call(params, &problem, &plan, nullptr);
  return plan;
}

std::size_t workspace_size(const AttentionParams& params) {
  const AttentionPlan plan = plan_attention(params);
  throw_if_error(plan.status);
  return plan.workspace_bytes;
}

void attention_forward(const AttentionParams& params) {
  AttentionPlan plan;
  Problem problem;
  std::unique_ptr<PlannedCall> call;
  throw_if_error(plan_call(params, &problem, &plan, &call));
  throw_if_error(check_workspace(problem, plan));
  throw_if_error(check_memory(problem, plan.workspace_bytes));
  throw_if_error(call->run(problem));
}

struct PreparedAttention::Impl {
  explicit Impl(const AttentionParams& given) : params(given) {
    throw_if_error(plan_call(params, &problem, &plan, &call));
  }

  // For the same call.
  void run(const AttentionParams& now) const {
    Problem moved;
    throw_if_error(move_problem(problem, now, &moved));
    throw_if_error(call->check_pointers(moved, params));
    throw_if_error(check_workspace(moved, plan));
    throw_if_error(check_memory(moved, plan.workspace_bytes));
    throw_if_error(call->run(moved));
  }

  AttentionParams params;
  Problem problem;
  AttentionPlan plan;
  std::unique_ptr<PlannedCall> call;
};

PreparedAttention::PreparedAttention(const AttentionParams& params)
    : impl_(std::make_unique<Impl>(params)) {}
PreparedAttention::~PreparedAttention() = default;
PreparedAttention::PreparedAttention(PreparedAttention&&) noexcept = default;
PreparedAttention& PreparedAttention::operator=(PreparedAttention&&) noexcept = default;

const AttentionPlan& PreparedAttention::plan() const { return impl_->plan; }

const AttentionParams& PreparedAttention::params() const { return impl_->params; }

bool PreparedAttention::serves(const AttentionParams& params) const {
  return same_call(impl_->params, params) && workers_of(params) <= impl_->problem.workers;
}

void PreparedAttention::run(const AttentionParams& params) const {
  if (!same_call(impl_->params, params)) throw_if_error(check_same_call(impl_->params, params));
  impl_->run(params);
}

void PreparedAttention::run() const { impl_->run(impl_->params); }

}  // namespace bsfa
