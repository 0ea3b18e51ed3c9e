#include "bsfa/selection.hpp"

#include <gtest/gtest.h>

#include <random>
#include <vector>

#include "bsfa/bsfa_c.h"
#include "c_abi/zeroed.hpp"

namespace bsfa::test {
namespace {

constexpr std::int64_t kTokens = 700, kHeads = 4, kHeadsKv = 2, kDim = 16;
constexpr std::int64_t kQBlocks = 6, kKvBlocks = 11, kLists = kHeads * kQBlocks;

// The same selection through C and C++.
struct Selection {
  std::vector<float> q, k;
  std::vector<std::int32_t> indices, counts;
  std::vector<float> left_out;
  bsfa_attention_params call = zeroed<bsfa_attention_params>();
  bsfa_select_blocks_params c = zeroed<bsfa_select_blocks_params>();
  SelectBlocksParams cpp;

  Selection()
      : q(kTokens * kHeads * kDim),
        k(kTokens * kHeadsKv * kDim),
        indices(kLists * kKvBlocks),
        counts(kLists),
        left_out(kLists) {
    std::mt19937 random(11);
    std::normal_distribution<float> normal;
    for (float& value : q) value = 4 * normal(random);
    for (float& value : k) value = normal(random);
    cpp.call.q = contiguous<const void*>(q.data(), DType::kFloat32, 1, kTokens, kHeads, kDim);
    cpp.call.k = contiguous<const void*>(k.data(), DType::kFloat32, 1, kTokens, kHeadsKv, kDim);
    cpp.call.causal = true;
    cpp.call.backend = "reference";
    cpp.indices = indices.data();
    cpp.counts = counts.data();
    cpp.stride = kKvBlocks;
    cpp.left_out = {left_out.data(), {1, kHeads, kQBlocks}, {kLists, kQBlocks, 1}};

    for (const auto& [from, to] : {std::pair{&cpp.call.q, &call.q}, {&cpp.call.k, &call.k}}) {
      to->data = from->data;
      to->dtype = static_cast<bsfa_dtype>(from->dtype);
      std::copy(from->shape, from->shape + 4, to->shape);
      std::copy(from->stride, from->stride + 4, to->stride);
    }
    call.causal = 1;
    call.backend = "reference";
    c.call = &call;
    c.indices = indices.data();
    c.counts = counts.data();
    c.stride = kKvBlocks;
    c.left_out.data = left_out.data();
    std::copy(cpp.left_out.shape, cpp.left_out.shape + 3, c.left_out.shape);
    std::copy(cpp.left_out.stride, cpp.left_out.stride + 3, c.left_out.stride);
  }

  void expect_equal() {
    select_blocks(cpp);
    const auto expected_indices = indices;
    const auto expected_counts = counts;
    const auto expected_left_out = left_out;
    std::fill(indices.begin(), indices.end(), 0);
    for (const std::size_t n : {std::size_t{0}, counts.size() - 1}) counts[n] = -7;
    std::fill(left_out.begin(), left_out.end(), -7.0f);
    ASSERT_EQ(bsfa_select_blocks(&c), BSFA_OK) << last_error();
    EXPECT_EQ(counts, expected_counts);
    EXPECT_EQ(left_out, expected_left_out);
    for (std::size_t list = 0; list < counts.size(); ++list) {
      for (std::int32_t n = 0; n < counts[list]; ++n) {
        const std::size_t at = list * kKvBlocks + static_cast<std::size_t>(n);
        EXPECT_EQ(indices[at], expected_indices[at]);
      }
    }
  }
};

TEST(CSelection, DefaultsAreThoseOfCpp) { Selection().expect_equal(); }

TEST(CSelection, EveryFieldArrives) {
  Selection selection;
  selection.cpp.selector = {8, 0.6f, 0.2f, 2, 1, true, 1};
  selection.c.rows = 8;
  selection.c.coverage = 0.6f;
  selection.c.floor = 0.2f;
  selection.c.sink_blocks = 2;
  selection.c.local_blocks = 1;
  selection.c.previous = 1;
  selection.expect_equal();
  // Each changes something, or it could as well not have arrived.
  const auto all = selection.counts;
  const auto changed = [&](auto&& change) {
    bsfa_select_blocks_params other = selection.c;
    change(other);
    EXPECT_EQ(bsfa_select_blocks(&other), BSFA_OK) << last_error();
    return selection.counts != all;
  };
  EXPECT_TRUE(changed([](auto& c) { c.rows = 64; }));
  EXPECT_TRUE(changed([](auto& c) { c.coverage = 0.95f; }));
  EXPECT_TRUE(changed([](auto& c) { c.floor = 0.01f; }));
  EXPECT_TRUE(changed([](auto& c) { c.sink_blocks = -1; }));
  EXPECT_TRUE(changed([](auto& c) { c.local_blocks = -1; }));
  EXPECT_TRUE(changed([](auto& c) { c.previous = 0; }));
  EXPECT_TRUE(changed([](auto& c) { c.max_left_out = 0.01f; }));
}

TEST(CSelection, PlansAndRefusals) {
  Selection selection;
  bsfa_selection_plan plan = zeroed<bsfa_selection_plan>();
  ASSERT_EQ(bsfa_plan_selection(&selection.c, &plan), BSFA_OK) << last_error();
  EXPECT_EQ(plan.q_blocks, kQBlocks);
  EXPECT_EQ(plan.kv_blocks, kKvBlocks);
  EXPECT_STREQ(plan.backend, "reference");

  selection.c.rows = 12;
  EXPECT_EQ(bsfa_plan_selection(&selection.c, &plan), BSFA_INVALID_ARGUMENT);
  EXPECT_EQ(last_error(), "selector.rows is 12; accepted: 8, 16, 32, 64");
  EXPECT_EQ(bsfa_select_blocks(&selection.c), BSFA_INVALID_ARGUMENT);
  selection.c.rows = 0;
  selection.c.sink_blocks = -2;
  EXPECT_EQ(bsfa_select_blocks(&selection.c), BSFA_INVALID_ARGUMENT);
  EXPECT_EQ(last_error(), "selector.sink_blocks is -2; accepted: 0 to 536870912");
  selection.c.sink_blocks = 0;
  selection.c.call = nullptr;
  EXPECT_EQ(bsfa_select_blocks(&selection.c), BSFA_INVALID_ARGUMENT);
  EXPECT_EQ(last_error(), "params->call is null");
  EXPECT_EQ(bsfa_select_blocks(nullptr), BSFA_INVALID_ARGUMENT);
  selection.c.struct_size = 8;
  EXPECT_EQ(bsfa_select_blocks(&selection.c), BSFA_INVALID_ARGUMENT);
}

}  // namespace
}  // namespace bsfa::test
