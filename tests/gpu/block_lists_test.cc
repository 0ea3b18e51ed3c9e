#include "harness.hpp"
#include "on_device.hpp"

// Block lists on a card, compared with the oracle on the same data.

namespace bsfa::gpu_test {
namespace {

class BlockListsOnCard : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    int devices = 0;
    if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) GTEST_SKIP() << "no card";
  }
};
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(BlockListsOnCard);

AttentionCase listed_case(std::int64_t head_dim) {
  AttentionCase c;
  c.seqlen_q = 513;
  c.seqlen_k = 1111;
  c.num_heads_q = 4;
  c.num_heads_kv = 2;
  c.head_dim = head_dim;
  c.q_dtype = c.kv_dtype = DType::kBFloat16;
  c.listed = 0.35;
  return c;
}

TEST_P(BlockListsOnCard, MatchTheOracle) {
  for (const std::int64_t head_dim : {64, 128}) {
    for (const DType dtype : {DType::kBFloat16, DType::kFloat16}) {
      for (const bool gated : {false, true}) {
        for (const bool causal : {false, true}) {
          for (const bool of_kv_heads : {false, true}) {
            AttentionCase c = listed_case(head_dim);
            c.q_dtype = c.kv_dtype = dtype;
            c.policy = gated ? PolicyKind::kThreshold : PolicyKind::kDense;
            c.causal = causal;
            c.lists_of_kv_heads = of_kv_heads;
            c.lists_by_counts = of_kv_heads;
            SCOPED_TRACE(describe(c));
            AttentionData data(c);
            expect_matches_oracle(data, GetParam());
          }
        }
      }
    }
  }
}

TEST_P(BlockListsOnCard, OfSeveralSequences) {
  for (const std::int64_t head_dim : {64, 128}) {
    for (const PolicyKind policy : {PolicyKind::kDense, PolicyKind::kThreshold}) {
      AttentionCase packed = listed_case(head_dim);
      packed.seqlens_q = {130, 0, 257};
      packed.seqlens_k = {200, 64, 257};
      AttentionCase padded = listed_case(head_dim);
      padded.batch = 3;
      padded.leftpad_k = {0, 70, 5};
      padded.seqused_k = {1111, 600, 0};
      AttentionCase shard = listed_case(head_dim);
      shard.kv_offset = 256;
      shard.q_offset = 900;
      for (AttentionCase c : {packed, padded, shard}) {
        c.policy = policy;
        // Rows before position 0 have no threshold.
        if (policy == PolicyKind::kThreshold && !c.leftpad_k.empty()) continue;
        SCOPED_TRACE(describe(c));
        AttentionData data(c);
        expect_matches_oracle(data, GetParam());
      }
    }
  }
}

// What the host cannot check is harmless: it is passed over.
TEST_P(BlockListsOnCard, EntriesOutOfRangeArePassedOver) {
  for (const std::int64_t head_dim : {64, 128}) {
    for (const PolicyKind policy : {PolicyKind::kDense, PolicyKind::kThreshold}) {
      AttentionCase c = listed_case(head_dim);
      c.policy = policy;
      AttentionData data(c);
      ASSERT_EQ(run_case(data, "reference"), "");
      const std::vector<float> maxima = data.block_max;
      const std::vector<std::int32_t> right = data.list_indices;
      const std::vector<std::int64_t> right_offsets = data.list_offsets;
      // Each list with wrong entries before, between and after the right ones.
      std::vector<std::int32_t> wrong;
      std::vector<std::int64_t> offsets = {0};
      for (std::size_t n = 0; n + 1 < right_offsets.size(); ++n) {
        const std::int32_t strange[] = {-1, 1 << 30, static_cast<std::int32_t>(data.kv_blocks),
                                        INT32_MIN, INT32_MAX};
        for (std::int64_t i = right_offsets[n]; i < right_offsets[n + 1]; ++i) {
          wrong.push_back(strange[i % 5]);
          wrong.push_back(right[static_cast<std::size_t>(i)]);
        }
        wrong.push_back(strange[n % 5]);
        offsets.push_back(static_cast<std::int64_t>(wrong.size()));
      }
      data.list_indices = wrong;
      data.list_offsets = offsets;
      data.lists.indices = data.list_indices.data();
      data.lists.num_indices = static_cast<std::int64_t>(wrong.size());
      data.lists.offsets = data.list_offsets.data();
      OnDevice call(data);
      call.params().backend = GetParam();
      call.run();
      data.list_indices = right;
      data.list_offsets = right_offsets;
      data.lists.indices = data.list_indices.data();
      data.lists.num_indices = static_cast<std::int64_t>(right.size());
      data.lists.offsets = data.list_offsets.data();
      data.block_max = maxima;
      EXPECT_EQ(compare_with_oracle(data, true, kCardFactor), "") << describe(c);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Backend, BlockListsOnCard, ::testing::Values("cuda-sm90"),
                         backend_test_name);

}  // namespace
}  // namespace bsfa::gpu_test
