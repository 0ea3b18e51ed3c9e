#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

#include "api/registry.hpp"
#include "core/backend.hpp"

// A policy that a backend does not serve is refused by it, by name or, where it came after the backend
// was written, by number.

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

TEST(Policy, ThoseThatLookAtRowsAreServedOrRefusedByName) {
  std::vector<float> data(64 * 64);
  AttentionParams params;
  params.q = contiguous<const void*>(data.data(), DType::kFloat16, 1, 64, 1, 64);
  params.k = params.v = params.q;
  params.out = contiguous<void*>(data.data(), DType::kFloat16, 1, 64, 1, 64);
  for (const Backend* backend : registered_backends()) {
    SCOPED_TRACE(backend->name);
    params.device.type = backend->device;
    for (const auto& [policy, name] : {std::pair{Policy::mass(), "mass"},
                                       std::pair{Policy::skip_softmax(0.1f), "skip_softmax"}}) {
      params.policy = policy;
      Problem problem;
      ASSERT_TRUE(make_problem(params, &problem).ok());
      AttentionPlan plan;
      const Status status = backend->plan(problem, &plan, nullptr);
      if (backend->device == DeviceType::kCpu) {
        EXPECT_TRUE(status.ok()) << status.message;
      } else {
        EXPECT_EQ(status.message.rfind(std::string("policy is ") + name, 0), 0u) << status.message;
      }
    }
  }
}

}  // namespace
}  // namespace bsfa
