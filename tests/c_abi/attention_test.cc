#include "bsfa/attention.hpp"

#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "bsfa/backends.hpp"
#include "bsfa/bsfa_c.h"
#include "c_abi/zeroed.hpp"

namespace bsfa::test {
namespace {

constexpr std::int64_t kTokens = 300, kHeads = 4, kHeadsKv = 2, kDim = 16;

// The same call for both surfaces. Results are poisoned, so that one that is not written shows.
struct Call {
  std::vector<float> q, k, v, out, lse, table, block_max;
  std::vector<std::int64_t> kept, visible;
  std::vector<std::uint8_t> mask;
  bsfa_attention_params c = zeroed<bsfa_attention_params>();
  AttentionParams cpp;

  Call() {
    std::mt19937 random(11);
    std::normal_distribution<float> normal;
    const auto fill = [&](std::vector<float>& values, std::int64_t count) {
      values.resize(static_cast<std::size_t>(count));
      for (float& value : values) value = normal(random);
    };
    fill(q, kTokens * kHeads * kDim);
    fill(k, kTokens * kHeadsKv * kDim);
    fill(v, kTokens * kHeadsKv * kDim);
    fill(table, kHeads * 3);
    out.assign(q.size(), 999.0f);
    lse.assign(kHeads * kTokens, 999.0f);
    kept.assign(kHeads, -1);
    visible.assign(kHeads, -1);
    mask.assign(kHeads * 3 * 5, 77);
    block_max.assign(kHeads * 3 * 5, 999.0f);

    cpp.q = contiguous<const void*>(q.data(), DType::kFloat32, 1, kTokens, kHeads, kDim);
    cpp.k = contiguous<const void*>(k.data(), DType::kFloat32, 1, kTokens, kHeadsKv, kDim);
    cpp.v = contiguous<const void*>(v.data(), DType::kFloat32, 1, kTokens, kHeadsKv, kDim);
    cpp.out = contiguous<void*>(out.data(), DType::kFloat32, 1, kTokens, kHeads, kDim);
    cpp.lse = {lse.data(), {1, kHeads, kTokens}, {kHeads * kTokens, kTokens, 1}};
    cpp.kept_blocks = {kept.data(), {1, kHeads}, {kHeads, 1}};
    cpp.visible_blocks = {visible.data(), {1, kHeads}, {kHeads, 1}};
    cpp.kept_mask = {mask.data(), {1, kHeads, 3, 5}, {kHeads * 15, 15, 5, 1}};
    cpp.block_max = {block_max.data(), {1, kHeads, 3, 5}, {kHeads * 15, 15, 5, 1}};
    cpp.backend = "reference";

    copy(cpp.q, &c.q);
    copy(cpp.k, &c.k);
    copy(cpp.v, &c.v);
    copy(cpp.out, &c.out);
    copy_statistic(cpp.lse, &c.lse, 3);
    copy_statistic(cpp.kept_blocks, &c.kept_blocks, 2);
    copy_statistic(cpp.visible_blocks, &c.visible_blocks, 2);
    copy_statistic(cpp.kept_mask, &c.kept_mask, 4);
    copy_statistic(cpp.block_max, &c.block_max, 4);
    c.backend = "reference";
  }

  // The scores of these keys are about 5 times `strength` for every row.
  void lower_keys(std::int64_t begin, std::int64_t end, std::int64_t strength) {
    for (std::int64_t row = 0; row < kTokens * kHeads; ++row) {
      q[static_cast<std::size_t>(row * kDim)] = 20;
    }
    for (std::int64_t t = begin; t < end; ++t) {
      for (std::int64_t h = 0; h < kHeadsKv; ++h) {
        k[static_cast<std::size_t>((t * kHeadsKv + h) * kDim)] = static_cast<float>(strength);
      }
    }
  }

  // Everything that a call writes.
  std::string results() const {
    std::string bytes;
    const auto append = [&](const auto& values) {
      bytes.append(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(values[0]));
    };
    append(out);
    append(lse);
    append(kept);
    append(visible);
    append(mask);
    append(block_max);
    return bytes;
  }

  void expect_same() {
    const std::string poisoned = results();
    ASSERT_EQ(bsfa_attention_forward(&c), BSFA_OK) << last_error();
    EXPECT_EQ(last_error(), "");
    const std::string from_c = results();
    EXPECT_NE(from_c, poisoned);
    std::fill(out.begin(), out.end(), 999.0f);
    attention_forward(cpp);
    EXPECT_EQ(from_c, results());
  }

