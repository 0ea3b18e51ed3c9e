#include "harness.hpp"
#include "on_device.hpp"
#include "support/selection_case.hpp"

// The sampled selector on a card, compared with its definition on the oracle's masses.

namespace bsfa::gpu_test {
namespace {

using bsfa::testing::compare_with_definition;
using bsfa::testing::SelectionCase;

class SelectBlocksOnCard : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    int devices = 0;
    if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) GTEST_SKIP() << "no card";
  }
};
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(SelectBlocksOnCard);

// A selection on device copies of a case's data.
class SelectionOnDevice {
 public:
  explicit SelectionOnDevice(SelectionCase& call)
      : call_(call),
        operands_(call.data),
        params_(call.params()),
        indices_(bytes(call.indices)),
        counts_(bytes(call.counts)),
        left_out_(bytes(call.left_out)) {
    params_.call = operands_.params();
    params_.indices = static_cast<std::int32_t*>(indices_.data());
    params_.counts = static_cast<std::int32_t*>(counts_.data());
    params_.left_out.data = static_cast<float*>(left_out_.data());
  }

  SelectBlocksParams& params() { return params_; }

  void run() {
    const SelectionPlan plan = plan_selection(params_);
    ASSERT_TRUE(plan.status.ok()) << plan.status.message;
    DeviceBuffer workspace(std::max<std::size_t>(1, plan.workspace_bytes));
    params_.call.workspace = workspace.data();
    params_.call.workspace_bytes = plan.workspace_bytes;
    select_blocks(params_);
    BSFA_CUDA_OK(cudaDeviceSynchronize());
    fetch(indices_, &call_.indices);
    fetch(counts_, &call_.counts);
    fetch(left_out_, &call_.left_out);
  }

 private:
  template <typename T>
  static std::size_t bytes(const std::vector<T>& values) {
    return std::max<std::size_t>(1, values.size() * sizeof(T));
  }
  template <typename T>
  static void fetch(const DeviceBuffer& from, std::vector<T>* to) {
    std::memcpy(to->data(), from.download().data(), to->size() * sizeof(T));
  }

  SelectionCase& call_;
  OnDevice operands_;
  SelectBlocksParams params_;
  DeviceBuffer indices_, counts_, left_out_;
};

AttentionCase selected_case(std::int64_t head_dim) {
  AttentionCase c;
  c.seqlen_q = 513;
  c.seqlen_k = 1111;
  c.num_heads_q = 6;
  c.num_heads_kv = 2;
  c.head_dim = head_dim;
  c.q_dtype = c.kv_dtype = DType::kBFloat16;
  c.magnitude = 2;
  c.spread = 6;
  return c;
}

SampledSelector selector_of(std::int64_t rows, float coverage, float floor = 1) {
  SampledSelector selector;
  selector.rows = rows;
  selector.coverage = coverage;
  selector.floor = floor;
  return selector;
}

void expect_as_defined(const AttentionCase& c, const SampledSelector& selector,
                       const std::string& backend, std::int64_t stride = 0) {
  SCOPED_TRACE(describe(c));
  AttentionData data(c);
  SelectionCase call(data, selector, stride);
  SelectionOnDevice device(call);
  device.params().call.backend = backend;
  device.run();
  EXPECT_EQ(compare_with_definition(call), "");
}

TEST_P(SelectBlocksOnCard, MatchesTheDefinition) {
  for (const std::int64_t head_dim : {64, 128}) {
    for (const DType dtype : {DType::kBFloat16, DType::kFloat16}) {
      for (const std::int64_t rows : {8, 16, 32, 64}) {
        for (const std::int64_t heads_kv : {1, 2, 6}) {
          AttentionCase c = selected_case(head_dim);
          c.q_dtype = c.kv_dtype = dtype;
          c.num_heads_kv = heads_kv;
          expect_as_defined(c, selector_of(rows, 0.9f, 0.02f), GetParam());
        }
      }
    }
  }
}

TEST_P(SelectBlocksOnCard, MasksAndPositions) {
  for (const std::int64_t head_dim : {64, 128}) {
    AttentionCase window = selected_case(head_dim);
    window.window = 300;
    AttentionCase full = selected_case(head_dim);
    full.causal = false;
    AttentionCase shard = selected_case(head_dim);
    shard.kv_offset = 256;
    shard.q_offset = 900;
    AttentionCase few = selected_case(head_dim);
    few.seqlen_q = 5;
    AttentionCase early = selected_case(head_dim);
    early.q_offset = -200;  // some rows see nothing
    AttentionCase far = selected_case(head_dim);
    far.magnitude = 3e4f;  // scores of which fp32 keeps few digits
    AttentionCase outside = selected_case(head_dim);
    outside.heads_outside = true;
    for (const AttentionCase& c : {window, full, shard, few, early, outside}) {
      expect_as_defined(c, selector_of(32, 0.9f), GetParam());
    }
    far.spread = 0;
    expect_as_defined(far, selector_of(32, 0.9f), GetParam());
  }
}

