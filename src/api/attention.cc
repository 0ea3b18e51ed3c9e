#include "bsfa/attention.hpp"

#include "api/registry.hpp"
#include "core/same_call.hpp"
#include "core/status.hpp"

namespace bsfa {
namespace {

// Fills plan and, unless it is null, call.
Status plan_problem(const Problem& problem, AttentionPlan* plan,
                    std::unique_ptr<PlannedCall>* call) {
  return first_backend_that_serves(
      problem.backend, problem.device.type, [&](const Backend& backend) -> Status {
        BSFA_RETURN_IF_ERROR(backend.plan(problem, plan, call));
        plan->backend = backend.name;
        return {};
      });
}

Status plan_call(const AttentionParams& params, Problem* problem, AttentionPlan* plan,
                 std::unique_ptr<PlannedCall>* call) {
  BSFA_RETURN_IF_ERROR(make_problem(params, problem));
  plan->q_blocks = problem->q_blocks;
  plan->kv_blocks = problem->kv_blocks;
  return plan_problem(*problem, plan, call);
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
  throw_if_error(check_workspace(problem, plan.workspace_bytes));
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
    throw_if_error(check_workspace(moved, plan.workspace_bytes));
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
