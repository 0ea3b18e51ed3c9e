#include <gtest/gtest.h>

#include "cpu/isa_environment.hpp"
#include "support/attention_case.hpp"
#include "support/compare.hpp"

namespace bsfa::testing {
namespace {

Status status_of(AttentionParams params) {
  params.backend = "cpu";
  return plan_attention(params).status;
}

TEST(CpuRefusal, UnknownInstructionSet) {
  const ScopedIsa isa("sse9");
  AttentionData data({});
  const Status status = status_of(data.params());
  EXPECT_EQ(status.code, ErrorCode::kInvalidArgument);
  EXPECT_NE(status.message.find("BSFA_CPU_ISA is 'sse9'"), std::string::npos) << status.message;
  EXPECT_NE(status.message.find("baseline"), std::string::npos) << status.message;
  EXPECT_NE(run_case(data, "cpu"), "");
}

TEST(CpuRefusal, AnEmptyNameIsNoName) {
  const ScopedIsa isa("");
  AttentionData data({});
  EXPECT_EQ(run_case(data, "cpu"), "");
}

TEST(CpuRefusal, TheForcedInstructionSetIsTheOneThatRuns) {
  for (const cpu::Isa isa : cpu::available_isas()) {
    const ScopedIsa scoped(cpu::isa_name(isa));
    AttentionCase c;
    c.compute_type = ComputeType::kBFloat16;
    AttentionData data(c);
    AttentionParams params = data.params();
    params.backend = "cpu";
    const AttentionPlan plan = plan_attention(params);
    EXPECT_EQ(plan.kernel, cpu::isa_name(isa));
    EXPECT_EQ(plan.compute, "bfloat16");
  }
}

TEST(CpuRefusal, HeadDim) {
  for (const std::int64_t dim : {4, 12, 264}) {
    AttentionCase c;
    c.head_dim = dim;
    AttentionData data(c);
    const Status status = status_of(data.params());
    EXPECT_EQ(status.code, ErrorCode::kUnsupported);
    EXPECT_NE(status.message.find("head_dim is " + std::to_string(dim)), std::string::npos)
        << status.message;
  }
  AttentionCase c;
  c.head_dim_v = 20;
  AttentionData data(c);
  EXPECT_NE(status_of(data.params()).message.find("head_dim of v is 20"), std::string::npos);
}

TEST(CpuRefusal, PageTable) {
  AttentionData data({});
  AttentionParams params = data.params();
  const std::int32_t table[] = {0};
  const std::int32_t used[] = {128};
  params.page_table = table;
  params.page_size = 128;
  params.page_table_stride = 1;
  params.seqused_k = used;
  params.max_seqlen_k = 128;
  params.kept_mask = {};
  params.block_max = {};
  const Status status = status_of(params);
  EXPECT_EQ(status.code, ErrorCode::kUnsupported);
  EXPECT_NE(status.message.find("page_table"), std::string::npos) << status.message;
}

TEST(CpuRefusal, WorkspaceTooSmall) {
  AttentionData data({});
  AttentionParams params = data.params();
  params.backend = "cpu";
  params.workspace_bytes = workspace_size(params) - 1;
  alignas(256) static char memory[256];
  params.workspace = memory;
  try {
    attention_forward(params);
    FAIL() << "ran with too small a workspace";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("workspace_bytes"), std::string::npos);
  }
}

TEST(CpuPlan, TheWorkspaceIsLinearInTheLength) {
  std::size_t before = 0;
  std::size_t growth = 0;
  for (std::int64_t tokens = 4096; tokens <= 5 * 4096; tokens += 4096) {
    AttentionParams params;
    static float nothing = 0;
    params.q = contiguous<const void*>(&nothing, DType::kFloat16, 1, tokens, 9, 64);
    params.k = contiguous<const void*>(&nothing, DType::kFloat16, 1, tokens, 3, 64);
    params.v = params.k;
    params.out = contiguous<void*>(&nothing, DType::kFloat16, 1, tokens, 9, 64);
    params.causal = true;
    params.backend = "cpu";
    const std::size_t bytes = workspace_size(params);
    if (before != 0) {
      if (growth != 0) {
        EXPECT_NEAR(static_cast<double>(bytes - before), static_cast<double>(growth), 4096);
      }
      growth = bytes - before;
      EXPECT_LT(growth, 4096 * 3 * 64 * 2 * 5);  // fp32 keys and values, and a few percent
    }
    before = bytes;
  }
}

}  // namespace
}  // namespace bsfa::testing
