#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "core/gate.hpp"
#include "cpu/isa_environment.hpp"
#include "support/attention_case.hpp"
#include "support/compare.hpp"
#include "support/sanitized.hpp"

// The policies that look at rows (mass, skip_softmax) on the CPU backend, on every instruction set
// of this machine.

namespace bsfa::testing {
namespace {

class RowPoliciesOnCpu : public ::testing::TestWithParam<cpu::Isa> {
 private:
  ScopedIsa isa_{cpu::isa_name(GetParam())};
};

AttentionCase gated_case() {
  AttentionCase c;
  c.seqlen_q = 300;
  c.seqlen_k = 1000;
  c.num_heads_q = 4;
  c.num_heads_kv = 2;
  c.head_dim = 32;
  c.q_dtype = c.kv_dtype = DType::kBFloat16;
  c.policy = PolicyKind::kMass;
  c.spread = 12;
  return c;
}

std::int64_t sum(const std::vector<std::int64_t>& counts) {
  std::int64_t total = 0;
  for (const std::int64_t count : counts) total += count;
  return total;
}

// Scores of these 64 keys become so low that no policy keeps them for their own sake.
void lower_block(AttentionData* data, std::int64_t block) {
  for (std::int64_t head = 0; head < data->c.num_heads_kv; ++head) {
    for (std::int64_t t = 64 * block; t < 64 * block + 64; ++t) {
      data->set(data->k, data->c.kv_dtype, 0, t, head, 0, -60);
    }
  }
}

void expect_matches_the_oracle(const AttentionCase& c) {
  SCOPED_TRACE(describe(c));
  AttentionData data(c);
  ASSERT_EQ(run_case(data, "cpu"), "");
  EXPECT_EQ(compare_with_oracle(data, false), "");
}

TEST_P(RowPoliciesOnCpu, MatchTheOracle) {
  std::int64_t kept = 0, visible = 0;
  for (const PolicyKind policy : {PolicyKind::kMass, PolicyKind::kSkipSoftmax}) {
    for (const SkipOrder order : {SkipOrder::kAscending, SkipOrder::kOutwards}) {
      if (policy == PolicyKind::kMass && order == SkipOrder::kOutwards) continue;
      for (const BlockShape block :
           {BlockShape{128, 64}, BlockShape{64, 64}, BlockShape{64, 128}, BlockShape{128, 128}}) {
        for (const bool causal : {true, false}) {
          for (const std::int64_t window : {0, 200}) {
            if (window > 0 && !causal) continue;
            AttentionCase c = gated_case();
            c.policy = policy;
            c.skip_order = order;
            c.block = block;
            c.causal = causal;
            if (window > 0) c.window = window;
            c.kv_dtype = c.q_dtype = window > 0 ? DType::kFloat32 : DType::kBFloat16;
            SCOPED_TRACE(describe(c));
            AttentionData data(c);
            ASSERT_EQ(run_case(data, "cpu"), "");
            EXPECT_EQ(compare_with_oracle(data, false), "");
            kept += sum(data.kept_blocks);
            visible += sum(data.visible_blocks);
          }
        }
      }
    }
  }
  EXPECT_GT(kept, visible / 4);
  EXPECT_LT(kept, visible * 3 / 4);
}

TEST_P(RowPoliciesOnCpu, OfSeveralSequencesAndShards) {
  for (const PolicyKind policy : {PolicyKind::kMass, PolicyKind::kSkipSoftmax}) {
    AttentionCase base = gated_case();
    base.policy = policy;
    AttentionCase packed = base;
    packed.seqlens_q = {130, 0, 257, 5};
    packed.seqlens_k = {900, 64, 700, 333};
    AttentionCase padded = base;
    padded.batch = 3;
    padded.leftpad_k = {0, 70, 5};
    padded.seqused_k = {1000, 600, 0};
    AttentionCase shard = base;  // of which the first query block sees no diagonal, and no sink
    shard.kv_offset = 256;
    shard.q_offset = 1200;
    AttentionCase late = base;
    late.kv_offset = 1280;
    late.q_offset = 1200;
    AttentionCase sinks = base;
    sinks.sinks = true;
    AttentionCase capped = base;
    capped.softcap = 7;
    AttentionCase scaled = base;
    scaled.softmax_scale = 0x1p-70f;  // scores are scaled before anything looks at them
    AttentionCase large = base;
    large.magnitude = 300;
    for (const AttentionCase& c : {packed, padded, shard, late, sinks, capped, scaled, large}) {
      expect_matches_the_oracle(c);
    }
  }
}

// The sums of the sink are carried into the totals before the diagonal is reached.
TEST_P(RowPoliciesOnCpu, FarFromTheSink) {
  for (const std::int64_t keys : {2300, 4700}) {
    AttentionCase c = gated_case();
    c.seqlen_q = 200;
    c.seqlen_k = keys;
    c.num_heads_q = c.num_heads_kv = 2;
    c.sinks = true;
    SCOPED_TRACE(describe(c));
    AttentionData data(c);
    // The sink holds most of the reference: without it most of the others would be kept.
    for (std::int64_t head = 0; head < 2; ++head) {
      for (std::int64_t t = 0; t < 64; ++t) data.set(data.k, c.kv_dtype, 0, t, head, 0, 8);
    }
    ASSERT_EQ(run_case(data, "cpu"), "");
    EXPECT_EQ(compare_with_oracle(data, false), "");
    EXPECT_LT(sum(data.kept_blocks), sum(data.visible_blocks) / 2);
  }
}

TEST_P(RowPoliciesOnCpu, MassGatesWhatListsLeave) {
  for (const bool of_kv_heads : {false, true}) {
    for (const bool by_counts : {false, true}) {
      AttentionCase c = gated_case();
      c.listed = 0.6;
      c.lists_of_kv_heads = of_kv_heads;
      c.lists_by_counts = by_counts;
      expect_matches_the_oracle(c);
    }
  }
}

TEST_P(RowPoliciesOnCpu, TheOrderOfAListChangesNoDecision) {
  AttentionCase c = gated_case();
  c.listed = 0.8;
  AttentionData data(c);
  ASSERT_EQ(run_case(data, "cpu"), "");
  const auto mask = data.kept_mask;
  for (const bool descending : {false, true}) {
    for (std::size_t n = 0; n + 1 < data.list_offsets.size(); ++n) {
      const auto begin = data.list_indices.begin() + data.list_offsets[n];
      const auto end = data.list_indices.begin() + data.list_offsets[n + 1];
      std::sort(begin, end);
      if (descending) std::reverse(begin, end);
    }
    data.poison();
    ASSERT_EQ(run_case(data, "cpu"), "");
    EXPECT_EQ(mask, data.kept_mask);
  }
}

TEST_P(RowPoliciesOnCpu, ThreadsDoNotChangeABit) {
  AttentionCase c = gated_case();
  AttentionData data(c);
  ASSERT_EQ(run_case(data, "cpu"), "");
  std::vector<std::uint8_t> out(data.out.bytes());
  std::memcpy(out.data(), data.out.data(), out.size());
  const auto mask = data.kept_mask;
  for (const int threads : {2, 3}) {
    ThreadPool pool(threads);
    ASSERT_EQ(run_case(data, "cpu", &pool), "");
    EXPECT_EQ(std::memcmp(out.data(), data.out.data(), out.size()), 0);
    EXPECT_EQ(mask, data.kept_mask);
  }
}

// Decisions are those of a query block's rows, whatever else is in the call: chunks that start on a
// query block, other heads, other sequences.
TEST_P(RowPoliciesOnCpu, ChunksThatStartOnAQueryBlockDecideAlike) {
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16}) {
    for (const std::int64_t window : {0, 300}) {
      AttentionCase c = gated_case();
      c.seqlen_q = c.seqlen_k = 900;
      c.q_dtype = c.kv_dtype = dtype;
      if (window > 0) c.window = window;
      AttentionData whole(c);
      ASSERT_EQ(run_case(whole, "cpu"), "");
      EXPECT_LT(sum(whole.kept_blocks), sum(whole.visible_blocks));
      for (std::int64_t first = 0; first < 900; first += 256) {
        const std::int64_t rows = std::min<std::int64_t>(256, 900 - first);
        AttentionCase part = c;
        part.seqlen_q = rows;
        part.seqlen_k = first + rows;
        AttentionData data(part);
        for (std::int64_t h = 0; h < c.num_heads_q; ++h) {
          for (std::int64_t d = 0; d < c.head_dim; ++d) {
            for (std::int64_t t = 0; t < rows; ++t) {
              data.set(data.q, dtype, 0, t, h, d, whole.get(whole.q, dtype, 0, first + t, h, d));
            }
            if (h >= c.num_heads_kv) continue;
            for (std::int64_t t = 0; t < first + rows; ++t) {
              data.set(data.k, dtype, 0, t, h, d, whole.get(whole.k, dtype, 0, t, h, d));
              data.set(data.v, dtype, 0, t, h, d, whole.get(whole.v, dtype, 0, t, h, d));
            }
          }
        }
        ASSERT_EQ(run_case(data, "cpu"), "");
        for (std::int64_t h = 0; h < c.num_heads_q; ++h) {
          for (std::int64_t row = 0; row < data.q_blocks; ++row) {
            for (std::int64_t j = 0; j < data.kv_blocks; ++j) {
              const std::int64_t in_whole =
                  (h * whole.q_blocks + first / 128 + row) * whole.kv_blocks + j;
              const std::int64_t in_part = (h * data.q_blocks + row) * data.kv_blocks + j;
              ASSERT_EQ(data.kept_mask[static_cast<std::size_t>(in_part)],
                        whole.kept_mask[static_cast<std::size_t>(in_whole)])
                  << "head " << h << " chunk at " << first << " block (" << row << ", " << j << ")";
            }
          }
          for (std::int64_t t = 0; t < rows; ++t) {
            for (std::int64_t d = 0; d < c.head_dim; ++d) {
              ASSERT_EQ(data.get(data.out, dtype, 0, t, h, d),
                        whole.get(whole.out, dtype, 0, first + t, h, d))
                  << "head " << h << " row " << first + t;
            }
          }
        }
      }
    }
  }
}

