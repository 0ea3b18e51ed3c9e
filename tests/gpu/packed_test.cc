#include "harness.hpp"
#include "on_device.hpp"

// Packed batches whose bounds say little about their lengths.

namespace bsfa::gpu_test {
namespace {

class PackedOnCard : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    int devices = 0;
    if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) GTEST_SKIP() << "no card";
  }
};
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(PackedOnCard);

// Runs a case with its own bounds, then with `bound`, and compares bits and counts.
void expect_same_at_bound(AttentionData& data, const std::string& backend, std::int64_t bound) {
  const auto run = [&](std::int64_t most) {
    OnDevice call(data);
    call.params().backend = backend;
    call.params().kept_mask = {};  // its extent is that of the bound
    if (most != 0) call.params().max_seqlen_q = call.params().max_seqlen_k = most;
    call.run();
  };
  run(0);
  const auto bytes = [](const Buffer& buffer) {
    const auto* begin = static_cast<const std::uint8_t*>(buffer.data());
    return std::vector<std::uint8_t>(begin, begin + buffer.bytes());
  };
  const auto out = bytes(data.out);
  const auto lse = bytes(data.lse);
  const auto kept = data.kept_blocks;
  const auto visible = data.visible_blocks;
  run(bound);
  EXPECT_EQ(out, bytes(data.out));
  EXPECT_EQ(lse, bytes(data.lse));
  EXPECT_EQ(kept, data.kept_blocks);
  EXPECT_EQ(visible, data.visible_blocks);
}

TEST_P(PackedOnCard, ABoundChangesNothing) {
  std::vector<std::int32_t> many_q, many_k;
  for (int n = 0; n < 75; ++n) {
    many_q.push_back(n % 7 == 3 ? 0 : 1 + 37 * n % 290);
    many_k.push_back(many_q.back() + 11 * n % 70);
  }
  const std::vector<std::pair<std::vector<std::int32_t>, std::vector<std::int32_t>>> batches = {
      {{10, 10, 10, 10, 10, 10, 10, 10}, {10, 10, 10, 10, 10, 10, 10, 10}},
      {{0, 1, 700, 0, 130, 128, 5, 0}, {9, 1, 700, 9, 200, 128, 5, 0}},
      {{300}, {300}},
      {many_q, many_k},
  };
  for (const auto& [seqlens_q, seqlens_k] : batches) {
    for (const PolicyKind policy : {PolicyKind::kDense, PolicyKind::kThreshold}) {
      for (const std::int64_t head_dim : {64, 128}) {
        AttentionCase c;
        c.seqlens_q = seqlens_q;
        c.seqlens_k = seqlens_k;
        c.num_heads_q = 6;
        c.num_heads_kv = 2;
        c.head_dim = head_dim;
        c.q_dtype = c.kv_dtype = DType::kBFloat16;
        c.policy = policy;
        SCOPED_TRACE(describe(c));
        AttentionData data(c);
        expect_same_at_bound(data, GetParam(), 131072);
      }
    }
  }
}

// Offsets give sequences of one length different numbers of query blocks.
TEST_P(PackedOnCard, ABoundChangesNothingWithOffsets) {
  AttentionCase c;
  c.seqlens_q = {130, 130, 130, 4};
  c.seqlens_k = {900, 900, 900, 900};
  c.q_offsets = {0, 127, 500, 126};
  c.num_heads_q = 4;
  c.num_heads_kv = 2;
  c.q_dtype = c.kv_dtype = DType::kFloat16;
  AttentionData data(c);
  expect_same_at_bound(data, GetParam(), 100000);
}

INSTANTIATE_TEST_SUITE_P(Backend, PackedOnCard, ::testing::Values("cuda-sm80", "cuda-sm90"),
                         backend_test_name);

}  // namespace
}  // namespace bsfa::gpu_test
