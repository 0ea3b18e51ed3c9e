#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>

#include "cpu/isa_environment.hpp"
#include "support/attention_case.hpp"
#include "support/compare.hpp"

// Block lists on the CPU backend, on every instruction set of this machine, against the oracle.

namespace bsfa::testing {
namespace {

class BlockListsOnCpu : public ::testing::TestWithParam<cpu::Isa> {
 private:
  ScopedIsa isa_{cpu::isa_name(GetParam())};
};

AttentionCase listed_case() {
  AttentionCase c;
  c.seqlen_q = 300;
  c.seqlen_k = 700;
  c.num_heads_q = 4;
  c.num_heads_kv = 2;
  c.q_dtype = c.kv_dtype = DType::kBFloat16;
  c.listed = 0.4;
  return c;
}

TEST_P(BlockListsOnCpu, MatchTheOracle) {
  for (const bool gated : {false, true}) {
    for (const bool causal : {false, true}) {
      for (const bool of_kv_heads : {false, true}) {
        for (const bool by_counts : {false, true}) {
          AttentionCase c = listed_case();
          c.policy = gated ? PolicyKind::kThreshold : PolicyKind::kDense;
          c.causal = causal;
          c.lists_of_kv_heads = of_kv_heads;
          c.lists_by_counts = by_counts;
          SCOPED_TRACE(describe(c));
          AttentionData data(c);
          ASSERT_EQ(run_case(data, "cpu"), "");
          EXPECT_EQ(compare_with_oracle(data, false), "");
        }
      }
    }
  }
}

TEST_P(BlockListsOnCpu, OfSeveralSequences) {
  AttentionCase packed = listed_case();
  packed.seqlens_q = {130, 0, 257};
  packed.seqlens_k = {200, 64, 257};
  AttentionCase padded = listed_case();
  padded.batch = 3;
  padded.leftpad_k = {0, 70, 5};
  padded.seqused_k = {700, 300, 0};
  AttentionCase shard = listed_case();
  shard.kv_offset = 256;
  shard.q_offset = 600;
  for (AttentionCase c : {packed, padded, shard}) {
    SCOPED_TRACE(describe(c));
    AttentionData data(c);
    ASSERT_EQ(run_case(data, "cpu"), "");
    EXPECT_EQ(compare_with_oracle(data, false), "");
  }
}

TEST_P(BlockListsOnCpu, AllBlocksInAscendingOrderGiveTheBitsOfNoLists) {
  AttentionCase c = listed_case();
  c.policy = PolicyKind::kThreshold;
  c.listed = 0;
  AttentionData data(c);
  ASSERT_EQ(run_case(data, "cpu"), "");
  const Buffer out = data.out;
  const Buffer lse = data.lse;
  const auto mask = data.kept_mask;
  data.c.listed = 1;
  data.draw_lists();
  data.list_indices.clear();
  for (std::size_t n = 0; n + 1 < data.list_offsets.size(); ++n) {
    for (std::int32_t j = 0; j < data.kv_blocks; ++j) data.list_indices.push_back(j);
    data.list_offsets[n + 1] = static_cast<std::int64_t>(data.list_indices.size());
  }
  data.lists.indices = data.list_indices.data();
  data.lists.num_indices = static_cast<std::int64_t>(data.list_indices.size());
  data.poison();
  ASSERT_EQ(run_case(data, "cpu"), "");
  EXPECT_TRUE(std::equal(static_cast<const std::uint8_t*>(out.data()),
                         static_cast<const std::uint8_t*>(out.data()) + out.bytes(),
                         static_cast<const std::uint8_t*>(data.out.data())));
  EXPECT_TRUE(std::equal(static_cast<const std::uint8_t*>(lse.data()),
                         static_cast<const std::uint8_t*>(lse.data()) + lse.bytes(),
                         static_cast<const std::uint8_t*>(data.lse.data())));
  EXPECT_EQ(mask, data.kept_mask);
}

TEST_P(BlockListsOnCpu, OrderDoesNotChangeADecision) {
  AttentionCase c = listed_case();
  c.policy = PolicyKind::kThreshold;
  c.listed = 0.7;
  AttentionData data(c);
  ASSERT_EQ(run_case(data, "cpu"), "");
  const auto mask = data.kept_mask;
  const auto kept = data.kept_blocks;
  for (std::size_t n = 0; n + 1 < data.list_offsets.size(); ++n) {
    std::sort(data.list_indices.begin() + data.list_offsets[n],
              data.list_indices.begin() + data.list_offsets[n + 1]);
  }
  data.poison();
  ASSERT_EQ(run_case(data, "cpu"), "");
  EXPECT_EQ(mask, data.kept_mask);
  EXPECT_EQ(kept, data.kept_blocks);
}

TEST_P(BlockListsOnCpu, EmptyListsGiveRowsThatSeeNothing) {
  AttentionCase c = listed_case();
  AttentionData data(c);
  std::fill(data.list_offsets.begin(), data.list_offsets.end(), 0);
  ASSERT_EQ(run_case(data, "cpu"), "");
  for (std::int64_t h = 0; h < c.num_heads_q; ++h) {
    for (std::int64_t t = 0; t < c.seqlen_q; ++t) {
      ASSERT_EQ(data.get(data.out, c.q_dtype, 0, t, h, 0), 0.0f);
    }
    EXPECT_EQ(data.kept_blocks[static_cast<std::size_t>(h)], 0);
  }
  EXPECT_EQ(compare_with_oracle(data, false), "");
}

INSTANTIATE_TEST_SUITE_P(Isa, BlockListsOnCpu, ::testing::ValuesIn(cpu::available_isas()),
                         [](const auto& isa) { return std::string(cpu::isa_name(isa.param)); });

std::string refusal(const AttentionParams& params) {
  const Status status = plan_attention(params).status;
  return status.ok() ? "" : status.message;
}

TEST(BlockListsRefused, NameTheArgumentAndWhatCame) {
  AttentionData data(listed_case());
  const auto with = [&](auto&& change) {
    AttentionParams params = data.params();
    change(params);
    return refusal(params);
  };
  const auto expect = [](const std::string& message, const std::string& part) {
    EXPECT_NE(message.find(part), std::string::npos) << message;
  };
  EXPECT_EQ(with([](AttentionParams&) {}), "");
  expect(with([](AttentionParams& p) { p.lists.num_heads = 3; }), "lists.num_heads is 3");
  expect(with([](AttentionParams& p) { p.lists.num_heads = 0; }), "lists.num_heads is 0");
  expect(with([](AttentionParams& p) { p.lists.num_heads = -1; }), "lists.num_heads is -1");
  expect(with([](AttentionParams& p) { p.lists.q_blocks += 1; }), "lists.q_blocks is");
  expect(with([](AttentionParams& p) { p.lists.offsets = nullptr; }), "neither offsets nor counts");
  expect(with([&](AttentionParams& p) { p.lists.counts = data.list_counts.data(); }),
         "both offsets and counts");
  expect(with([](AttentionParams& p) { p.lists.num_indices = -1; }), "lists.num_indices is -1");
  expect(with([](AttentionParams& p) { p.lists.indices = nullptr; }), "lists.indices is null");
  expect(with([](AttentionParams& p) { p.lists.stride = 5; }), "lists.stride is 5");
  expect(with([](AttentionParams& p) { p.policy = Policy::sliding_window(1); }), "sliding_window");
}

TEST(BlockListsRefused, EntriesOutOfRangeAndRepeatedOnes) {
  AttentionData data(listed_case());
  std::size_t list = 0;
  while (data.list_offsets[list + 1] - data.list_offsets[list] < 2) ++list;
  const auto first = static_cast<std::size_t>(data.list_offsets[list]);
  const std::int32_t before = data.list_indices[first];
  for (const std::int32_t wrong : {-1, static_cast<std::int32_t>(data.kv_blocks), 1 << 30}) {
    data.list_indices[first] = wrong;
    const std::string message = refusal(data.params());
    EXPECT_NE(message.find("the block " + std::to_string(wrong) + " in the list"),
              std::string::npos)
        << message;
  }
  data.list_indices[first] = data.list_indices[first + 1];
  EXPECT_NE(refusal(data.params()).find("twice in the list"), std::string::npos);
  data.list_indices[first] = before;
  EXPECT_EQ(refusal(data.params()), "");

  data.list_offsets[list + 1] = data.lists.num_indices + 1;
  EXPECT_NE(refusal(data.params()).find("lists.offsets has ["), std::string::npos);
}

}  // namespace
}  // namespace bsfa::testing
