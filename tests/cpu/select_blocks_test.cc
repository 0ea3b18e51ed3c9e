#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <set>
#include <string>

#include "bsfa/executor.hpp"
#include "cpu/isa_environment.hpp"
#include "support/compare.hpp"
#include "support/selection_case.hpp"

// The sampled selector on the CPU backend, on every instruction set of this machine.

namespace bsfa::testing {
namespace {

class SelectBlocksOnCpu : public ::testing::TestWithParam<cpu::Isa> {
 private:
  ScopedIsa isa_{cpu::isa_name(GetParam())};
};

AttentionCase selected_case() {
  AttentionCase c;
  c.seqlen_q = 500;
  c.seqlen_k = 1000;
  c.num_heads_q = 6;
  c.num_heads_kv = 2;
  c.magnitude = 2;
  c.spread = 6;
  return c;
}

SampledSelector selector_of(std::int64_t rows, float coverage, float floor = 1) {
  SampledSelector selector;
  selector.rows = rows;
  selector.coverage = coverage;
  selector.floor = floor;
  return selector;
}

void expect_as_defined(const AttentionCase& c, const SampledSelector& selector,
                       std::int64_t stride = 0) {
  SCOPED_TRACE(describe(c));
  AttentionData data(c);
  for (const char* backend : {"cpu", "reference"}) {
    SelectionCase call(data, selector, stride);
    ASSERT_EQ(run_selection(call, backend), "") << backend;
    EXPECT_EQ(compare_with_definition(call), "") << backend;
  }
}

TEST_P(SelectBlocksOnCpu, MatchesTheDefinition) {
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat16}) {
    for (const std::int64_t rows : {8, 16, 32, 64}) {
      for (const float coverage : {0.5f, 0.95f}) {
        AttentionCase c = selected_case();
        c.q_dtype = c.kv_dtype = dtype;
        expect_as_defined(c, selector_of(rows, coverage));
      }
    }
  }
}

TEST_P(SelectBlocksOnCpu, MasksAndPositions) {
  AttentionCase window = selected_case();
  window.window = 300;
  AttentionCase full = selected_case();
  full.causal = false;
  AttentionCase shard = selected_case();
  shard.kv_offset = 256;
  shard.q_offset = 1000;
  AttentionCase few = selected_case();
  few.seqlen_q = 5;
  AttentionCase capped = selected_case();
  capped.softcap = 3;
  AttentionCase wide = selected_case();
  wide.block = {64, 128};
  AttentionCase early = selected_case();
  early.q_offset = -200;  // some rows see nothing
  for (const AttentionCase& c : {window, full, shard, few, capped, wide, early}) {
    expect_as_defined(c, selector_of(16, 0.9f, 0.01f));
  }
}

TEST_P(SelectBlocksOnCpu, SeveralSequences) {
  AttentionCase packed = selected_case();
  packed.seqlens_q = {130, 0, 257, 1};
  packed.seqlens_k = {200, 64, 257, 0};
  AttentionCase padded = selected_case();
  padded.batch = 3;
  padded.leftpad_k = {0, 70, 5};
  padded.seqused_k = {1000, 600, 0};
  for (const AttentionCase& c : {packed, padded}) expect_as_defined(c, selector_of(32, 0.9f));
}

TEST_P(SelectBlocksOnCpu, ABudgetIsKept) {
  for (const std::int64_t stride : {5, 7, 12}) {
    expect_as_defined(selected_case(), selector_of(32, 0.99f), stride);
  }
}

TEST_P(SelectBlocksOnCpu, ListsThatLeaveOutTooMuchAreWhole) {
  AttentionData data(selected_case());
  SampledSelector selector = selector_of(32, 0.5f);
  SelectionCase open(data, selector);
  ASSERT_EQ(run_selection(open, "cpu"), "");
  selector.max_left_out = 0.3f;
  SelectionCase bounded(data, selector);
  ASSERT_EQ(run_selection(bounded, "cpu"), "");
  EXPECT_EQ(compare_with_definition(bounded), "");
  int whole = 0;
  for (std::size_t n = 0; n < open.left_out.size(); ++n) {
    if (open.left_out[n] <= 0.3f) {
      EXPECT_EQ(open.counts[n], bounded.counts[n]);
    } else {
      EXPECT_GT(bounded.counts[n], open.counts[n]);
      EXPECT_EQ(bounded.left_out[n], 0);
      ++whole;
    }
  }
  EXPECT_GT(whole, 0);
}