 private:
  template <typename From, typename To>
  static void copy(const From& from, To* to) {
    to->data = from.data;
    to->dtype = static_cast<bsfa_dtype>(from.dtype);
    std::memcpy(to->shape, from.shape, sizeof(to->shape));
    std::memcpy(to->stride, from.stride, sizeof(to->stride));
  }
  template <typename From, typename To>
  static void copy_statistic(const From& from, To* to, std::size_t rank) {
    to->data = from.data;
    std::memcpy(to->shape, from.shape, rank * sizeof(std::int64_t));
    std::memcpy(to->stride, from.stride, rank * sizeof(std::int64_t));
  }
};

TEST(CAbiAttention, ZeroMeansTheDefaults) { Call().expect_same(); }

TEST(CAbiAttention, EveryParameterArrives) {
  {
    Call call;
    call.c.causal = 1;
    call.cpp.causal = true;
    call.c.softmax_scale = 0.7f;
    call.cpp.softmax_scale = 0.7f;
    call.c.softcap = 2;
    call.cpp.softcap = 2;
    call.c.window = 100;
    call.cpp.window = 100;
    call.c.compute_type = BSFA_COMPUTE_BFLOAT16;
    call.cpp.compute_type = ComputeType::kBFloat16;
    const std::vector<float> sinks{0.5f, -1, 2, 3};
    call.c.sinks = call.cpp.sinks = sinks.data();
    call.expect_same();
  }
  {
    Call call;
    call.table[2] = 100;  // head 0, last query block: nothing but the diagonal
    call.c.policy = BSFA_THRESHOLD;
    call.c.thresholds = {call.table.data(), kHeads, 3, 3, 0, 128, 64};
    call.cpp.policy = Policy::threshold({call.table.data(), kHeads, 3, 3, 0, {}});
    call.c.causal = 1;
    call.cpp.causal = true;
    call.expect_same();
    EXPECT_LT(call.kept[0], call.visible[0]);
  }
  {
    Call call;
    call.c.policy = BSFA_SLIDING_WINDOW;
    call.c.window_blocks = 1;
    call.cpp.policy = Policy::sliding_window(1);
    call.c.causal = 1;
    call.cpp.causal = true;
    call.c.q_block = call.c.kv_block = 64;
    call.cpp.block = {64, 64};
    // Finer query blocks: the statistics have other extents.
    call.mask.assign(kHeads * 25, 77);
    call.block_max.assign(kHeads * 25, 999.0f);
    call.cpp.kept_mask = {call.mask.data(), {1, kHeads, 5, 5}, {kHeads * 25, 25, 5, 1}};
    call.cpp.block_max = {call.block_max.data(), {1, kHeads, 5, 5}, {kHeads * 25, 25, 5, 1}};
    call.c.kept_mask = {call.mask.data(), {1, kHeads, 5, 5}, {kHeads * 25, 25, 5, 1}};
    call.c.block_max = {call.block_max.data(), {1, kHeads, 5, 5}, {kHeads * 25, 25, 5, 1}};
    call.expect_same();
    EXPECT_LT(call.kept[0], call.visible[0]);
  }
  // 0: the default. At a level of 1e-30 nothing is left out.
  for (const auto& [c, kept] : {std::pair{0.0f, 13}, std::pair{1e-30f, 15}}) {
    Call call;
    call.lower_keys(64, 192, -10);
    call.c.policy = BSFA_MASS;
    call.c.mass_c = c;
    call.cpp.policy = c == 0 ? Policy::mass() : Policy::mass(c);
    call.expect_same();
    EXPECT_EQ(call.kept[0], kept);
  }
  // From block 0 on each block rises above the one before; from the diagonal backwards none does.
  for (const auto& [order, kept] : {std::pair{0, 15}, std::pair{1, 11}}) {
    Call call;
    for (std::int64_t block = 0; block < 5; ++block) {
      call.lower_keys(64 * block, std::min(64 * block + 64, kTokens), -20 + 3 * block);
    }
    call.c.policy = BSFA_SKIP_SOFTMAX;
    call.c.skip_lambda = 0.01f;
    call.c.skip_order = order;
    call.cpp.policy = Policy::skip_softmax(0.01f, static_cast<SkipOrder>(order));
    call.expect_same();
    EXPECT_EQ(call.kept[0], kept);
  }
  {
    Call call;
    call.c.has_q_offset = 1;
    call.c.q_offset = 0;
    call.cpp.q_offset = 0;
    call.c.kv_offset = 64;
    call.cpp.kv_offset = 64;
    call.c.causal = 1;
    call.cpp.causal = true;
    call.expect_same();
  }
  {
    Call call;
    const std::vector<std::int32_t> offsets{0, 100, 300};
    call.c.cu_seqlens_q = call.c.cu_seqlens_k = offsets.data();
    call.cpp.cu_seqlens_q = call.cpp.cu_seqlens_k = offsets.data();
    call.c.num_sequences = call.cpp.num_sequences = 2;
    call.c.max_seqlen_q = call.cpp.max_seqlen_q = 200;
    call.c.max_seqlen_k = call.cpp.max_seqlen_k = 200;
    call.c.causal = 1;
    call.cpp.causal = true;
    call.c.kept_blocks = call.c.visible_blocks = {};
    call.cpp.kept_blocks = call.cpp.visible_blocks = {};
    call.c.kept_mask = {};
    call.cpp.kept_mask = {};
    call.c.block_max = {};
    call.cpp.block_max = {};
    call.expect_same();
  }
  {
    Call call;
    const std::int32_t used = 250, left = 20, offset = 5;
    call.c.seqused_k = call.cpp.seqused_k = &used;
    call.c.leftpad_k = call.cpp.leftpad_k = &left;
    call.c.q_offsets = call.cpp.q_offsets = &offset;
    // The extents where sequences may stand differently are those of the plan.
    call.c.kept_mask = {};
    call.cpp.kept_mask = {};
    call.c.block_max = {};
    call.cpp.block_max = {};
    call.expect_same();
  }
}

TEST(CAbiAttention, ThePlanIsThatOfTheLibrary) {
  Call call;
  auto plan = zeroed<bsfa_attention_plan>();
  ASSERT_EQ(bsfa_plan_attention(&call.c, &plan), BSFA_OK) << last_error();
  const AttentionPlan expected = plan_attention(call.cpp);
  EXPECT_EQ(plan.backend, expected.backend);
  EXPECT_EQ(plan.kernel, expected.kernel);
  EXPECT_EQ(plan.compute, expected.compute);
  EXPECT_EQ(plan.workspace_bytes, expected.workspace_bytes);
  EXPECT_EQ(plan.q_blocks, 3);
  EXPECT_EQ(plan.kv_blocks, 5);
  call.c.backend = "nope";
  EXPECT_EQ(bsfa_plan_attention(&call.c, &plan), BSFA_INVALID_ARGUMENT);
  EXPECT_NE(last_error().find("'nope'"), std::string::npos);
  EXPECT_EQ(plan.q_blocks, 3);
  EXPECT_STREQ(plan.backend, "");
}

TEST(CAbiAttention, WhatIsNotServedIsRefusedAsInCpp) {
  Call call;
  call.c.page_table = reinterpret_cast<const std::int32_t*>(call.q.data());
  call.c.page_size = 64;
  EXPECT_EQ(bsfa_attention_forward(&call.c), BSFA_INVALID_ARGUMENT);
  EXPECT_EQ(last_error(), "k has pages of 300 tokens; page_size is 64");
  Call device;
  device.c.device = BSFA_CUDA;
  device.c.device_index = 1;
  device.c.backend = nullptr;
  EXPECT_NE(bsfa_attention_forward(&device.c), BSFA_OK);
  Call offset;
  offset.c.q_offset = 3;
  EXPECT_EQ(bsfa_attention_forward(&offset.c), BSFA_INVALID_ARGUMENT);
  EXPECT_NE(last_error().find("has_q_offset"), std::string::npos);
  Call mass;
  mass.c.policy = BSFA_MASS;
  mass.c.mass_c = -2;
  EXPECT_EQ(bsfa_attention_forward(&mass.c), BSFA_INVALID_ARGUMENT);
  EXPECT_EQ(last_error(), "policy.mass_c is -2; accepted: a finite number above 0");
  Call skip;
  skip.c.policy = BSFA_SKIP_SOFTMAX;  // without a lambda
  EXPECT_EQ(bsfa_attention_forward(&skip.c), BSFA_INVALID_ARGUMENT);
  EXPECT_EQ(last_error(), "policy.skip_lambda is 0; accepted: above 0, at most 1");
  Call dtype;
  dtype.c.q.dtype = 17;
  EXPECT_EQ(bsfa_attention_forward(&dtype.c), BSFA_INVALID_ARGUMENT);
  EXPECT_NE(last_error().find("dtype 17"), std::string::npos);
}

TEST(CAbiAttention, ListsAreThoseOfTheCall) {
  // Blocks 0 and 2 of every list, by offsets and by counts.
  const std::int64_t lists = kHeads * 3;
  std::vector<std::int32_t> indices;
  std::vector<std::int64_t> offsets{0};
  for (std::int64_t n = 0; n < lists; ++n) {
    indices.insert(indices.end(), {2, 0});
    offsets.push_back(static_cast<std::int64_t>(indices.size()));
  }
  const std::vector<std::int32_t> counts(static_cast<std::size_t>(lists), 2);
  for (const bool by_counts : {false, true}) {
    Call call;
    bsfa_block_lists& given = call.c.lists;
    given.indices = indices.data();
    given.num_indices = 2 * lists;
    given.num_heads = kHeads;
    given.q_blocks = 3;
    if (by_counts) {
      given.counts = counts.data();
      given.stride = 2;
    } else {
      given.offsets = offsets.data();
    }
    call.cpp.lists = {given.indices, given.num_indices, given.offsets, given.counts,
                      given.stride,  given.num_heads,   given.q_blocks};
    call.expect_same();
    EXPECT_EQ(call.kept[0], 6);
    EXPECT_EQ(call.visible[0], 15);
  }
}

TEST(CAbiAttention, StructSizesAreChecked) {
  EXPECT_EQ(bsfa_attention_forward(nullptr), BSFA_INVALID_ARGUMENT);
  EXPECT_EQ(last_error(), "params is null");
  Call call;
  call.c.struct_size = 0;
  EXPECT_EQ(bsfa_attention_forward(&call.c), BSFA_INVALID_ARGUMENT);
  EXPECT_NE(last_error().find("struct_size is 0"), std::string::npos);
  // The first version ended before the lists; it still runs, and nothing shorter does.
  constexpr std::size_t kFirstVersion = offsetof(bsfa_attention_params, lists);
  call.c.struct_size = kFirstVersion;
  EXPECT_EQ(bsfa_attention_forward(&call.c), BSFA_OK) << last_error();
  call.c.struct_size = kFirstVersion - 8;
  EXPECT_EQ(bsfa_attention_forward(&call.c), BSFA_INVALID_ARGUMENT);

  // A newer struct: accepted as long as the library need not know what is new.
  struct Newer {
    bsfa_attention_params known;
    std::int64_t added[2];
  } newer{Call().c, {0, 0}};
  Call served;
  newer.known = served.c;
  newer.known.struct_size = sizeof(newer);
  EXPECT_EQ(bsfa_attention_forward(&newer.known), BSFA_OK) << last_error();
  newer.added[1] = 1;
  EXPECT_EQ(bsfa_attention_forward(&newer.known), BSFA_UNSUPPORTED);
  EXPECT_NE(last_error().find("does not know"), std::string::npos);

  auto plan = zeroed<bsfa_attention_plan>();
  plan.struct_size = 8;
  EXPECT_EQ(bsfa_plan_attention(&served.c, &plan), BSFA_INVALID_ARGUMENT);
  EXPECT_EQ(plan.workspace_bytes, 0u);
  EXPECT_EQ(bsfa_plan_attention(&served.c, nullptr), BSFA_INVALID_ARGUMENT);
}

struct Threads {
  int calls = 0;
  std::int64_t tasks = 0;
};

void run_tasks(void* user, int64_t num_tasks, bsfa_task task, void* context) {
  auto* threads = static_cast<Threads*>(user);
  ++threads->calls;
  threads->tasks += num_tasks;
  // Two real threads, the tasks dealt out in turn.
  std::thread other([&] {
    for (int64_t t = 1; t < num_tasks; t += 2) task(context, t, 1);
  });
  for (int64_t t = 0; t < num_tasks; t += 2) task(context, t, 0);
  other.join();
}

TEST(CAbiAttention, TheHostsThreadsAreUsed) {
  std::vector<float> maxima(kHeads * 3 * 5, 1.0f), thresholds(kHeads * 3);
  const std::int64_t budget = 1;
  auto select = zeroed<bsfa_select_thresholds_params>();
  select.block_max = {maxima.data(), {kHeads, 3, 5, 0}, {15, 5, 1, 0}};
  select.budgets = &budget;
  select.num_budgets = 1;
  select.thresholds = {thresholds.data(), {1, kHeads, 3, 0}, {kHeads * 3, 3, 1, 0}};
  Threads threads;
  auto executor = zeroed<bsfa_executor>();
  executor.user = &threads;
  executor.max_workers = 2;
  executor.parallel_for = run_tasks;
  select.executor = &executor;
  ASSERT_EQ(bsfa_select_thresholds(&select), BSFA_OK) << last_error();
  EXPECT_EQ(threads.calls, 1);
  EXPECT_EQ(threads.tasks, kHeads * 3);
  EXPECT_EQ(thresholds[2], 1.0f);

  bsfa_thread_pool* pool = nullptr;
  ASSERT_EQ(bsfa_thread_pool_create(2, &pool), BSFA_OK) << last_error();
  select.thread_pool = pool;
  EXPECT_EQ(bsfa_select_thresholds(&select), BSFA_INVALID_ARGUMENT);
  EXPECT_NE(last_error().find("thread_pool and executor"), std::string::npos);
  select.executor = nullptr;
  EXPECT_EQ(bsfa_select_thresholds(&select), BSFA_OK) << last_error();
  bsfa_thread_pool_free(pool);
  bsfa_thread_pool_free(nullptr);

  select.thread_pool = nullptr;
  select.executor = &executor;
  executor.max_workers = 0;
  EXPECT_EQ(bsfa_select_thresholds(&select), BSFA_INVALID_ARGUMENT);
  executor.max_workers = 1;
  executor.parallel_for = nullptr;
  EXPECT_EQ(bsfa_select_thresholds(&select), BSFA_INVALID_ARGUMENT);
  EXPECT_EQ(bsfa_thread_pool_create(0, &pool), BSFA_INVALID_ARGUMENT);
  EXPECT_NE(last_error().find("num_threads is 0"), std::string::npos);
  EXPECT_EQ(bsfa_thread_pool_create(1, nullptr), BSFA_INVALID_ARGUMENT);
}

TEST(CAbiAttention, APreparedCallRunsOnTheseAndOnOtherPointers) {
  Call first, second;
  bsfa_prepared_attention* prepared = nullptr;
  ASSERT_EQ(bsfa_prepared_attention_create(&first.c, &prepared), BSFA_OK) << last_error();
  auto plan = zeroed<bsfa_attention_plan>();
  ASSERT_EQ(bsfa_prepared_attention_get_plan(prepared, &plan), BSFA_OK) << last_error();
  EXPECT_STREQ(plan.backend, "reference");
  EXPECT_EQ(plan.q_blocks, 3);
  for (Call* call : {&first, &second}) {
    attention_forward(call->cpp);
    const std::string whole = call->results();
    for (float& value : call->out) value = 999.0f;
    std::int32_t serves = -1;
    ASSERT_EQ(bsfa_prepared_attention_serves(prepared, &call->c, &serves), BSFA_OK);
    EXPECT_EQ(serves, 1);
    const bsfa_attention_params* params = call == &first ? nullptr : &call->c;
    ASSERT_EQ(bsfa_prepared_attention_run(prepared, params), BSFA_OK) << last_error();
    EXPECT_EQ(call->results(), whole);
  }

  const std::string before = second.results();
  second.c.causal = 1;
  std::int32_t serves = -1;
  ASSERT_EQ(bsfa_prepared_attention_serves(prepared, &second.c, &serves), BSFA_OK);
  EXPECT_EQ(serves, 0);
  EXPECT_EQ(bsfa_prepared_attention_run(prepared, &second.c), BSFA_INVALID_ARGUMENT);
  EXPECT_EQ(last_error(), "causal is true; the call was planned with false");
  EXPECT_EQ(second.results(), before);
  bsfa_prepared_attention_free(prepared);
  bsfa_prepared_attention_free(nullptr);

  EXPECT_EQ(bsfa_prepared_attention_run(nullptr, &second.c), BSFA_INVALID_ARGUMENT);
  EXPECT_EQ(last_error(), "prepared is null");
  EXPECT_EQ(bsfa_prepared_attention_create(&second.c, nullptr), BSFA_INVALID_ARGUMENT);
  second.c.q.shape[2] = 3;
  EXPECT_EQ(bsfa_prepared_attention_create(&second.c, &prepared), BSFA_INVALID_ARGUMENT);
  EXPECT_NE(last_error().find("q has 3 heads"), std::string::npos) << last_error();
}

TEST(CAbi, TheLastErrorBelongsToTheThread) {
  EXPECT_EQ(bsfa_attention_forward(nullptr), BSFA_INVALID_ARGUMENT);
  std::string elsewhere = "not asked";
  std::thread([&] {
    elsewhere = last_error();
    bsfa_thresholds* thresholds = nullptr;
    EXPECT_EQ(bsfa_thresholds_load("/nonexistent/file", &thresholds), BSFA_IO);
    EXPECT_NE(last_error().find("/nonexistent/file"), std::string::npos);
  }).join();
  EXPECT_EQ(elsewhere, "");
  EXPECT_EQ(last_error(), "params is null");
  double density = 0;
  EXPECT_EQ(bsfa_predicted_density(4, 1000, 0, 0, &density), BSFA_OK);
  EXPECT_EQ(last_error(), "");
}

TEST(CAbi, BackendsAreThoseOfTheLibrary) {
  EXPECT_STREQ(bsfa_version(), version());
  const std::vector<BackendInfo> expected = backends();
  ASSERT_EQ(bsfa_num_backends(), static_cast<std::int32_t>(expected.size()));
  for (std::int32_t n = 0; n < bsfa_num_backends(); ++n) {
    auto info = zeroed<bsfa_backend_info>();
    ASSERT_EQ(bsfa_get_backend(n, &info), BSFA_OK) << last_error();
    const BackendInfo& backend = expected[static_cast<std::size_t>(n)];
    EXPECT_EQ(info.name, backend.name);
    EXPECT_EQ(info.description, backend.description.substr(0, sizeof(info.description) - 1));
    EXPECT_EQ(info.available, backend.available ? 1 : 0);
    EXPECT_EQ(info.device, static_cast<int>(backend.device));
    EXPECT_EQ(info.struct_size, sizeof(info));
  }
  auto info = zeroed<bsfa_backend_info>();
  EXPECT_EQ(bsfa_get_backend(-1, &info), BSFA_INVALID_ARGUMENT);
  EXPECT_EQ(bsfa_get_backend(bsfa_num_backends(), &info), BSFA_INVALID_ARGUMENT);
  EXPECT_EQ(bsfa_get_backend(0, nullptr), BSFA_INVALID_ARGUMENT);
}

// A size that was never set is not believed, and nothing beyond the struct is looked at.
TEST(CAbiAttention, ASizeBeyondAnyVersionIsRefused) {
  Call call;
  auto plan = zeroed<bsfa_attention_plan>();
  for (const std::size_t size : {std::size_t{4097}, std::size_t{1} << 40, SIZE_MAX}) {
    call.c.struct_size = size;
    EXPECT_EQ(bsfa_plan_attention(&call.c, &plan), BSFA_INVALID_ARGUMENT);
    EXPECT_EQ(last_error(), "params->struct_size is " + std::to_string(size) +
                                "; expected sizeof of the struct, " +
                                std::to_string(sizeof(bsfa_attention_params)) + " in this version");
  }
  Call right;
  plan.struct_size = SIZE_MAX;
  EXPECT_EQ(bsfa_plan_attention(&right.c, &plan), BSFA_INVALID_ARGUMENT);
  EXPECT_EQ(last_error().rfind("plan->struct_size is 18446744073709551615", 0), 0u) << last_error();
  auto info = zeroed<bsfa_backend_info>();
  info.struct_size = SIZE_MAX;
  EXPECT_EQ(bsfa_get_backend(0, &info), BSFA_INVALID_ARGUMENT);
}

TEST(CAbiAttention, ThreadsThatNoMachineHasAreRefused) {
  bsfa_thread_pool* pool = nullptr;
  for (const std::int32_t threads : {0, -1, 4097, 1000000}) {
    EXPECT_EQ(bsfa_thread_pool_create(threads, &pool), BSFA_INVALID_ARGUMENT);
    EXPECT_EQ(last_error(), "num_threads is " + std::to_string(threads) + "; accepted: 1 to 4096");
    EXPECT_EQ(pool, nullptr);
  }
  Call call;
  auto threads = zeroed<bsfa_executor>();
  threads.parallel_for = [](void*, std::int64_t, bsfa_task, void*) {};
  for (const std::int32_t workers : {0, -1, 4097}) {
    threads.max_workers = workers;
    call.c.executor = &threads;
    EXPECT_EQ(bsfa_attention_forward(&call.c), BSFA_INVALID_ARGUMENT);
    EXPECT_EQ(last_error(),
              "executor->max_workers is " + std::to_string(workers) + "; accepted: 1 to 4096");
  }
}

}  // namespace
}  // namespace bsfa::test