// A key that holds a share of one row's attention above 128 times the level keeps its block.
TEST_P(RowPoliciesOnCpu, PlantedNeedlesAreNotLost) {
  constexpr int kNeedles = kSanitized ? 40 : 1000;
  constexpr std::int64_t kTokens = 1024, kDim = 32;
  std::mt19937_64 random(5);
  int planted = 0, beyond_the_reference = 0;
  std::int64_t kept = 0, visible = 0;
  for (int call = 0; planted < kNeedles; ++call) {
    ASSERT_LT(call, kNeedles);
    AttentionCase c;
    c.seqlen_q = c.seqlen_k = kTokens;
    c.num_heads_q = c.num_heads_kv = 4;
    c.head_dim = kDim;
    c.policy = PolicyKind::kMass;
    c.magnitude = 0.3f;
    c.spread = 14;
    c.seed = static_cast<std::uint64_t>(call + 1);
    AttentionData data(c);
    struct Needle {
      std::int64_t head, row, key;
    };
    std::vector<Needle> needles;
    const float scale = 1 / std::sqrt(static_cast<float>(kDim));
    for (std::int64_t head = 0; head < 4; ++head) {
      // One element of the head is the needle's alone: no other row and key has it.
      for (std::int64_t t = 0; t < kTokens; ++t) {
        data.set(data.q, c.q_dtype, 0, t, head, 1, 0);
        data.set(data.k, c.kv_dtype, 0, t, head, 1, 0);
      }
      const auto row = static_cast<std::int64_t>(random() % (kTokens - 384)) + 384;
      const auto key = static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(row));
      needles.push_back({head, row, key});
      const auto score = [&](std::int64_t t) {
        float dot = 0;
        for (std::int64_t d = 0; d < kDim; ++d) {
          dot += data.get(data.q, c.q_dtype, 0, row, head, d) *
                 data.get(data.k, c.kv_dtype, 0, t, head, d);
        }
        return double{dot * scale};
      };
      double others = 0;
      for (std::int64_t t = 0; t <= row; ++t) others += t == key ? 0 : std::exp(score(t));
      // The key gets 0.3 to 0.9 of the row, more than 128 * 0.002.
      const double share = 0.3 + 0.6 * static_cast<double>(random() % 1000) / 1000;
      const double wanted = std::log(share / (1 - share) * others) - score(key);
      if (wanted < 0) {  // it holds more already
        needles.pop_back();
        continue;
      }
      data.set(data.q, c.q_dtype, 0, row, head, 1, static_cast<float>(wanted) / scale);
      data.set(data.k, c.kv_dtype, 0, key, head, 1, 1);
    }
    ASSERT_EQ(run_case(data, "cpu"), "");
    kept += sum(data.kept_blocks);
    visible += sum(data.visible_blocks);
    for (const Needle& needle : needles) {
      const std::int64_t i = needle.row / 128, j = needle.key / 64;
      const auto cell =
          static_cast<std::size_t>((needle.head * data.q_blocks + i) * data.kv_blocks + j);
      EXPECT_EQ(data.kept_mask[cell], 1) << "needle at key " << needle.key << " of row "
                                         << needle.row << ", head " << needle.head;
      beyond_the_reference += in_mass_reference(i, j, c.block) ? 0 : 1;
      ++planted;
    }
  }
  EXPECT_GT(beyond_the_reference, planted / 3);
  EXPECT_LT(kept, visible * 3 / 4) << "what keeps everything loses nothing either";
}