// Own choices first, then what the query block before chose for itself.
TEST_P(SelectBlocksOnCpu, PreviousIsAUnion) {
  AttentionData data(selected_case());
  SampledSelector selector = selector_of(32, 0.7f);
  SelectionCase alone(data, selector);
  ASSERT_EQ(run_selection(alone, "cpu"), "");
  selector.previous = true;
  for (const char* backend : {"cpu", "reference"}) {
    SelectionCase both(data, selector);
    ASSERT_EQ(run_selection(both, backend), "");
    for (std::int64_t head = 0; head < data.c.num_heads_q; ++head) {
      for (std::int64_t row = 0; row < data.q_blocks; ++row) {
        std::set<std::int32_t> expected;
        for (const std::int32_t j : alone.list(0, head, row)) expected.insert(j);
        if (row > 0) {
          for (const std::int32_t j : alone.list(0, head, row - 1)) expected.insert(j);
        }
        const std::vector<std::int32_t> list = both.list(0, head, row);
        EXPECT_EQ(std::set<std::int32_t>(list.begin(), list.end()), expected)
            << backend << " head " << head << " query block " << row;
        EXPECT_EQ(list.size(), expected.size());
      }
    }
  }
}

// The CPU works on runs of query blocks and computes the one before each run once more; all that
// `previous` meets there is what the reference does block by block.
TEST_P(SelectBlocksOnCpu, PreviousAcrossRunsOfQueryBlocks) {
  AttentionCase c = selected_case();
  c.num_heads_q = 2;
  c.num_heads_kv = 1;
  c.seqlen_q = c.seqlen_k = 2700;
  AttentionCase window = c;
  window.window = 700;
  AttentionCase packed = c;
  packed.seqlens_q = {1300, 0, 1400};
  packed.seqlens_k = {1300, 64, 1400};
  SampledSelector selector = selector_of(16, 0.8f, 0.02f);
  selector.previous = true;
  SampledSelector bounded = selector;
  bounded.max_left_out = 0.15f;
  const struct {
    const AttentionCase& c;
    SampledSelector selector;
    std::int64_t stride;
  } calls[] = {{c, selector, 0},      {c, selector, 9},      {c, bounded, 0},
               {window, selector, 0}, {packed, selector, 0}, {packed, selector, 7}};
  for (const auto& [of, with, stride] : calls) {
    SCOPED_TRACE(describe(of) + " stride " + std::to_string(stride));
    AttentionData data(of);
    SelectionCase expected(data, with, stride);
    ASSERT_EQ(run_selection(expected, "reference"), "");
    SelectionCase call(data, with, stride);
    ASSERT_EQ(run_selection(call, "cpu"), "");
    for (std::int64_t n = 0; n < data.num_sequences; ++n) {
      for (std::int64_t head = 0; head < of.num_heads_q; ++head) {
        for (std::int64_t row = 0; row < data.q_blocks; ++row) {
          EXPECT_EQ(call.list(n, head, row), expected.list(n, head, row))
              << "sequence " << n << " head " << head << " query block " << row;
        }
      }
    }
    for (std::size_t n = 0; n < call.left_out.size(); ++n) {
      EXPECT_NEAR(call.left_out[n], expected.left_out[n], 1e-5);
    }
  }
}

