#include "bsfa/attention.hpp"

#include "api/registry.hpp"
#include "bsfa/calibration.hpp"
#include "bsfa/text.hpp"
#include "core/status.hpp"

namespace bsfa {
namespace {

constexpr std::size_t kWorkspaceAlignment = 256;

// The backend that serves the problem, and its plan. Every refusal is reported: a caller learns why
// each candidate declined.
Status select_backend(const Problem& problem, const std::string& name, AttentionPlan* plan,
                      const Backend** chosen) {
  if (!name.empty()) {
    BSFA_RETURN_IF_ERROR(find_backend(name, problem.device.type, chosen));
    if (!(*chosen)->available()) {
      return unsupported("backend ", quote(name),
                         " is not available here: ", (*chosen)->describe());
    }
    return (*chosen)->plan(problem, plan);
  }
  std::string reasons;
  ErrorCode code = ErrorCode::kUnsupported;
  for (const Backend* backend : registered_backends()) {
    if (backend->device != problem.device.type || backend->priority < 0) continue;
    AttentionPlan candidate = *plan;
    Status status = backend->available() ? backend->plan(problem, &candidate)
                                         : unsupported("not available here: ", backend->describe());
    if (status.ok()) {
      *plan = candidate;
      *chosen = backend;
      return {};
    }
    code = status.code;
    reasons += (reasons.empty() ? "" : "; ") + std::string(backend->name) + ": " + status.message;
  }
  if (reasons.empty()) {
    return unsupported("this build of bsfa has no backend for ",
                       problem.device.type == DeviceType::kCpu ? "cpu" : "cuda", " tensors");
  }
  return {code, reasons};
}

Status plan_problem(const AttentionParams& params, Problem* problem, AttentionPlan* plan,
                    const Backend** backend) {
  BSFA_RETURN_IF_ERROR(make_problem(params, problem));
  plan->q_blocks = problem->q_blocks;
  plan->kv_blocks = problem->kv_blocks;
  BSFA_RETURN_IF_ERROR(select_backend(*problem, params.backend, plan, backend));
  plan->backend = (*backend)->name;
  return {};
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
  const Backend* backend = nullptr;
  plan.status = plan_problem(params, &problem, &plan, &backend);
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
  const Backend* backend = nullptr;
  throw_if_error(plan_problem(params, &problem, &plan, &backend));
  throw_if_error(check_workspace(problem, plan));
  throw_if_error(check_overlaps(problem, plan.workspace_bytes));
  throw_if_error(backend->run(problem));
}

}  // namespace bsfa
