#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "bsfa/attention.hpp"
#include "bsfa/backends.hpp"

namespace bsfa {
namespace {

constexpr std::int64_t kBatch = 2, kSeqlen = 200, kHeadsQ = 4, kHeadsKv = 2, kDim = 8;

struct Call {
  std::vector<float> q = std::vector<float>(kBatch * kSeqlen * kHeadsQ * kDim, 0.5f);
  std::vector<float> kv = std::vector<float>(kBatch * kSeqlen * kHeadsKv * kDim, 0.25f);
  std::vector<float> out = q;
  std::vector<float> table = std::vector<float>(kHeadsQ * 2, 0.0f);
  std::vector<float> lse = std::vector<float>(kBatch * kHeadsQ * kSeqlen);
  AttentionParams params;

  Call() {
    params.q = contiguous<const void*>(q.data(), DType::kFloat32, kBatch, kSeqlen, kHeadsQ, kDim);
    params.k = contiguous<const void*>(kv.data(), DType::kFloat32, kBatch, kSeqlen, kHeadsKv, kDim);
    params.v = params.k;
    params.out = contiguous<void*>(out.data(), DType::kFloat32, kBatch, kSeqlen, kHeadsQ, kDim);
    params.causal = true;
    params.policy = Policy::threshold({table.data(), kHeadsQ, 2, 2, 0, {}});
    params.backend = "reference";
  }
};

struct Refusal {
  const char* name;
  std::function<void(Call&)> spoil;
  const char* message;
  ErrorCode code = ErrorCode::kInvalidArgument;
};

void PrintTo(const Refusal& refusal, std::ostream* stream) { *stream << refusal.name; }

class Validation : public testing::TestWithParam<Refusal> {};

TEST_P(Validation, IsRefusedWithAMessageBeforeAnythingIsWritten) {
  Call call;
  std::fill(call.out.begin(), call.out.end(), -7.0f);
  GetParam().spoil(call);
  const AttentionPlan plan = plan_attention(call.params);
  EXPECT_EQ(plan.status.message, GetParam().message);
  EXPECT_EQ(plan.status.code, GetParam().code);
  try {
    attention_forward(call.params);
    FAIL() << "accepted";
  } catch (const Error& error) {
    EXPECT_EQ(error.what(), plan.status.message);
    EXPECT_EQ(error.code(), plan.status.code);
  }
  for (const float value : call.out) ASSERT_EQ(value, -7.0f);
}

const std::int32_t kFalling[] = {0, 150, 100};
const std::int32_t kShort[] = {0, 100, 200};
const std::int32_t kTooMany[] = {0, 201};

INSTANTIATE_TEST_SUITE_P(
    Arguments, Validation,
    testing::Values(
        Refusal{"null_q", [](Call& c) { c.params.q.data = nullptr; },
                "q is a null pointer with shape [2, 200, 4, 8]"},
        Refusal{"stride", [](Call& c) { c.params.k.stride[3] = 2; },
                "k has stride 2 on its last axis (head_dim); accepted: 1"},
        Refusal{"negative_stride", [](Call& c) { c.params.v.stride[1] = -16; },
                "v has strides [3200, -16, 8, 1]; negative strides are not accepted"},
        Refusal{"alignment",
                [](Call& c) { c.params.q.data = static_cast<const char*>(c.params.q.data) + 2; },
                "q is not aligned to its element size (4 bytes)"},
        Refusal{"heads",
                [](Call& c) {
                  c.params.k.shape[2] = 3;
                  c.params.v.shape[2] = 3;
                },
                "q has 4 heads and k has 3; the heads of q must be a positive multiple of those "
                "of k"},
        Refusal{"head_dim", [](Call& c) { c.params.k.shape[3] = 4; }, "k has head_dim 4; q has 8"},
        Refusal{"batch", [](Call& c) { c.params.k.shape[0] = 1; },
                "k has 1 batch entries; q has 2"},
        Refusal{"v_shape", [](Call& c) { c.params.v.shape[1] = 100; },
                "v has shape [2, 100, 2, 8]; k has [2, 200, 2, 8] and only head_dim may differ"},
        Refusal{"v_dtype", [](Call& c) { c.params.v.dtype = DType::kFloat16; },
                "v has dtype float16; k has float32"},
        Refusal{"out_shape", [](Call& c) { c.params.out.shape[1] = 199; },
                "out has shape [2, 199, 4, 8]; expected [2, 200, 4, 8]"},
        Refusal{"out_dtype", [](Call& c) { c.params.out.dtype = DType::kBFloat16; },
                "out has dtype bfloat16; q has float32"},
        Refusal{"dtype", [](Call& c) { c.params.q.dtype = static_cast<DType>(9); },
                "q has dtype 9; accepted: float32, float16, bfloat16"},
        Refusal{"scale", [](Call& c) { c.params.softmax_scale = 0.0f; },
                "softmax_scale is 0; accepted: a finite number above 0"},
        Refusal{"scale_nan",
                [](Call& c) { c.params.softmax_scale = std::numeric_limits<float>::quiet_NaN(); },
                "softmax_scale is nan; accepted: a finite number above 0"},
        Refusal{"softcap", [](Call& c) { c.params.softcap = -1.0f; },
                "softcap is -1; accepted: 0 (none) or above"},
        Refusal{"compute_type",
                [](Call& c) { c.params.compute_type = static_cast<ComputeType>(7); },
                "compute_type is 7; accepted: native (0), float32 (1), bfloat16 (2)"},
        Refusal{"block",
                [](Call& c) {
                  c.params.block = {32, 64};
                },
                "block is 32x64; accepted: 64 or 128 query rows x 64 or 128 keys"},
        Refusal{"table_heads", [](Call& c) { c.params.policy.thresholds.num_heads = 3; },
                "policy.thresholds has 3 heads; q has 4"},
        Refusal{"table_block",
                [](Call& c) {
                  c.params.policy.thresholds.block = {64, 64};
                },
                "policy.thresholds was calibrated on blocks of 64x64; the call gates on 128x64"},
        Refusal{"table_empty", [](Call& c) { c.params.policy.thresholds.num_q_blocks = 0; },
                "policy.thresholds has 0 query blocks; accepted: 1 to 536870912"},
        Refusal{"table_null", [](Call& c) { c.params.policy.thresholds.data = nullptr; },
                "policy.thresholds.data is null; the threshold policy needs a table"},
        Refusal{"table_offset", [](Call& c) { c.params.q_offset = -1; },
                "q_offset is -1; a threshold table has no entry for positions before 0"},
        Refusal{"window_blocks", [](Call& c) { c.params.policy = Policy::sliding_window(-1); },
                "policy.window_blocks is -1; accepted: 0 to 536870912"},
        Refusal{"mass_zero", [](Call& c) { c.params.policy = Policy::mass(0); },
                "policy.mass_c is 0; accepted: a finite number above 0"},
        Refusal{"mass_negative", [](Call& c) { c.params.policy = Policy::mass(-0.1f); },
                "policy.mass_c is -0.1; accepted: a finite number above 0"},
        Refusal{"mass_infinite",
                [](Call& c) {
                  c.params.policy = Policy::mass(std::numeric_limits<float>::infinity());
                },
                "policy.mass_c is inf; accepted: a finite number above 0"},
        Refusal{"mass_nan",
                [](Call& c) {
                  c.params.policy = Policy::mass(std::numeric_limits<float>::quiet_NaN());
                },
                "policy.mass_c is nan; accepted: a finite number above 0"},
        Refusal{"skip_zero", [](Call& c) { c.params.policy = Policy::skip_softmax(0); },
                "policy.skip_lambda is 0; accepted: above 0, at most 1"},
        Refusal{"skip_above_one", [](Call& c) { c.params.policy = Policy::skip_softmax(1.5f); },
                "policy.skip_lambda is 1.5; accepted: above 0, at most 1"},
        Refusal{"skip_nan",
                [](Call& c) {
                  c.params.policy = Policy::skip_softmax(std::numeric_limits<float>::quiet_NaN());
                },
                "policy.skip_lambda is nan; accepted: above 0, at most 1"},
        Refusal{"skip_order",
                [](Call& c) {
                  c.params.policy = Policy::skip_softmax(0.1f, static_cast<SkipOrder>(2));
                },
                "policy.skip_order is 2; accepted: ascending (0), outwards (1)"},
        Refusal{"policy_kind",
                [](Call& c) { c.params.policy.kind = static_cast<PolicyKind>(9); },
                "policy.kind is 9; accepted: dense (0), threshold (1), sliding_window (2), mass "
                "(3), skip_softmax (4)"},
        Refusal{"kv_offset", [](Call& c) { c.params.kv_offset = 32; },
                "kv_offset is 32; accepted: a multiple of 64 from 0 to 536870912"},
        Refusal{"window", [](Call& c) { c.params.window = 0; },
                "window is 0 tokens; accepted: 1 to 536870912"},
        Refusal{"window_bidirectional",
                [](Call& c) {
                  c.params.causal = false;
                  c.params.window = 10;
                },
                "window needs causal attention; the call is bidirectional"},
        Refusal{"cu_seqlens_half", [](Call& c) { c.params.cu_seqlens_q = kShort; },
                "cu_seqlens_k is missing; a packed batch needs cu_seqlens_q and cu_seqlens_k"},
        Refusal{"cu_seqlens_batch",
                [](Call& c) {
                  c.params.cu_seqlens_q = kShort;
                  c.params.cu_seqlens_k = kShort;
                },
                "packed q and k have 2 and 2 batch entries; expected 1, with all tokens on axis 1"},
        Refusal{"seqused", [](Call& c) { c.params.seqused_k = kTooMany; },
                "leftpad_k and seqused_k give sequence 1 the keys [0, 201); k has 200"},
        Refusal{"lse",
                [](Call& c) {
                  c.params.lse = {c.lse.data(), {kBatch, kHeadsQ, 100}, {800, 200, 1}};
                },
                "lse has shape [2, 4, 100]; expected [2, 4, 200]"}),
    [](const auto& test) { return std::string(test.param.name); });

TEST(Validation, PackedOffsetsThatFallAreRefused) {
  Call call;
  call.params.q.shape[0] = call.params.k.shape[0] = call.params.v.shape[0] = 1;
  call.params.out.shape[0] = 1;
  call.params.num_sequences = 2;
  call.params.max_seqlen_q = call.params.max_seqlen_k = 200;
  call.params.cu_seqlens_q = kShort;
  call.params.cu_seqlens_k = kFalling;
  EXPECT_EQ(plan_attention(call.params).status.message,
            "cu_seqlens_k falls from 150 to 100 at 1; expected ascending offsets");
}

TEST(Validation, TheCallItselfIsAccepted) {
  Call call;
  EXPECT_TRUE(plan_attention(call.params).status.ok());
  EXPECT_EQ(plan_attention(call.params).q_blocks, 2);
  EXPECT_EQ(plan_attention(call.params).kv_blocks, 4);
  attention_forward(call.params);
  for (const float value : call.out) ASSERT_EQ(value, 0.25f);
}

TEST(Validation, AnUnknownBackendIsRefusedWithTheNamesOfAll) {
  Call call;
  call.params.backend = "nonsense";
  const std::string message = plan_attention(call.params).status.message;
  EXPECT_EQ(message.rfind("backend is 'nonsense'; accepted: ", 0), 0u) << message;
  for (const BackendInfo& info : backends()) {
    EXPECT_NE(message.find(info.name), std::string::npos) << message;
  }
}

TEST(Backends, AreListed) {
  bool found = false;
  for (const BackendInfo& info : backends()) found = found || info.name == "reference";
  EXPECT_TRUE(found);
}

}  // namespace
}  // namespace bsfa