// A sequence of a batch gets the lists that it gets alone.
TEST_P(SelectBlocksOnCpu, TheBatchChangesNothing) {
  AttentionCase alone = selected_case();
  AttentionCase c = alone;
  c.batch = 3;
  AttentionData many(c);
  AttentionData one(alone);
  const SampledSelector selector = selector_of(16, 0.9f, 0.01f);
  SelectionCase together(many, selector);
  ASSERT_EQ(run_selection(together, "cpu"), "");
  for (std::int64_t n = 0; n < 3; ++n) {
    SelectBlocksParams of_batch = together.params();
    SelectionCase single(one, selector);
    SelectBlocksParams params = single.params();
    const auto entry = [&](const TensorView& from, TensorView* to) {
      *to = from;
      to->data = static_cast<const char*>(from.data) + n * from.stride[0] * dtype_size(from.dtype);
      to->shape[0] = 1;
    };
    entry(of_batch.call.q, &params.call.q);
    entry(of_batch.call.k, &params.call.k);
    params.call.backend = "cpu";
    const SelectionPlan plan = plan_selection(params);
    ASSERT_TRUE(plan.status.ok()) << plan.status.message;
    std::vector<std::uint8_t> workspace(plan.workspace_bytes + 256);
    const auto address = reinterpret_cast<std::uintptr_t>(workspace.data());
    params.call.workspace = workspace.data() + (256 - address % 256) % 256;
    params.call.workspace_bytes = plan.workspace_bytes;
    select_blocks(params);
    ASSERT_EQ(run_selection(together, "cpu"), "");  // params() poisoned it
    for (std::int64_t head = 0; head < c.num_heads_q; ++head) {
      for (std::int64_t row = 0; row < many.q_blocks; ++row) {
        EXPECT_EQ(together.list(n, head, row), single.list(0, head, row))
            << "sequence " << n << " head " << head << " query block " << row;
      }
    }
  }
}

TEST_P(SelectBlocksOnCpu, ThreadsAndChunksChangeNothing) {
  AttentionCase c = selected_case();
  c.seqlen_q = c.seqlen_k = 900;
  AttentionData data(c);
  const SampledSelector selector = selector_of(16, 0.9f);
  SelectionCase whole(data, selector);
  ASSERT_EQ(run_selection(whole, "cpu"), "");

  ThreadPool pool(3);
  SelectionCase threaded(data, selector);
  SelectBlocksParams params = threaded.params();
  params.call.executor = &pool;
  const SelectionPlan plan = plan_selection(params);
  ASSERT_TRUE(plan.status.ok()) << plan.status.message;
  std::vector<std::uint8_t> workspace(plan.workspace_bytes + 256);
  params.call.workspace =
      workspace.data() + (256 - reinterpret_cast<std::uintptr_t>(workspace.data()) % 256) % 256;
  params.call.workspace_bytes = plan.workspace_bytes;
  select_blocks(params);
  EXPECT_EQ(threaded.counts, whole.counts);
  EXPECT_EQ(threaded.left_out, whole.left_out);
  EXPECT_EQ(threaded.indices, whole.indices);  // what no list reaches is poison in both

  // Rows 384 to 640, keys up to 640.
  AttentionData part(c);
  SelectionCase chunk(part, selector);
  SelectBlocksParams of_chunk = chunk.params();
  of_chunk.call.q.data = static_cast<const char*>(of_chunk.call.q.data) +
                         384 * of_chunk.call.q.stride[1] * dtype_size(c.q_dtype);
  of_chunk.call.q.shape[1] = 256;
  of_chunk.call.k.shape[1] = 640;
  of_chunk.call.q_offset = 384;
  of_chunk.call.out = {};
  of_chunk.call.backend = "cpu";
  of_chunk.stride = 10;
  of_chunk.left_out = {};
  const SelectionPlan small = plan_selection(of_chunk);
  ASSERT_TRUE(small.status.ok()) << small.status.message;
  of_chunk.call.workspace = params.call.workspace;
  of_chunk.call.workspace_bytes = plan.workspace_bytes;
  select_blocks(of_chunk);
  for (std::int64_t head = 0; head < c.num_heads_q; ++head) {
    for (std::int64_t row = 0; row < 2; ++row) {
      const auto at = static_cast<std::size_t>(head * 2 + row);
      const std::vector<std::int32_t> list(
          chunk.indices.begin() + static_cast<std::ptrdiff_t>(at) * 10,
          chunk.indices.begin() + static_cast<std::ptrdiff_t>(at) * 10 + chunk.counts[at]);
      EXPECT_EQ(list, whole.list(0, head, 3 + row)) << "head " << head << " row " << row;
    }
  }
}

