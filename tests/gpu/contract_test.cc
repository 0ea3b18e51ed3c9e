#include <gtest/gtest.h>

#include "harness.hpp"

// What a caller may rely on besides the numbers: graphs, and refusals before anything is launched.

namespace bsfa::gpu_test {
namespace {

class Contract : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    int devices = 0;
    if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) GTEST_SKIP() << "no card";
  }
};
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(Contract);

Case gated_case() {
  Case c;
  c.seqlens_q = {300};
  c.seqlens_k = {700};
  c.policy = PolicyKind::kThreshold;
  return c;
}

TEST_P(Contract, RunsInAGraph) {
  for (const bool dense : {true, false}) {
    Case spec = gated_case();
    if (dense) {
      spec.policy = PolicyKind::kDense;
      spec.block_max = true;
    }
    Call call(spec);
    AttentionParams& params = call.device_params();
    params.backend = GetParam();
    const std::size_t bytes = workspace_size(params);
    DeviceBuffer workspace(std::max<std::size_t>(1, bytes));
    params.workspace = workspace.data();
    params.workspace_bytes = bytes;
    cudaStream_t stream;
    cudaGraph_t graph;
    cudaGraphExec_t executable;
    BSFA_CUDA_OK(cudaStreamCreate(&stream));
    params.stream = stream;
    BSFA_CUDA_OK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
    attention_forward(params);
    BSFA_CUDA_OK(cudaStreamEndCapture(stream, &graph));
    BSFA_CUDA_OK(cudaGraphInstantiate(&executable, graph, 0));
    for (int replay = 0; replay < 2; ++replay) {
      call.poison_results();
      BSFA_CUDA_OK(cudaDeviceSynchronize());
      BSFA_CUDA_OK(cudaGraphLaunch(executable, stream));
      BSFA_CUDA_OK(cudaStreamSynchronize(stream));
      call.check();
    }
    BSFA_CUDA_OK(cudaGraphExecDestroy(executable));
    BSFA_CUDA_OK(cudaGraphDestroy(graph));
    BSFA_CUDA_OK(cudaStreamDestroy(stream));
  }
}

// A prepared call on the tensors of another one of the same shapes, then on its own again.
TEST_P(Contract, APreparedCallRunsOnOtherPointers) {
  for (const int form : {0, 1, 2}) {
    Case spec = gated_case();
    if (form != 1) spec.policy = PolicyKind::kDense;
    spec.block_max = form == 2;
    Call first(spec);
    spec.seed = 2;
    Call second(spec);
    for (Call* call : {&first, &second}) call->device_params().backend = GetParam();
    const PreparedAttention prepared(first.device_params());
    DeviceBuffer workspace(std::max<std::size_t>(1, prepared.plan().workspace_bytes));
    for (Call* call : {&second, &first, &second}) {
      AttentionParams& params = call->device_params();
      params.workspace = workspace.data();
      params.workspace_bytes = prepared.plan().workspace_bytes;
      ASSERT_TRUE(prepared.serves(params));
      call->poison_results();
      BSFA_CUDA_OK(cudaDeviceSynchronize());
      prepared.run(params);
      BSFA_CUDA_OK(cudaDeviceSynchronize());
      call->check();
    }
    // A pointer that it has not seen is looked at: host memory is refused, and nothing is written.
    AttentionParams params = second.device_params();
    std::vector<float> on_host(65536);
    params.k.data = reinterpret_cast<const void*>(
        (reinterpret_cast<std::uintptr_t>(on_host.data()) + 15) / 16 * 16);
    second.poison_results();
    const auto before = second.results();
    try {
      prepared.run(params);
      FAIL() << "accepted";
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find("k "), std::string::npos) << error.what();
    }
    BSFA_CUDA_OK(cudaDeviceSynchronize());
    EXPECT_EQ(second.results(), before);
  }
}

// At most 1 KB for a query block and head, however unequal the sequences of a packed batch are.
TEST_P(Contract, WorkspaceIsOfQueryBlocksThatExist) {
  Case spec = gated_case();
  spec.batch = Batch::kPacked;
  spec.seqlens_q = {4096};
  spec.seqlens_q.resize(100, 1);
  spec.seqlens_k = spec.seqlens_q;
  Call call(spec);
  AttentionParams& params = call.device_params();
  params.backend = GetParam();
  const std::size_t query_blocks = 4096 / 128 + 99;
  EXPECT_LE(workspace_size(params), 1024 * query_blocks * spec.heads_q);
}

