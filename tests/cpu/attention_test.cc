#include <gtest/gtest.h>

#include <cstring>

#include "cpu/isa_environment.hpp"
#include "support/attention_case.hpp"
#include "support/compare.hpp"
#include "support/sanitized.hpp"

// The CPU backend against the fp64 oracle, on every instruction set of this machine.

namespace bsfa::testing {
namespace {

class CpuAttention : public ::testing::TestWithParam<cpu::Isa> {
 protected:
  void expect_matches_oracle(const AttentionCase& c, Executor* executor = nullptr) {
    SCOPED_TRACE(describe(c));
    AttentionData data(c);
    ASSERT_EQ(run_case(data, "cpu", executor), "");
    EXPECT_EQ(compare_with_oracle(data, false), "");
  }

 private:
  ScopedIsa isa_{cpu::isa_name(GetParam())};
};

AttentionCase gated(std::int64_t seqlen, double density) {
  AttentionCase c;
  c.seqlen_q = c.seqlen_k = seqlen;
  c.num_heads_q = 3;
  c.num_heads_kv = 1;
  c.policy = PolicyKind::kThreshold;
  c.density = density;
  return c;
}

TEST_P(CpuAttention, EveryDtypeAndComputeType) {
  for (const DType q : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
    for (const DType kv : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
      for (const ComputeType compute :
           {ComputeType::kNative, ComputeType::kFloat32, ComputeType::kBFloat16}) {
        AttentionCase c = gated(150, 0.3);
        c.num_heads_q = 1;
        c.q_dtype = q;
        c.kv_dtype = kv;
        c.compute_type = compute;
        expect_matches_oracle(c);
      }
    }
  }
}

TEST_P(CpuAttention, EveryHeadDim) {
  for (std::int64_t dim = 8; dim <= 256; dim += kSanitized ? 40 : 8) {
    AttentionCase c = gated(130, 0.5);
    c.num_heads_q = 1;
    c.head_dim = dim;
    c.head_dim_v = dim % 24 == 0 ? 264 - dim : dim;
    c.q_dtype = c.kv_dtype = dim % 16 == 0 ? DType::kBFloat16 : DType::kFloat16;
    c.compute_type = ComputeType::kBFloat16;
    expect_matches_oracle(c);
  }
}

TEST_P(CpuAttention, EveryBlockShapeAndDensity) {
  for (const std::int64_t q : {64, 128}) {
    for (const std::int64_t kv : {64, 128}) {
      for (const double density : {0.0, 0.3, 1.0}) {
        AttentionCase c = gated(330, density);
        c.block = {q, kv};
        c.q_dtype = c.kv_dtype = DType::kBFloat16;
        expect_matches_oracle(c);
      }
    }
  }
}

TEST_P(CpuAttention, ChunksOfALongerPrefill) {
  // Queries as an integration hands them over: fp32 against fp16 keys and values of all chunks.
  for (const std::int64_t q_offset : {0, 128, 384, 300}) {
    AttentionCase c = gated(0, 0.3);
    c.seqlen_q = 200;
    c.seqlen_k = q_offset + 200;
    c.q_offset = q_offset;
    c.kv_dtype = DType::kFloat16;
    c.heads_outside = true;
    expect_matches_oracle(c);
  }
}

TEST_P(CpuAttention, Bidirectional) {
  AttentionCase c = gated(333, 0.4);
  c.causal = false;
  c.seqlen_k = 275;
  expect_matches_oracle(c);
}

TEST_P(CpuAttention, RowsThatSeeNothing) {
  AttentionCase c;
  c.seqlen_q = 300;
  c.seqlen_k = 100;  // bottom-right aligned: the first 200 rows stand before every key
  expect_matches_oracle(c);
  c.seqlen_k = 0;
  expect_matches_oracle(c);
  c.sinks = true;
  expect_matches_oracle(c);
}

TEST_P(CpuAttention, ShardOfTheKeys) {
  AttentionCase c = gated(256, 0.4);
  c.q_offset = 256;
  c.kv_offset = 128;
  expect_matches_oracle(c);
  c.kv_offset = 384;  // some rows see nothing
  expect_matches_oracle(c);
}

TEST_P(CpuAttention, ModelWindow) {
  for (const std::int64_t window : {1, 64, 100, 1000}) {
    AttentionCase c = gated(400, 0.3);
    c.window = window;
    expect_matches_oracle(c);
  }
}

TEST_P(CpuAttention, SlidingWindowPolicy) {
  for (const std::int64_t blocks : {0, 1, 3, 100}) {
    AttentionCase c = gated(500, 0);
    c.policy = PolicyKind::kSlidingWindow;
    c.window_blocks = blocks;
    expect_matches_oracle(c);
  }
}

TEST_P(CpuAttention, SlidingWindowPolicyWithoutStatistics) {
  // Without block maxima the other blocks are not even packed; the output is the same.
  AttentionCase c = gated(500, 0);
  c.policy = PolicyKind::kSlidingWindow;
  AttentionData data(c);
  ASSERT_EQ(run_case(data, "cpu"), "");
  std::vector<float> expected(data.out.bytes() / sizeof(float));
  std::memcpy(expected.data(), data.out.data(), data.out.bytes());
  const auto mask = data.kept_mask;
  AttentionParams params = data.params();
  params.block_max = {};
  std::vector<std::uint8_t> workspace(workspace_size(params) + 256);
  params.workspace = reinterpret_cast<void*>(
      (reinterpret_cast<std::uintptr_t>(workspace.data()) + 255) / 256 * 256);
  params.workspace_bytes = workspace.size() - 256;
  data.poison();
  attention_forward(params);
  EXPECT_EQ(std::memcmp(expected.data(), data.out.data(), data.out.bytes()), 0);
  EXPECT_EQ(data.kept_mask, mask);
}

TEST_P(CpuAttention, SoftcapAndSinks) {
  AttentionCase c = gated(300, 0.4);
  c.magnitude = 4;
  c.softcap = 3;
  expect_matches_oracle(c);
  c.sinks = true;
  expect_matches_oracle(c);
  c.softcap = 0;
  expect_matches_oracle(c);
}

TEST_P(CpuAttention, PackedSequences) {
  ThreadPool pool(2);
  AttentionCase c = gated(0, 0.4);
  c.seqlens_q = {5, 0, 300, 64, 1};
  c.seqlens_k = {5, 70, 300, 192, 0};
  expect_matches_oracle(c, &pool);
  c.q_offsets = {0, 0, 128, 128, 7};
  c.seqlens_k = {5, 70, 428, 192, 9};
  expect_matches_oracle(c, &pool);
}

TEST_P(CpuAttention, PaddedSequences) {
  ThreadPool pool(2);
  AttentionCase c = gated(200, 0.4);
  c.batch = 4;
  c.seqlen_q = 70;
  c.leftpad_k = {0, 30, 200, 63};
  expect_matches_oracle(c, &pool);
  c.seqused_k = {200, 100, 0, 64};
  expect_matches_oracle(c, &pool);
  c.leftpad_k.clear();
  c.causal = false;
  c.row_padding = 8;
  expect_matches_oracle(c, &pool);
}

TEST_P(CpuAttention, LargeScores) {
  // Weights that underflow to nothing beside others, and a maximum that keeps rising.
  AttentionCase c = gated(300, 0.5);
  c.magnitude = 40;
  expect_matches_oracle(c);
}

INSTANTIATE_TEST_SUITE_P(Isa, CpuAttention, ::testing::ValuesIn(isas_to_test()), isa_test_name);

}  // namespace
}  // namespace bsfa::testing