// (What they leave out is compared with dense attention in tests/python/test_coverage.py.)
TEST_P(SelectBlocksOnCpu, AttentionTakesTheLists) {
  AttentionCase c = selected_case();
  c.q_dtype = c.kv_dtype = DType::kBFloat16;
  c.listed = 0.5;  // lists of their own, replaced below
  c.lists_by_counts = true;
  AttentionData data(c);
  SelectionCase call(data, selector_of(32, 0.8f));
  ASSERT_EQ(run_selection(call, "cpu"), "");
  data.list_indices = call.indices;
  data.list_counts = call.counts;
  data.lists = {data.list_indices.data(), static_cast<std::int64_t>(call.indices.size()), nullptr,
                data.list_counts.data(), call.stride, c.num_heads_q, data.q_blocks};
  ASSERT_EQ(run_case(data, "cpu"), "");
  EXPECT_EQ(compare_with_oracle(data, false), "");
}

TEST_P(SelectBlocksOnCpu, BadInput) {
  AttentionData data(selected_case());
  const auto refusal = [&](auto&& change) {
    SelectionCase call(data, selector_of(32, 0.9f));
    SelectBlocksParams params = call.params();
    params.call.backend = "cpu";
    change(params);
    const SelectionPlan plan = plan_selection(params);
    if (!plan.status.ok()) return plan.status.message;
    std::vector<std::uint8_t> workspace(plan.workspace_bytes + 256);
    const auto address = reinterpret_cast<std::uintptr_t>(workspace.data());
    params.call.workspace = workspace.data() + (256 - address % 256) % 256;
    params.call.workspace_bytes = plan.workspace_bytes;
    try {
      select_blocks(params);
    } catch (const Error& error) {
      EXPECT_TRUE(std::all_of(call.counts.begin(), call.counts.end(),
                              [](std::int32_t n) { return n == -7; }));
      return std::string(error.what());
    }
    return std::string("nothing was refused");
  };
  EXPECT_EQ(refusal([](auto& p) { p.selector.rows = 12; }),
            "selector.rows is 12; accepted: 8, 16, 32, 64");
  EXPECT_EQ(refusal([](auto& p) { p.selector.coverage = 0; }),
            "selector.coverage is 0; accepted: above 0, up to 1");
  EXPECT_EQ(refusal([](auto& p) { p.selector.coverage = std::numeric_limits<float>::quiet_NaN(); }),
            "selector.coverage is nan; accepted: above 0, up to 1");
  EXPECT_EQ(refusal([](auto& p) { p.selector.floor = 1.5f; }),
            "selector.floor is 1.5; accepted: above 0, up to 1");
  EXPECT_EQ(refusal([](auto& p) { p.selector.max_left_out = -1; }),
            "selector.max_left_out is -1; accepted: 0 to 1");
  EXPECT_EQ(refusal([](auto& p) { p.selector.local_blocks = -1; }),
            "selector.local_blocks is -1; accepted: 0 to 536870912");
  EXPECT_EQ(refusal([](auto& p) { p.stride = 4; }),
            "stride is 4; the blocks that are always kept are 5");
  EXPECT_NE(refusal([](auto& p) {
              p.selector.max_left_out = 0.1f;
              p.stride = 12;
            }).find("lists that may be whole need 16"),
            std::string::npos);
  EXPECT_NE(refusal([](auto& p) { p.left_out.shape[2] = 3; }).find("left_out has shape"),
            std::string::npos);
  EXPECT_EQ(refusal([](auto& p) { p.counts = nullptr; }), "counts is null");
  EXPECT_EQ(refusal([](auto& p) { p.indices = nullptr; }), "indices is null");
  EXPECT_NE(refusal([](auto& p) { p.left_out.data = reinterpret_cast<float*>(p.counts); })
                .find("share"),
            std::string::npos);
  EXPECT_NE(refusal([](auto& p) { p.call.q.shape[2] = 5; }).find("heads"), std::string::npos)
      << refusal([](auto& p) { p.call.q.shape[2] = 5; });
}

INSTANTIATE_TEST_SUITE_P(Isa, SelectBlocksOnCpu, ::testing::ValuesIn(cpu::available_isas()),
                         [](const auto& isa) { return std::string(cpu::isa_name(isa.param)); });

}  // namespace
}  // namespace bsfa::testing