// Rows whose window reaches neither the diagonal's neighbours nor the sink cannot be told from one
// another by a reference that they do not see: whatever they see is kept.
TEST_P(RowPoliciesOnCpu, RowsThatSeeNothingOfTheReferenceKeepTheBlock) {
  AttentionCase c = gated_case();
  c.seqlen_q = 128;
  c.num_heads_q = c.num_heads_kv = 1;
  c.q_offset = 1024;
  c.listed = 1;
  AttentionData data(c);
  // Only blocks 3 and 9 are listed, neither of which is always kept.
  data.list_indices = {3, 9};
  data.list_offsets = {0, 2};
  data.lists.indices = data.list_indices.data();
  data.lists.num_indices = 2;
  ASSERT_EQ(run_case(data, "cpu"), "");
  EXPECT_EQ(data.kept_blocks[0], 2);
  EXPECT_EQ(compare_with_oracle(data, false), "");
}

TEST_P(RowPoliciesOnCpu, ScoresThatAreNoNumbersKeepTheirBlocks) {
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  AttentionCase c = gated_case();
  c.num_heads_q = c.num_heads_kv = 1;
  c.q_dtype = c.kv_dtype = DType::kFloat32;
  for (const PolicyKind policy : {PolicyKind::kMass, PolicyKind::kSkipSoftmax}) {
    for (const float value : {kNan, kInfinity, -kInfinity}) {
      for (const std::int64_t key : {200, 20, 990}) {  // beside, in the sink, in the diagonal
        c.policy = policy;
        SCOPED_TRACE(describe(c));
        AttentionData data(c);
        lower_block(&data, 3);  // of key 200: without it the block would be left out
        data.set(data.k, c.kv_dtype, 0, key, 0, 0, value);  // the sign is that of q: positive
        ASSERT_EQ(run_case(data, "cpu"), "");
        EXPECT_EQ(compare_with_oracle(data, false), "") << value << " at key " << key;
        const auto of_last_block =
            static_cast<std::size_t>((data.q_blocks - 1) * data.kv_blocks + key / 64);
        if (value != -kInfinity) {
          EXPECT_EQ(data.kept_mask[of_last_block], 1) << value << " at key " << key;
        }
      }
    }
  }
}

