#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <random>

#include "cpu/isa_environment.hpp"
#include "support/attention_case.hpp"
#include "support/compare.hpp"
#include "support/sanitized.hpp"

namespace bsfa::testing {
namespace {

class CpuProperty : public ::testing::TestWithParam<cpu::Isa> {
  ScopedIsa isa_{cpu::isa_name(GetParam())};
};

AttentionCase random_case(std::uint64_t seed) {
  std::mt19937_64 random(seed);
  const auto pick = [&](std::int64_t from, std::int64_t to) {
    return std::uniform_int_distribution<std::int64_t>(from, to)(random);
  };
  const auto one_in = [&](int n) { return pick(1, n) == 1; };
  AttentionCase c;
  c.seed = seed;
  c.num_heads_kv = pick(1, 3);
  c.num_heads_q = c.num_heads_kv * pick(1, 3);
  c.head_dim = 8 * pick(1, one_in(4) ? 32 : 10);
  if (one_in(4)) c.head_dim_v = 8 * pick(1, 12);
  c.q_dtype = static_cast<DType>(pick(0, 2));
  c.kv_dtype = static_cast<DType>(pick(0, 2));
  c.compute_type = static_cast<ComputeType>(pick(0, 2));
  c.heads_outside = one_in(2);
  c.row_padding = pick(0, 3);
  c.block = {64 * pick(1, 2), 64 * pick(1, 2)};
  c.causal = !one_in(4);
  c.policy = static_cast<PolicyKind>(pick(0, 2));
  c.density = 0.1 * static_cast<double>(pick(0, 10));
  c.window_blocks = pick(0, 4);
  if (c.causal && one_in(4)) c.window = pick(1, 300);
  if (one_in(6)) c.softcap = 5;
  if (one_in(6)) c.sinks = true;
  if (one_in(5)) c.softmax_scale = 0.3f;
  if (one_in(3)) {
    for (std::int64_t n = pick(1, 4); n > 0; --n) {
      c.seqlens_q.push_back(static_cast<std::int32_t>(pick(0, 200)));
      c.seqlens_k.push_back(static_cast<std::int32_t>(c.seqlens_q.back() + pick(0, 150)));
    }
  } else {
    c.batch = pick(1, 2);
    c.seqlen_q = pick(1, 300);
    c.seqlen_k = c.seqlen_q + pick(0, 200);
    if (one_in(3)) c.q_offset = pick(0, 200);
    if (one_in(4)) {
      c.q_offset.reset();
      for (std::int64_t b = 0; b < c.batch; ++b) {
        c.leftpad_k.push_back(static_cast<std::int32_t>(pick(0, c.seqlen_k)));
      }
    }
  }
  if (one_in(5)) c.kv_offset = 128 * pick(1, 2);
  if (one_in(3)) {
    c.policy = one_in(3) ? PolicyKind::kSkipSoftmax : PolicyKind::kMass;
    c.mass_c = 0.01f * static_cast<float>(pick(1, 30));
    c.skip_lambda = 0.1f * static_cast<float>(pick(1, 10));
    c.skip_order = static_cast<SkipOrder>(pick(0, 1));
    c.spread = static_cast<float>(pick(0, 14));
  }
  return c;
}

TEST_P(CpuProperty, RandomCallsMatchTheOracle) {
  ThreadPool pool(2);
  for (std::uint64_t seed = 1; seed <= (kSanitized ? 12 : 50); ++seed) {
    const AttentionCase c = random_case(seed);
    SCOPED_TRACE(describe(c));
    AttentionData data(c);
    ASSERT_EQ(run_case(data, "cpu", seed % 2 == 0 ? &pool : nullptr), "");
    ASSERT_EQ(compare_with_oracle(data, false), "");
  }
}

std::vector<std::uint8_t> bytes_of(const Buffer& buffer) {
  std::vector<std::uint8_t> bytes(buffer.bytes());
  std::memcpy(bytes.data(), buffer.data(), bytes.size());
  return bytes;
}

AttentionCase long_case() {
  AttentionCase c;
  c.seqlen_q = c.seqlen_k = 700;
  c.num_heads_q = 4;
  c.num_heads_kv = 2;
  c.head_dim = 48;
  c.kv_dtype = DType::kFloat16;
  c.policy = PolicyKind::kThreshold;
  c.density = 0.3;
  return c;
}

TEST_P(CpuProperty, ThreadsDoNotChangeABit) {
  AttentionData data(long_case());
  ASSERT_EQ(run_case(data, "cpu"), "");
  const auto out = bytes_of(data.out);
  const auto lse = bytes_of(data.lse);
  const auto mask = data.kept_mask;
  const auto kept = data.kept_blocks;
  for (const int threads : {1, 2, 3, 5}) {
    ThreadPool pool(threads);
    ASSERT_EQ(run_case(data, "cpu", &pool), "");
    EXPECT_EQ(bytes_of(data.out), out) << threads;
    EXPECT_EQ(bytes_of(data.lse), lse) << threads;
    EXPECT_EQ(data.kept_mask, mask) << threads;
    EXPECT_EQ(data.kept_blocks, kept) << threads;
  }
}

// Copies rows [begin, begin + count) of axis 1.
void copy_rows(const Buffer& from, std::int64_t from_batch, std::int64_t begin, std::int64_t count,
               Buffer& to, std::int64_t to_batch, std::int64_t to_begin, std::size_t size) {
  for (std::int64_t t = 0; t < count; ++t) {
    for (std::int64_t h = 0; h < from.shape()[2]; ++h) {
      const auto offset = [&](const Buffer& b, std::int64_t batch, std::int64_t row) {
        return static_cast<std::size_t>(batch * b.strides()[0] + row * b.strides()[1] +
                                        h * b.strides()[2]) *
               size;
      };
      std::memcpy(static_cast<char*>(to.data()) + offset(to, to_batch, to_begin + t),
                  static_cast<const char*>(from.data()) + offset(from, from_batch, begin + t),
                  static_cast<std::size_t>(from.shape()[3]) * size);
    }
  }
}

float out_at(const AttentionData& data, std::int64_t b, std::int64_t t, std::int64_t h,
             std::int64_t d) {
  return data.get(data.out, data.c.q_dtype, b, t, h, d);
}

TEST_P(CpuProperty, ChunksOfAPrefillDoNotChangeABit) {
  AttentionData whole(long_case());
  ASSERT_EQ(run_case(whole, "cpu"), "");
  for (const std::int64_t chunk : {128, 384}) {
    for (std::int64_t begin = 0; begin < 700; begin += chunk) {
      AttentionCase c = long_case();
      c.seqlen_q = std::min<std::int64_t>(chunk, 700 - begin);
      c.seqlen_k = begin + c.seqlen_q;
      c.q_offset = begin;
      AttentionData part(c);
      copy_rows(whole.q, 0, begin, c.seqlen_q, part.q, 0, 0, 4);
      copy_rows(whole.k, 0, 0, c.seqlen_k, part.k, 0, 0, 2);
      copy_rows(whole.v, 0, 0, c.seqlen_k, part.v, 0, 0, 2);
      part.thresholds = whole.thresholds;
      part.table_blocks = whole.table_blocks;
      ASSERT_EQ(run_case(part, "cpu"), "");
      for (std::int64_t h = 0; h < c.num_heads_q; ++h) {
        for (std::int64_t t = 0; t < c.seqlen_q; ++t) {
          for (std::int64_t d = 0; d < c.head_dim; ++d) {
            ASSERT_EQ(out_at(part, 0, t, h, d), out_at(whole, 0, begin + t, h, d))
                << "chunk " << chunk << " row " << begin + t << " head " << h;
          }
        }
        for (std::int64_t i = 0; i < part.q_blocks; ++i) {
          for (std::int64_t j = 0; j < part.kv_blocks; ++j) {
            const auto at = [&](const AttentionData& data, std::int64_t row) {
              return static_cast<std::size_t>((h * data.q_blocks + row) * data.kv_blocks + j);
            };
            ASSERT_EQ(part.kept_mask[at(part, i)], whole.kept_mask[at(whole, begin / 128 + i)]);
            ASSERT_EQ(part.block_max[at(part, i)], whole.block_max[at(whole, begin / 128 + i)]);
          }
        }
      }
    }
  }
}

TEST_P(CpuProperty, TheBatchDoesNotChangeABit) {
  // The sequences of a padded batch, alone and packed behind each other.
  AttentionCase c = long_case();
  c.batch = 3;
  c.seqlen_q = c.seqlen_k = 260;
  c.policy = PolicyKind::kDense;
  AttentionData batch(c);
  ASSERT_EQ(run_case(batch, "cpu"), "");
  AttentionCase p = c;
  p.batch = 1;
  p.seqlens_q = p.seqlens_k = {260, 260, 260};
  AttentionData packed(p);
  for (std::int64_t b = 0; b < 3; ++b) {
    copy_rows(batch.q, b, 0, 260, packed.q, 0, 260 * b, 4);
    copy_rows(batch.k, b, 0, 260, packed.k, 0, 260 * b, 2);
    copy_rows(batch.v, b, 0, 260, packed.v, 0, 260 * b, 2);
  }
  ASSERT_EQ(run_case(packed, "cpu"), "");
  for (std::int64_t b = 0; b < 3; ++b) {
    for (std::int64_t t = 0; t < 260; ++t) {
      for (std::int64_t h = 0; h < c.num_heads_q; ++h) {
        for (std::int64_t d = 0; d < c.head_dim; ++d) {
          ASSERT_EQ(out_at(batch, b, t, h, d), out_at(packed, 0, 260 * b + t, h, d))
              << b << ' ' << t;
        }
      }
    }
  }
  // The extents of a packed batch allow for sequences that stand differently.
  for (std::int64_t bh = 0; bh < 3 * c.num_heads_q; ++bh) {
    for (std::int64_t i = 0; i < batch.q_blocks; ++i) {
      for (std::int64_t j = 0; j < batch.kv_blocks; ++j) {
        const auto at = [&](const AttentionData& data) {
          return data
              .block_max[static_cast<std::size_t>((bh * data.q_blocks + i) * data.kv_blocks + j)];
        };
        EXPECT_EQ(at(batch), at(packed)) << bh << ' ' << i << ' ' << j;
      }
    }
  }
}

TEST_P(CpuProperty, MinusInfinityIsDenseAndInfinityIsTheDiagonal) {
  AttentionCase c = long_case();
  AttentionData data(c);
  std::fill(data.thresholds.begin(), data.thresholds.end(),
            -std::numeric_limits<float>::infinity());
  ASSERT_EQ(run_case(data, "cpu"), "");
  const auto gated = bytes_of(data.out);
  EXPECT_EQ(data.kept_blocks, data.visible_blocks);
  data.c.policy = PolicyKind::kDense;
  ASSERT_EQ(run_case(data, "cpu"), "");
  EXPECT_EQ(bytes_of(data.out), gated);

  data.c.policy = PolicyKind::kThreshold;
  std::fill(data.thresholds.begin(), data.thresholds.end(), std::numeric_limits<float>::infinity());
  ASSERT_EQ(run_case(data, "cpu"), "");
  const auto diagonal = bytes_of(data.out);
  data.c.policy = PolicyKind::kSlidingWindow;
  data.c.window_blocks = 0;
  ASSERT_EQ(run_case(data, "cpu"), "");
  EXPECT_EQ(bytes_of(data.out), diagonal);
}

INSTANTIATE_TEST_SUITE_P(Isa, CpuProperty, ::testing::ValuesIn(isas_to_test()), isa_test_name);

}  // namespace
}  // namespace bsfa::testing
