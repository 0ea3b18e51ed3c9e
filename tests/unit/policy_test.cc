#include <gtest/gtest.h>

#include <vector>

#include "api/registry.hpp"
#include "core/backend.hpp"

// A policy that came after a backend was written is refused by it.

namespace bsfa {
namespace {

TEST(Policy, EveryBackendRefusesOneThatItDoesNotKnow) {
  std::vector<float> data(64 * 64);
  AttentionParams params;
  params.q = contiguous<const void*>(data.data(), DType::kFloat16, 1, 64, 1, 64);
  params.k = params.v = params.q;
  params.out = contiguous<void*>(data.data(), DType::kFloat16, 1, 64, 1, 64);
  params.causal = true;
  for (const Backend* backend : registered_backends()) {
    SCOPED_TRACE(backend->name);
    params.device.type = backend->device;
    Problem problem;
    ASSERT_TRUE(make_problem(params, &problem).ok());
    problem.policy.kind = static_cast<PolicyKind>(99);
    AttentionPlan plan;
    const Status status = backend->plan(problem, &plan, nullptr);
    EXPECT_FALSE(status.ok());
    EXPECT_NE(status.message.find("policy.kind is 99"), std::string::npos) << status.message;
  }
}

}  // namespace
}  // namespace bsfa
