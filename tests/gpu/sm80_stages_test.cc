#include <gtest/gtest.h>

#include "cuda/sm80/launch.hpp"
#include "harness.hpp"

// The pipelines that cards with less shared memory get: chosen as meant, and right.

namespace bsfa::cuda::sm80 {
namespace {

using gpu_test::Call;
using gpu_test::Case;

TEST(Sm80Stages, ChosenByTheCard) {
  struct Card {
    int per_block;
    int per_multiprocessor;
  };
  constexpr Card k80{163 * 1024, 164 * 1024};
  constexpr Card k86{99 * 1024, 100 * 1024};
  constexpr Card k90{227 * 1024, 228 * 1024};
  const auto stages = []<Form kForm, int kHeadDim>(Config<kForm, kHeadDim>, Card card) {
    return choose_stages<Config<kForm, kHeadDim>>(card.per_block, card.per_multiprocessor);
  };
  EXPECT_EQ(stages(Config<Form::kGated, 128>{}, k90), (Stages{2, 1}));
  EXPECT_EQ(stages(Config<Form::kGated, 128>{}, k80), (Stages{2, 1}));
  EXPECT_EQ(stages(Config<Form::kGated, 128>{}, k86), (Stages{2, 1}));
  EXPECT_EQ(stages(Config<Form::kDense, 128>{}, k90), (Stages{2, 2}));
  EXPECT_EQ(stages(Config<Form::kDense, 128>{}, k80), (Stages{2, 1}));
  EXPECT_EQ(stages(Config<Form::kGated, 64>{}, k86), (Stages{2, 1}));
  EXPECT_EQ(stages(Config<Form::kGated, 256>{}, k90), (Stages{2, 1}));
  EXPECT_EQ(stages(Config<Form::kGated, 256>{}, k80), (Stages{2, 1}));
  EXPECT_EQ(stages(Config<Form::kGated, 256>{}, k86), (Stages{0, 0}));
  EXPECT_EQ(stages(Config<Form::kDense, 256>{}, k90), (Stages{1, 1}));
  EXPECT_EQ(stages(Config<Form::kDense, 256>{}, k86), (Stages{1, 1}));
  EXPECT_EQ(stages(Config<Form::kCalibrating, 256>{}, k86), (Stages{1, 1}));
}

TEST(Sm80Stages, EachIsRight) {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) GTEST_SKIP() << "no card";
  for (const std::int64_t dim : {64, 128, 256}) {
    for (const int form : {0, 1, 2}) {
      Case spec;
      spec.head_dim = dim;
      spec.seqlens_q = {300};
      spec.seqlens_k = {700};
      spec.block_max = form == 2;
      spec.policy = form == 1 ? PolicyKind::kThreshold : PolicyKind::kDense;
      Call call(spec);
      Problem problem;
      ASSERT_TRUE(make_problem(call.device_params(), &problem).ok());
      for (const Stages stages : {Stages{2, 2}, Stages{2, 1}, Stages{1, 1}}) {
        if (form == 1 && !(stages == Stages{2, 1})) continue;
        call.poison_results();
        const Status status = run_with_stages(problem, stages);
        ASSERT_TRUE(status.ok()) << status.message;
        ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
        SCOPED_TRACE(testing::Message() << "head_dim " << dim << " form " << form << " stages "
                                        << stages.k << ", " << stages.v);
        call.check();
        if (HasFailure()) return;
      }
    }
  }
}

}  // namespace
}  // namespace bsfa::cuda::sm80
