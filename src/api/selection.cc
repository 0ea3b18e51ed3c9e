#include "bsfa/selection.hpp"

#include "api/registry.hpp"
#include "core/selection.hpp"
#include "core/status.hpp"

namespace bsfa {
namespace {

Status plan_call(const SelectBlocksParams& params, SelectionProblem* problem, SelectionPlan* plan,
                 const Backend** chosen) {
  BSFA_RETURN_IF_ERROR(make_selection_problem(params, problem));
  plan->q_blocks = problem->q_blocks;
  plan->kv_blocks = problem->kv_blocks;
  const auto try_backend = [&](const Backend& backend) -> Status {
    if (backend.plan_selection == nullptr) return unsupported("it does not select blocks");
    BSFA_RETURN_IF_ERROR(backend.plan_selection(*problem, plan));
    plan->backend = backend.name;
    *chosen = &backend;
    return {};
  };
  return first_backend_that_serves(problem->backend, problem->device.type, try_backend);
}

void throw_if_error(const Status& status) {
  if (!status.ok()) throw Error(status);
}

}  // namespace

SelectionPlan plan_selection(const SelectBlocksParams& params) {
  SelectionPlan plan;
  SelectionProblem problem;
  const Backend* chosen = nullptr;
  plan.status = plan_call(params, &problem, &plan, &chosen);
  return plan;
}

void select_blocks(const SelectBlocksParams& params) {
  SelectionPlan plan;
  SelectionProblem problem;
  const Backend* chosen = nullptr;
  throw_if_error(plan_call(params, &problem, &plan, &chosen));
  throw_if_error(check_workspace(problem, plan.workspace_bytes));
  throw_if_error(check_selection_memory(problem, plan.workspace_bytes));
  throw_if_error(chosen->select_blocks(problem));
}

}  // namespace bsfa