TEST_P(SelectBlocksOnCard, SeveralSequences) {
  for (const std::int64_t head_dim : {64, 128}) {
    AttentionCase packed = selected_case(head_dim);
    packed.seqlens_q = {130, 0, 257, 1};
    packed.seqlens_k = {200, 64, 257, 0};
    AttentionCase padded = selected_case(head_dim);
    padded.batch = 3;
    padded.leftpad_k = {0, 70, 5};
    padded.seqused_k = {1111, 600, 0};
    for (const AttentionCase& c : {packed, padded}) {
      for (const std::int64_t rows : {8, 64}) {
        expect_as_defined(c, selector_of(rows, 0.9f), GetParam());
      }
    }
  }
}

TEST_P(SelectBlocksOnCard, BudgetsAndWholeLists) {
  for (const std::int64_t stride : {5, 9}) {
    expect_as_defined(selected_case(128), selector_of(32, 0.99f), GetParam(), stride);
  }
  SampledSelector bounded = selector_of(16, 0.5f);
  bounded.max_left_out = 0.3f;
  expect_as_defined(selected_case(64), bounded, GetParam());
}

// Nothing depends on which multiprocessor works on what, nor on the batch; a graph does the same.
TEST_P(SelectBlocksOnCard, RunsAreTheSame) {
  AttentionCase c = selected_case(128);
  c.seqlen_q = c.seqlen_k = 2048;
  c.num_heads_q = 8;
  c.num_heads_kv = 2;
  AttentionData data(c);
  SelectionCase call(data, selector_of(32, 0.95f));
  SelectionOnDevice device(call);
  device.params().call.backend = GetParam();
  device.run();
  const auto indices = call.indices;
  const auto counts = call.counts;
  const auto left_out = call.left_out;
  for (int run = 0; run < 5; ++run) {
    device.run();
    EXPECT_EQ(call.counts, counts);
    EXPECT_EQ(call.left_out, left_out);
    EXPECT_EQ(call.indices, indices);
  }

  const SelectionPlan plan = plan_selection(device.params());
  DeviceBuffer workspace(plan.workspace_bytes);
  device.params().call.workspace = workspace.data();
  device.params().call.workspace_bytes = plan.workspace_bytes;
  cudaStream_t stream = nullptr;
  BSFA_CUDA_OK(cudaStreamCreate(&stream));
  device.params().call.stream = stream;
  cudaGraph_t graph = nullptr;
  BSFA_CUDA_OK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
  select_blocks(device.params());
  BSFA_CUDA_OK(cudaStreamEndCapture(stream, &graph));
  cudaGraphExec_t exec = nullptr;
  BSFA_CUDA_OK(cudaGraphInstantiate(&exec, graph, 0));
  for (int run = 0; run < 2; ++run) BSFA_CUDA_OK(cudaGraphLaunch(exec, stream));
  BSFA_CUDA_OK(cudaStreamSynchronize(stream));
  device.params().call.stream = nullptr;
  std::vector<std::int32_t> again(counts.size());
  BSFA_CUDA_OK(cudaMemcpy(again.data(), device.params().counts, again.size() * sizeof(again[0]),
                          cudaMemcpyDeviceToHost));
  EXPECT_EQ(again, counts);
  BSFA_CUDA_OK(cudaGraphExecDestroy(exec));
  BSFA_CUDA_OK(cudaGraphDestroy(graph));
  BSFA_CUDA_OK(cudaStreamDestroy(stream));
}

TEST_P(SelectBlocksOnCard, RefusesByName) {
  AttentionCase c = selected_case(96);
  AttentionData data(c);
  SelectionCase call(data, selector_of(32, 0.9f));
  SelectionOnDevice device(call);
  device.params().call.backend = GetParam();
  EXPECT_NE(plan_selection(device.params()).status.message.find("head_dim 96"), std::string::npos);

  AttentionData other(selected_case(64));
  SelectionCase host(other, selector_of(32, 0.9f));
  SelectionOnDevice on_card(host);
  SelectBlocksParams params = on_card.params();
  params.call.backend = GetParam();
  params.selector.previous = true;
  EXPECT_NE(plan_selection(params).status.message.find("selector.previous"), std::string::npos);
  params.selector.previous = false;
  const SelectionPlan plan = plan_selection(params);
  DeviceBuffer workspace(plan.workspace_bytes);
  params.call.workspace = workspace.data();
  params.call.workspace_bytes = plan.workspace_bytes;
  params.counts = host.counts.data();
  try {
    select_blocks(params);
    ADD_FAILURE() << "host memory was taken";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("counts"), std::string::npos) << error.what();
  }
}

INSTANTIATE_TEST_SUITE_P(Backend, SelectBlocksOnCard, ::testing::Values("cuda-sm90"),
                         backend_test_name);

}  // namespace
}  // namespace bsfa::gpu_test