// A row whose reference is no number keeps what it sees, and has no say about what it does not see.
TEST_P(RowPoliciesOnCpu, ARowWithoutAReferenceSpeaksForWhatItSees) {
  AttentionCase c = gated_case();
  c.q_dtype = c.kv_dtype = DType::kFloat32;
  c.window = 200;
  AttentionData data(c);
  // Query block 6 is rows 768 to 895; the last one alone sees key 895, and nothing before key 696.
  const std::int64_t row = 6 - 700 / 128;
  for (const std::int64_t block : {8, 9, 10}) lower_block(&data, block);
  const auto kept = [&](std::int64_t j) {
    return data.kept_mask[static_cast<std::size_t>(row * data.kv_blocks + j)];
  };
  ASSERT_EQ(run_case(data, "cpu"), "");
  EXPECT_EQ(kept(8) + kept(9), 0);
  data.set(data.k, c.kv_dtype, 0, 895, 0, 0, std::numeric_limits<float>::quiet_NaN());
  ASSERT_EQ(run_case(data, "cpu"), "");
  EXPECT_EQ(kept(8) + kept(9), 0);
  EXPECT_EQ(compare_with_oracle(data, false), "");
}

// What is left out does not reach the output, whatever its values are.
TEST_P(RowPoliciesOnCpu, ValuesOfABlockThatIsLeftOutAreNotRead) {
  for (const PolicyKind policy : {PolicyKind::kMass, PolicyKind::kSkipSoftmax}) {
    AttentionCase c = gated_case();
    c.seqlen_q = 128;
    c.num_heads_q = c.num_heads_kv = 1;
    c.policy = policy;
    AttentionData data(c);
    ASSERT_EQ(run_case(data, "cpu"), "");
    std::vector<float> before;
    for (std::int64_t t = 0; t < 128; ++t) before.push_back(data.get(data.out, c.q_dtype, 0, t, 0, 3));
    int left_out = 0;
    for (std::int64_t j = 0; j < data.kv_blocks; ++j) {
      bool kept = false;
      for (std::int64_t row = 0; row < data.q_blocks; ++row) {
        kept = kept || data.kept_mask[static_cast<std::size_t>(row * data.kv_blocks + j)] != 0;
      }
      if (kept) continue;
      ++left_out;
      for (std::int64_t t = 64 * j; t < std::min<std::int64_t>(64 * j + 64, 1000); ++t) {
        data.set(data.v, c.kv_dtype, 0, t, 0, 3, std::numeric_limits<float>::quiet_NaN());
      }
    }
    EXPECT_GT(left_out, 2);
    ASSERT_EQ(run_case(data, "cpu"), "");
    for (std::int64_t t = 0; t < 128; ++t) {
      EXPECT_EQ(data.get(data.out, c.q_dtype, 0, t, 0, 3), before[static_cast<std::size_t>(t)]);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Isa, RowPoliciesOnCpu, ::testing::ValuesIn(cpu::available_isas()),
                         [](const auto& isa) { return std::string(cpu::isa_name(isa.param)); });

TEST(RowPoliciesRefused, ListsWithSkipSoftmax) {
  AttentionCase c = gated_case();
  c.listed = 0.5;
  AttentionData data(c);
  AttentionParams params = data.params();
  params.backend = "cpu";
  EXPECT_TRUE(plan_attention(params).status.ok());
  params.policy = Policy::skip_softmax(0.1f);
  EXPECT_EQ(plan_attention(params).status.message,
            "lists were given with the skip_softmax policy; accepted with them: dense (0), "
            "threshold (1), mass (3)");
}

}  // namespace
}  // namespace bsfa::testing