// On a machine with two cards: the operands' card counts, not the current one, which stays current.
TEST_P(Contract, RunsOnTheCardOfItsOperands) {
  int devices = 0;
  BSFA_CUDA_OK(cudaGetDeviceCount(&devices));
  if (devices < 2) GTEST_SKIP() << "NOT RUN: needs two cards";
  for (const int index : {1, 0}) {
    BSFA_CUDA_OK(cudaSetDevice(index));
    Call call(gated_case());
    AttentionParams& params = call.device_params();
    params.backend = GetParam();
    params.device.index = index;
    const std::size_t bytes = workspace_size(params);
    DeviceBuffer workspace(std::max<std::size_t>(1, bytes));
    params.workspace = workspace.data();
    params.workspace_bytes = bytes;
    call.poison_results();
    BSFA_CUDA_OK(cudaDeviceSynchronize());

    BSFA_CUDA_OK(cudaSetDevice(1 - index));
    attention_forward(params);
    int current = -1;
    BSFA_CUDA_OK(cudaGetDevice(&current));
    EXPECT_EQ(current, 1 - index);
    params.device.index = 1 - index;
    EXPECT_THROW(attention_forward(params), Error) << "operands of another card than named";

    BSFA_CUDA_OK(cudaSetDevice(index));
    BSFA_CUDA_OK(cudaDeviceSynchronize());
    call.check();
  }
}

// Each refusal names the argument.
TEST_P(Contract, RefusesByName) {
  const auto refusal = [&](const Case& spec, auto change) {
    Call call(spec);
    call.device_params().backend = GetParam();
    change(call.device_params());
    const AttentionPlan plan = plan_attention(call.device_params());
    EXPECT_FALSE(plan.status.ok());
    call.poison_results();
    const auto before = call.results();
    EXPECT_THROW(attention_forward(call.device_params()), Error);
    EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    EXPECT_EQ(call.results(), before) << "a refused call wrote something";
    return plan.status.message;
  };
  const auto has = [](const std::string& message, const std::string& word) {
    EXPECT_NE(message.find(word), std::string::npos) << message;
  };
  const Case spec = gated_case();
  if (GetParam() == "cuda-sm90") {
    has(refusal(spec, [](AttentionParams& p) { p.softcap = 30; }), "softcap is 30");
  } else {
    has(refusal(spec,
                [](AttentionParams& p) {
                  p.softcap = 1e30f;
                  p.softmax_scale = 1e-3f;
                }),
        "softcap is 1e+30 with softmax_scale 0.001");
  }
  has(refusal(spec, [](AttentionParams& p) { p.policy = Policy::mass(); }), "policy is mass");
  has(refusal(spec, [](AttentionParams& p) { p.policy = Policy::skip_softmax(0.1f); }),
      "policy is skip_softmax");
  has(refusal(spec, [](AttentionParams& p) { p.compute_type = ComputeType::kFloat32; }),
      "compute_type");
  has(refusal(spec, [](AttentionParams& p) { p.policy.thresholds.num_heads = 3; }),
      "policy.thresholds has 3 heads");
  has(refusal(spec, [](AttentionParams& p) { p.policy.thresholds.block.kv = 128; }),
      "policy.thresholds");
  has(refusal(spec,
              [](AttentionParams& p) {
                p.policy.thresholds.block.kv = 128;
                p.block.kv = 128;
                p.kept_mask = {};
              }),
      "block is 128x128");
  has(refusal(spec, [](AttentionParams& p) { p.device.index = 1000; }), "device.index is 1000");
  Case wide = gated_case();
  wide.head_dim = 80;
  has(refusal(wide, [](AttentionParams&) {}), "head_dim 80");
  Case window = gated_case();
  window.policy = PolicyKind::kSlidingWindow;
  window.block_max = true;
  has(refusal(window, [](AttentionParams&) {}), "block_max");
}

INSTANTIATE_TEST_SUITE_P(Gpu, Contract, testing::ValuesIn(cuda_backends()), backend_test_name);

}  // namespace
}  // namespace bsfa::gpu_test
