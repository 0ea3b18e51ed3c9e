#include <algorithm>
#include <cmath>

#include "bsfa/backends.hpp"
#include "on_device.hpp"

// Scores as far out as fp32 holds them, and rows that belong to nobody, on a card.

namespace bsfa::gpu_test {
namespace {

class CardRange : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    for (const BackendInfo& backend : backends()) {
      if (backend.name == GetParam() && backend.available) return;
    }
    GTEST_SKIP() << "no card for " << GetParam();
  }
};
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(CardRange);

AttentionCase small_case(std::int64_t head_dim, DType dtype = DType::kBFloat16) {
  AttentionCase c;
  c.seqlen_q = c.seqlen_k = 260;
  c.head_dim = head_dim;
  c.q_dtype = c.kv_dtype = dtype;
  return c;
}

// Scores of every sign and magnitude in one row, in every order; with sinks and a threshold that
// keeps all, too.
TEST_P(CardRange, WideRows) {
  for (const std::int64_t head_dim : {64, 128}) {
    for (const float scale : {1.0f, 0.125f, 0x1p-100f, 0x1p-120f}) {
      for (const int order : {0, 1, 2}) {
        for (const int variant : {0, 1, 2}) {
          AttentionCase c = small_case(head_dim);
          c.softmax_scale = scale;
          c.sinks = variant == 1;
          if (variant == 2) {
            c.policy = PolicyKind::kThreshold;
            c.density = 1;
          }
          AttentionData data(c);
          std::vector<float> keys;
          for (int t = 0; t < 260; ++t) {
            const int n = order == 0 ? t : order == 1 ? 259 - t : t * 97 % 260;
            keys.push_back(n < 130 ? -std::ldexp(1.5f, 126 - n) : std::ldexp(1.5f, n - 133));
          }
          data.set_products(1.0f, keys);
          if (variant == 2) std::fill(data.thresholds.begin(), data.thresholds.end(), -INFINITY);
          SCOPED_TRACE(describe(c));
          expect_matches_oracle(data, GetParam());
        }
      }
    }
  }
}

// The sum of products of the largest operands, with both signs: whole rows far above and below 0,
// beside rows that are not.
TEST_P(CardRange, TheLargestOperands) {
  for (const std::int64_t head_dim : {64, 128}) {
    for (const DType dtype : {DType::kFloat16, DType::kBFloat16}) {
      for (const int pattern : {0, 1, 2, 3}) {
        AttentionCase c = small_case(head_dim, dtype);
        c.softmax_scale = 1.0f;
        AttentionData data(c);
        const float large = dtype == DType::kFloat16 ? 65504.0f : 0x1p50f;
        for (std::int64_t t = 0; t < 260; ++t) {
          for (std::int64_t d = 0; d < head_dim; ++d) {
            const bool negative = (pattern == 1 && t % 3 == 0) || (pattern == 2 && t < 250);
            const bool usual = pattern == 3 && t % 2 == 0;
            data.set(data.q, dtype, 0, t, 0, d, usual ? 0.0f : large);
            data.set(data.k, dtype, 0, t, 0, d, negative ? -large : large);
          }
        }
        SCOPED_TRACE(describe(c));
        expect_matches_oracle(data, GetParam());
      }
    }
  }
}

TEST_P(CardRange, RowsOfNobodyAreWritten) {
  for (const std::vector<std::int32_t>& lengths :
       {std::vector<std::int32_t>{130, 0, 7}, std::vector<std::int32_t>{0, 0}}) {
    for (const PolicyKind policy : {PolicyKind::kDense, PolicyKind::kThreshold}) {
      AttentionCase c = small_case(128);
      c.num_heads_q = 2;
      c.seqlens_q = c.seqlens_k = lengths;
      c.seqlens_q.push_back(333);  // a last sequence that is then taken away
      c.seqlens_k.push_back(333);
      c.policy = policy;
      AttentionData data(c);
      OnDevice call(data);
      AttentionParams& params = call.params();
      params.num_sequences -= 1;
      params.kept_blocks = {};
      params.visible_blocks = {};
      params.kept_mask = {};
      params.backend = GetParam();
      call.run();
      std::int64_t first = 0;
      for (const std::int32_t length : lengths) first += length;
      for (std::int64_t t = first; t < first + 333; ++t) {
        for (std::int64_t h = 0; h < 2; ++h) {
          for (std::int64_t d = 0; d < c.head_dim; ++d) {
            ASSERT_EQ(data.get(data.out, c.q_dtype, 0, t, h, d), 0.0f) << "row " << t;
          }
          const auto& stride = data.lse.strides();
          ASSERT_EQ(static_cast<const float*>(data.lse.data())[h * stride[1] + t * stride[2]],
                    -INFINITY)
              << "row " << t;
        }
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Backend, CardRange, ::testing::ValuesIn(cuda_backends()),
                         backend_test_name);

}  // namespace
}  // namespace bsfa::gpu_test
