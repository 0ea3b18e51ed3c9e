#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "bsfa/attention.hpp"

// Packed calls whose tensors or bounds are larger than what they hold.

namespace bsfa::testing {
namespace {

constexpr std::int64_t kHeads = 2;
constexpr std::int64_t kDim = 8;

class PackedCall : public ::testing::TestWithParam<std::string> {
 protected:
  // `tokens` rows of which cu_seqlens tells the owners.
  void prepare(std::int64_t tokens, std::vector<std::int32_t> cu_seqlens, DType dtype) {
    tokens_ = tokens;
    cu_seqlens_ = std::move(cu_seqlens);
    const auto size = static_cast<std::size_t>(tokens * kHeads * kDim * dtype_size(dtype));
    input_.assign(size, 0);
    out_.assign(size, 0xff);
    lse_.assign(static_cast<std::size_t>(tokens * kHeads), 12345.0f);
    params_ = {};
    params_.q = contiguous<const void*>(input_.data(), dtype, 1, tokens, kHeads, kDim);
    params_.k = params_.v = params_.q;
    params_.out = contiguous<void*>(out_.data(), dtype, 1, tokens, kHeads, kDim);
    params_.cu_seqlens_q = params_.cu_seqlens_k = cu_seqlens_.data();
    params_.num_sequences = static_cast<std::int64_t>(cu_seqlens_.size()) - 1;
    params_.max_seqlen_q = params_.max_seqlen_k = tokens;
    params_.causal = true;
    params_.backend = GetParam();
    params_.lse = {lse_.data(), {1, kHeads, tokens}, {kHeads * tokens, tokens, 1}};
  }

  void run() {
    const std::size_t bytes = workspace_size(params_);
    std::vector<std::uint8_t> memory(bytes + 256);
    params_.workspace = reinterpret_cast<void*>(
        (reinterpret_cast<std::uintptr_t>(memory.data()) + 255) / 256 * 256);
    params_.workspace_bytes = bytes;
    attention_forward(params_);
  }

  // All inputs are 0, so that every byte of out is, and a row of n visible keys has lse log(n).
  void expect_written() const {
    for (std::size_t i = 0; i < out_.size(); ++i) ASSERT_EQ(out_[i], 0) << "byte " << i;
    for (std::int64_t head = 0; head < kHeads; ++head) {
      std::size_t n = 0;
      for (std::int64_t t = 0; t < tokens_; ++t) {
        while (n + 1 < cu_seqlens_.size() && cu_seqlens_[n + 1] <= t) ++n;
        const float got = lse_[static_cast<std::size_t>(head * tokens_ + t)];
        if (n + 1 == cu_seqlens_.size()) {
          ASSERT_EQ(got, -std::numeric_limits<float>::infinity()) << "row " << t;
        } else {
          ASSERT_NEAR(got, std::log(static_cast<float>(t - cu_seqlens_[n] + 1)), 1e-5) << t;
        }
      }
    }
  }

  std::int64_t tokens_ = 0;
  std::vector<std::int32_t> cu_seqlens_;
  std::vector<std::uint8_t> input_, out_;
  std::vector<float> lse_;
  AttentionParams params_;
};

TEST_P(PackedCall, RowsOfNobodyAreZero) {
  for (const DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
    for (const std::vector<std::int32_t>& cu_seqlens :
         std::vector<std::vector<std::int32_t>>{{0, 300}, {0, 10}, {0, 0, 150, 150}, {0, 0}, {0}}) {
      prepare(600, cu_seqlens, dtype);
      run();
      expect_written();
    }
  }
}

TEST_P(PackedCall, RowsOfNobodyHaveNoSinkEither) {
  const std::vector<float> sinks(kHeads, 1.0f);
  prepare(40, {0, 0}, DType::kFloat32);
  params_.sinks = sinks.data();
  run();
  expect_written();
}

// Whatever ran over the bounds instead of what is there would not come to an end.
TEST_P(PackedCall, BoundsCostNothing) {
  prepare(40, {0, 10, 20, 30}, DType::kFloat32);
  params_.max_seqlen_q = params_.max_seqlen_k = std::int64_t{1} << 29;
  std::vector<std::int64_t> kept(3 * kHeads, -1), visible(3 * kHeads, -1);
  params_.kept_blocks = {kept.data(), {3, kHeads}, {kHeads, 1}};
  params_.visible_blocks = {visible.data(), {3, kHeads}, {kHeads, 1}};
  run();
  expect_written();
  EXPECT_EQ(kept, visible);
  for (const std::int64_t blocks : kept) EXPECT_EQ(blocks, 1);
}

INSTANTIATE_TEST_SUITE_P(Backend, PackedCall, ::testing::Values("cpu", "reference"),
                         [](const auto& test) { return test.param; });

}  // namespace
}  // namespace bsfa::testing
