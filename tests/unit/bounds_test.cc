#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "bsfa/attention.hpp"
#include "bsfa/limits.hpp"

// Numbers that no tensor can have, memory that two tensors have, and page tables: refused by name,
// before anything is written.

namespace bsfa {
namespace {

constexpr std::int64_t kBatch = 2, kSeqlen = 200, kHeadsQ = 4, kHeadsKv = 2, kDim = 8;
constexpr std::int64_t kRows = 2, kColumns = 4;  // query and key/value blocks
constexpr std::int64_t kHuge = std::int64_t{1} << 38;
constexpr std::int64_t kMost = std::numeric_limits<std::int64_t>::max();
constexpr std::int64_t kLeast = std::numeric_limits<std::int64_t>::min();

template <typename T>
T* shifted(T* pointer, std::ptrdiff_t bytes) {
  using Byte = std::conditional_t<std::is_const_v<T>, const char, char>;
  return reinterpret_cast<T*>(reinterpret_cast<Byte*>(pointer) + bytes);
}

struct Workers final : Executor {
  int count = 1;
  int max_workers() const override { return count; }
  void parallel_for(std::int64_t tasks, Body body, void* context) override {
    for (std::int64_t task = 0; task < tasks; ++task) body(context, task, 0);
  }
};

// A call that asks for everything, with all results poisoned.
struct Call {
  std::vector<float> q = std::vector<float>(kBatch * kSeqlen * kHeadsQ * kDim, 0.5f);
  std::vector<float> kv = std::vector<float>(kBatch * kSeqlen * kHeadsKv * kDim, 0.25f);
  std::vector<float> out = std::vector<float>(q.size(), -7.0f);
  std::vector<float> table = std::vector<float>(kBatch * kHeadsQ * kRows + 1, 0.0f);
  std::vector<float> sinks = std::vector<float>(kHeadsQ + 1, 0.0f);
  std::vector<float> lse = std::vector<float>(kBatch * kHeadsQ * kSeqlen + 1, -7.0f);
  std::vector<std::int64_t> kept = std::vector<std::int64_t>(kBatch * kHeadsQ + 1, -7);
  std::vector<std::int64_t> visible = kept;
  std::vector<std::uint8_t> mask =
      std::vector<std::uint8_t>(kBatch * kHeadsQ * kRows * kColumns, 77);
  std::vector<float> maxima = std::vector<float>(mask.size() + 1, -7.0f);
  std::vector<std::int32_t> lengths{200, 150, 0, 0};
  std::vector<std::int32_t> cu_seqlens{0, 150, 200, 0};
  std::vector<std::int32_t> pages;
  std::vector<char> workspace = std::vector<char>(1 << 22);
  Workers workers;
  AttentionParams params;

  Call() {
    params.q = contiguous<const void*>(q.data(), DType::kFloat32, kBatch, kSeqlen, kHeadsQ, kDim);
    params.k = contiguous<const void*>(kv.data(), DType::kFloat32, kBatch, kSeqlen, kHeadsKv, kDim);
    params.v = params.k;
    params.out = contiguous<void*>(out.data(), DType::kFloat32, kBatch, kSeqlen, kHeadsQ, kDim);
    params.causal = true;
    params.policy = Policy::threshold({table.data(), kHeadsQ, kRows, kRows, kHeadsQ * kRows, {}});
    params.lse = {lse.data(), {kBatch, kHeadsQ, kSeqlen}, {}};
    set_contiguous(params.lse.shape, params.lse.stride);
    params.kept_blocks = {kept.data(), {kBatch, kHeadsQ}, {kHeadsQ, 1}};
    params.visible_blocks = {visible.data(), {kBatch, kHeadsQ}, {kHeadsQ, 1}};
    params.kept_mask = {mask.data(), {kBatch, kHeadsQ, kRows, kColumns}, {}};
    set_contiguous(params.kept_mask.shape, params.kept_mask.stride);
    params.block_max = {maxima.data(), {kBatch, kHeadsQ, kRows, kColumns}, {}};
    set_contiguous(params.block_max.shape, params.block_max.stride);
    params.executor = &workers;
    auto* aligned = workspace.data();
    while (reinterpret_cast<std::uintptr_t>(aligned) % 256 != 0) ++aligned;
    params.workspace = aligned;
    params.workspace_bytes = workspace.size() - 256;
  }

  // All sequences in one row of tokens.
  void pack() {
    for (std::int64_t* shape : {params.q.shape, params.k.shape, params.v.shape, params.out.shape}) {
      shape[0] = 1;
    }
    params.cu_seqlens_q = params.cu_seqlens_k = cu_seqlens.data();
    params.num_sequences = 2;
    params.max_seqlen_q = params.max_seqlen_k = 150;
    params.lse = {};
    params.kept_mask = {};
    params.block_max = {};
  }

  // k and v as 25 pages of 16 tokens, of which a sequence has up to 13.
  void page() {
    params.k.shape[0] = params.v.shape[0] = 25;
    params.k.shape[1] = params.v.shape[1] = params.page_size = 16;
    set_contiguous(params.k.shape, params.k.stride);
    set_contiguous(params.v.shape, params.v.stride);
    pages.resize(2 * 13);
    for (std::size_t n = 0; n < pages.size(); ++n) pages[n] = static_cast<std::int32_t>(n % 25);
    params.page_table = pages.data();
    params.page_table_stride = 13;
    params.seqused_k = lengths.data();
    params.max_seqlen_k = 200;
  }

  bool untouched() const {
    const auto all = [](const auto& values, auto poison) {
      return std::count(values.begin(), values.end(), poison) == std::ssize(values);
    };
    return all(out, -7.0f) && all(lse, -7.0f) && all(kept, -7) && all(visible, -7) &&
           all(mask, std::uint8_t{77}) && all(maxima, -7.0f);
  }
};

struct Refusal {
  const char* name;
  std::function<void(Call&)> spoil;
  const char* message;  // how it begins
};

void PrintTo(const Refusal& refusal, std::ostream* stream) { *stream << refusal.name; }

class Bounds : public testing::TestWithParam<std::tuple<const char*, Refusal>> {};

TEST_P(Bounds, IsRefusedByNameBeforeAnythingIsWritten) {
  const auto& [backend, refusal] = GetParam();
  Call call;
  call.params.backend = backend;
  refusal.spoil(call);
  try {
    attention_forward(call.params);
    ADD_FAILURE() << "accepted";
  } catch (const Error& error) {
    EXPECT_EQ(std::string(error.what()).substr(0, std::strlen(refusal.message)), refusal.message);
    EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument);
  }
  EXPECT_TRUE(call.untouched());
}

std::string test_name(const testing::TestParamInfo<Bounds::ParamType>& test) {
  return std::string(std::get<0>(test.param)) + "_" + std::get<1>(test.param).name;
}

const auto kBackends = testing::Values("cpu", "reference");

INSTANTIATE_TEST_SUITE_P(
    Numbers, Bounds,
    testing::Combine(
        kBackends,
        testing::Values(
            Refusal{"q_offset", [](Call& c) { c.params.q_offset = kHuge; },
                    "q_offset is 274877906944; accepted: -536870912 to 536870912"},
            Refusal{"q_offset_most", [](Call& c) { c.params.q_offset = kMost; },
                    "q_offset is 9223372036854775807; accepted"},
            Refusal{"q_offset_least", [](Call& c) { c.params.q_offset = kLeast; },
                    "q_offset is -9223372036854775808; accepted"},
            Refusal{"q_offset_next", [](Call& c) { c.params.q_offset = kMaxTokens + 1; },
                    "q_offset is 536870913; accepted"},
            Refusal{"q_offsets",
                    [](Call& c) {
                      c.lengths[1] = std::numeric_limits<std::int32_t>::max();
                      c.params.q_offsets = c.lengths.data();
                    },
                    "q_offsets[1] is 2147483647; accepted: -536870912 to 536870912"},
            Refusal{"q_offsets_least",
                    [](Call& c) {
                      c.lengths[0] = std::numeric_limits<std::int32_t>::min();
                      c.params.q_offsets = c.lengths.data();
                    },
                    "q_offsets[0] is -2147483648; accepted"},
            Refusal{"kv_offset", [](Call& c) { c.params.kv_offset = kHuge; },
                    "kv_offset is 274877906944; accepted: a multiple of 64 from 0 to 536870912"},
            Refusal{"kv_offset_least", [](Call& c) { c.params.kv_offset = kLeast; },
                    "kv_offset is -9223372036854775808; accepted"},
            Refusal{"window", [](Call& c) { c.params.window = kMost; },
                    "window is 9223372036854775807 tokens; accepted: 1 to 536870912"},
            Refusal{"window_blocks",
                    [](Call& c) { c.params.policy = Policy::sliding_window(kHuge); },
                    "policy.window_blocks is 274877906944; accepted: 0 to 536870912"},
            Refusal{"table_blocks",
                    [](Call& c) { c.params.policy.thresholds.num_q_blocks = kMost; },
                    "policy.thresholds has 9223372036854775807 query blocks; accepted"},
            Refusal{"table_stride", [](Call& c) { c.params.policy.thresholds.stride_head = kMost; },
                    "policy.thresholds has shape [2, 4, 2] and strides [8, 9223372036854775807, 1]"},
            Refusal{"table_stride_negative",
                    [](Call& c) { c.params.policy.thresholds.stride_batch = -8; },
                    "policy.thresholds has strides [-8, 2, 1]; negative strides are not accepted"},
            Refusal{"batch_at_stride_0",
                    [](Call& c) {
                      for (auto* view : {&c.params.q, &c.params.k, &c.params.v}) {
                        view->shape[0] = kHuge;
                        view->stride[0] = 0;
                      }
                    },
                    "q has shape [274877906944, 200, 4, 8]; accepted: up to 140737488355328 elem"},
            Refusal{"batch_without_tokens",
                    [](Call& c) {
                      const auto spoil = [](auto& view) {
                        view.shape[0] = kHuge;
                        view.shape[1] = view.stride[0] = 0;
                      };
                      spoil(c.params.q);
                      spoil(c.params.k);
                      spoil(c.params.v);
                      spoil(c.params.out);
                    },
                    "the batch axis of q is 274877906944; accepted: 0 to 16777216"},
            Refusal{"heads",
                    [](Call& c) {
                      c.params.q.shape[2] = c.params.out.shape[2] = 1 << 17;
                      c.params.q.stride[2] = 0;
                      c.params.out.shape[1] = c.params.q.shape[1] = 1;
                      c.params.out.stride[0] = 1 << 20;
                    },
                    "q has heads 131072; accepted: up to 65536"},
            Refusal{"head_dim",
                    [](Call& c) { c.params.q.shape[3] = c.params.k.shape[3] = 1 << 20; },
                    "q has head_dim 1048576; accepted: up to 65536"},
            Refusal{"tokens",
                    [](Call& c) {
                      c.params.k.shape[1] = c.params.v.shape[1] = kMaxTokens + 1;
                      c.params.k.stride[1] = c.params.v.stride[1] = 0;
                    },
                    "seqlen_k is 536870913; accepted: 0 to 536870912"},
            Refusal{"shape_product",
                    [](Call& c) {
                      std::fill_n(c.params.k.shape, 3, std::int64_t{1} << 31);
                      std::fill_n(c.params.k.stride, 3, 0);
                    },
                    "k has shape [2147483648, 2147483648, 2147483648, 8]; accepted: up to"},
            Refusal{"stride", [](Call& c) { c.params.v.stride[0] = kMost / 2; },
                    "v has shape [2, 200, 2, 8] and strides [4611686018427387903, 16, 8, 1]; "
                    "accepted: views that reach over up to 281474976710656 bytes"},
            Refusal{"stride_of_one_entry",
                    [](Call& c) {
                      c.params.out.shape[2] = 1;
                      c.params.out.stride[2] = kMost;
                    },
                    "out has shape [2, 200, 1, 8] and strides"},
            Refusal{"lse_stride", [](Call& c) { c.params.lse.stride[0] = kMost; },
                    "lse has shape [2, 4, 200] and strides"},
            Refusal{"mask_stride", [](Call& c) { c.params.kept_mask.stride[2] = kHuge * 2048; },
                    "kept_mask has shape [2, 4, 2, 4] and strides"},
            Refusal{"max_seqlen_q",
                    [](Call& c) {
                      c.pack();
                      c.params.max_seqlen_q = kHuge;
                    },
                    "max_seqlen_q is 274877906944; accepted: 0 to 536870912"},
            Refusal{"max_seqlen_k",
                    [](Call& c) {
                      c.pack();
                      c.params.max_seqlen_k = kMost;
                    },
                    "max_seqlen_k is 9223372036854775807; accepted"},
            Refusal{"num_sequences",
                    [](Call& c) {
                      c.pack();
                      c.params.num_sequences = kHuge;
                    },
                    "num_sequences is 274877906944; accepted: 0 to 16777216"},
            Refusal{"num_sequences_negative",
                    [](Call& c) {
                      c.pack();
                      c.params.num_sequences = -1;
                    },
                    "num_sequences is -1; accepted: 0 to 16777216"},
            Refusal{"query_blocks",
                    [](Call& c) {
                      c.pack();
                      c.params.num_sequences = kMaxSequences;
                      c.params.max_seqlen_q = kMaxTokens;
                    },
                    "the call has 16777216 sequences of 4 heads of up to 4194305 query blocks; "
                    "accepted: up to 140737488355328 blocks in all"},
            Refusal{"packed_table_offset",
                    [](Call& c) {
                      c.pack();
                      c.params.q_offset = -1;
                    },
                    "q_offset is -1; a threshold table has no entry for positions before 0"},
            Refusal{"no_workers", [](Call& c) { c.workers.count = 0; },
                    "executor has max_workers() 0; accepted: 1 to 4096"},
            Refusal{"negative_workers", [](Call& c) { c.workers.count = -3; },
                    "executor has max_workers() -3; accepted: 1 to 4096"},
            Refusal{"many_workers", [](Call& c) { c.workers.count = 1 << 30; },
                    "executor has max_workers() 1073741824; accepted: 1 to 4096"})),
    test_name);

INSTANTIATE_TEST_SUITE_P(
    Alignment, Bounds,
    testing::Combine(
        kBackends,
        testing::Values(
            Refusal{"lse", [](Call& c) { c.params.lse.data = shifted(c.params.lse.data, 1); },
                    "lse is not aligned to its element size (4 bytes)"},
            Refusal{"kept_blocks",
                    [](Call& c) { c.params.kept_blocks.data = shifted(c.kept.data(), 4); },
                    "kept_blocks is not aligned to its element size (8 bytes)"},
            Refusal{"visible_blocks",
                    [](Call& c) { c.params.visible_blocks.data = shifted(c.visible.data(), 4); },
                    "visible_blocks is not aligned to its element size (8 bytes)"},
            Refusal{"block_max",
                    [](Call& c) { c.params.block_max.data = shifted(c.maxima.data(), 2); },
                    "block_max is not aligned to its element size (4 bytes)"},
            Refusal{"thresholds",
                    [](Call& c) { c.params.policy.thresholds.data = shifted(c.table.data(), 2); },
                    "policy.thresholds is not aligned to its element size (4 bytes)"},
            Refusal{"sinks", [](Call& c) { c.params.sinks = shifted(c.sinks.data(), 1); },
                    "sinks is not aligned to its element size (4 bytes)"},
            Refusal{"seqused_k", [](Call& c) { c.params.seqused_k = shifted(c.lengths.data(), 2); },
                    "seqused_k is not aligned to its element size (4 bytes)"},
            Refusal{"leftpad_k", [](Call& c) { c.params.leftpad_k = shifted(c.lengths.data(), 2); },
                    "leftpad_k is not aligned to its element size (4 bytes)"},
            Refusal{"q_offsets", [](Call& c) { c.params.q_offsets = shifted(c.lengths.data(), 2); },
                    "q_offsets is not aligned to its element size (4 bytes)"},
            Refusal{"cu_seqlens_q",
                    [](Call& c) {
                      c.pack();
                      c.params.cu_seqlens_q = shifted(c.cu_seqlens.data(), 2);
                    },
                    "cu_seqlens_q is not aligned to its element size (4 bytes)"},
            Refusal{"cu_seqlens_k",
                    [](Call& c) {
                      c.pack();
                      c.params.cu_seqlens_k = shifted(c.cu_seqlens.data(), 2);
                    },
                    "cu_seqlens_k is not aligned to its element size (4 bytes)"},
            Refusal{"workspace",
                    [](Call& c) { c.params.workspace = static_cast<char*>(c.params.workspace) + 8; },
                    "workspace is not aligned to 256 bytes"})),
    test_name);

INSTANTIATE_TEST_SUITE_P(
    Overlap, Bounds,
    testing::Combine(
        kBackends,
        testing::Values(
            Refusal{"out_rows", [](Call& c) { c.params.out.stride[1] = 8; },
                    "out has shape [2, 200, 4, 8] and strides [6400, 8, 8, 1]: its elements "
                    "overlap on axis"},
            Refusal{"out_batch", [](Call& c) { c.params.out.stride[0] = 0; },
                    "out has shape [2, 200, 4, 8] and strides [0, 32, 8, 1]: its elements overlap "
                    "on axis 0"},
            Refusal{"lse_itself", [](Call& c) { c.params.lse.stride[1] = 0; },
                    "lse has shape [2, 4, 200] and strides [800, 0, 1]: its elements overlap"},
            Refusal{"kept_blocks_itself", [](Call& c) { c.params.kept_blocks.stride[0] = 3; },
                    "kept_blocks has shape [2, 4] and strides [3, 1]: its elements overlap"},
            Refusal{"mask_itself", [](Call& c) { c.params.kept_mask.stride[3] = 0; },
                    "kept_mask has shape [2, 4, 2, 4] and strides [32, 8, 4, 0]: its elements"},
            Refusal{"out_q", [](Call& c) { c.params.out.data = c.q.data(); },
                    "out shares memory with q"},
            Refusal{"out_v",
                    [](Call& c) { c.params.v.data = c.out.data() + c.out.size() - c.kv.size(); },
                    "out shares memory with v"},
            Refusal{"lse_out", [](Call& c) { c.params.lse.data = c.out.data() + 100; },
                    "lse shares memory with out"},
            Refusal{"counts", [](Call& c) { c.params.visible_blocks.data = c.kept.data() + 1; },
                    "visible_blocks shares memory with kept_blocks"},
            Refusal{"mask_maxima",
                    [](Call& c) {
                      c.params.kept_mask.data = reinterpret_cast<std::uint8_t*>(c.maxima.data());
                    },
                    "block_max shares memory with kept_mask"},
            Refusal{"lse_thresholds",
                    [](Call& c) { c.params.policy.thresholds.data = c.lse.data() + 9; },
                    "lse shares memory with policy.thresholds"},
            Refusal{"kept_lengths",
                    [](Call& c) {
                      c.params.seqused_k = reinterpret_cast<std::int32_t*>(c.kept.data());
                      std::fill(c.kept.begin(), c.kept.end(), -7);
                    },
                    "leftpad_k and seqused_k give sequence 0 the keys [0, -7)"})),
    test_name);

INSTANTIATE_TEST_SUITE_P(
    Pages, Bounds,
    testing::Combine(
        kBackends,
        testing::Values(
            Refusal{"size_without_table", [](Call& c) { c.params.page_size = 16; },
                    "page_size is 16 and page_table_stride 0 without a page_table"},
            Refusal{"size_0",
                    [](Call& c) {
                      c.page();
                      c.params.page_size = 0;
                    },
                    "page_size is 0 tokens; accepted: multiples of 16 from 16"},
            Refusal{"size_24",
                    [](Call& c) {
                      c.page();
                      c.params.page_size = 24;
                    },
                    "page_size is 24 tokens; accepted: multiples of 16 from 16"},
            Refusal{"size_of_k",
                    [](Call& c) {
                      c.page();
                      c.params.page_size = 32;
                    },
                    "k has pages of 16 tokens; page_size is 32"},
            Refusal{"no_lengths",
                    [](Call& c) {
                      c.page();
                      c.params.seqused_k = nullptr;
                    },
                    "seqused_k is missing; with a page_table it counts the keys"},
            Refusal{"no_bound",
                    [](Call& c) {
                      c.page();
                      c.params.max_seqlen_k = 0;
                    },
                    "max_seqlen_k (of a paged call: the most keys of a sequence) is 0; accepted"},
            Refusal{"leftpad",
                    [](Call& c) {
                      c.page();
                      c.params.leftpad_k = c.lengths.data();
                    },
                    "leftpad_k was given with a page_table"},
            Refusal{"cu_seqlens_k",
                    [](Call& c) {
                      c.page();
                      c.params.q.shape[0] = c.params.out.shape[0] = 1;
                      c.params.cu_seqlens_q = c.params.cu_seqlens_k = c.cu_seqlens.data();
                    },
                    "cu_seqlens_k was given with a page_table"},
            Refusal{"short_rows",
                    [](Call& c) {
                      c.page();
                      c.params.page_table_stride = 12;
                    },
                    "page_table_stride is 12; max_seqlen_k 200 in pages of 16 needs rows of 13 or"},
            Refusal{"longer_than_the_bound",
                    [](Call& c) {
                      c.page();
                      c.lengths[1] = 201;
                    },
                    "leftpad_k and seqused_k give sequence 1 the keys [0, 201); k has 200"},
            Refusal{"page_beyond",
                    [](Call& c) {
                      c.page();
                      c.pages[13 + 9] = 25;
                    },
                    "page_table[1, 9] is 25; k has 25 pages"},
            Refusal{"page_before",
                    [](Call& c) {
                      c.page();
                      c.pages[12] = -1;
                    },
                    "page_table[0, 12] is -1; k has 25 pages"},
            Refusal{"aligned",
                    [](Call& c) {
                      c.page();
                      c.params.page_table = shifted(c.pages.data(), 2);
                    },
                    "page_table is not aligned to its element size (4 bytes)"})),
    test_name);

// What the limits allow runs, with the results that it has elsewhere.
TEST(Bounds, PositionsAtTheLimitRun) {
  for (const char* backend : {"cpu", "reference"}) {
    for (const std::int64_t offset : {kMaxTokens, kMaxTokens - 128, std::int64_t{0}}) {
      Call call;
      call.params.backend = backend;
      call.params.policy = {};
      call.params.kv_offset = offset;
      call.params.q_offset = offset;
      call.params.window = kMaxTokens;
      ASSERT_EQ(plan_attention(call.params).q_blocks, kRows);
      attention_forward(call.params);
      for (const float value : call.out) ASSERT_NEAR(value, 0.25f, 1e-6f);
      for (std::int64_t n = 0; n < kBatch * kHeadsQ; ++n) {
        EXPECT_EQ(call.kept[static_cast<std::size_t>(n)], 2 + 4);
        EXPECT_EQ(call.visible[static_cast<std::size_t>(n)], 2 + 4);
      }
    }
  }
}

// Slices of one buffer lie within each other without sharing an element.
TEST(Bounds, SlicesOfOneBufferAreNoOverlap) {
  Call call;
  constexpr std::int64_t kRow = (2 * kHeadsQ + 2 * kHeadsKv) * kDim;
  std::vector<float> buffer(kBatch * kSeqlen * kRow, 0.25f);
  const auto place = [&](auto& view, std::int64_t at) {
    view.data = buffer.data() + at;
    view.stride[0] = kSeqlen * kRow;
    view.stride[1] = kRow;
  };
  place(call.params.q, 0);
  place(call.params.k, kHeadsQ * kDim);
  place(call.params.v, (kHeadsQ + kHeadsKv) * kDim);
  place(call.params.out, (kHeadsQ + 2 * kHeadsKv) * kDim);
  for (const char* backend : {"cpu", "reference"}) {
    call.params.backend = backend;
    attention_forward(call.params);
    for (const float value : buffer) ASSERT_NEAR(value, 0.25f, 1e-6f);
  }
  // One element further and the last row of k is the first of out.
  call.params.out.data = static_cast<float*>(call.params.out.data) - 1;
  EXPECT_THROW(attention_forward(call.params), Error);
}

// A prepared call looks at the pointers of each run.
TEST(Bounds, ThePointersOfAPreparedCallAreCheckedInEachRun) {
  for (const char* backend : {"cpu", "reference"}) {
    Call call;
    call.params.backend = backend;
    const PreparedAttention prepared(call.params);
    const auto expect_refused = [&](const char* message, auto&& spoil) {
      AttentionParams params = call.params;
      spoil(params);
      try {
        prepared.run(params);
        ADD_FAILURE() << "accepted: " << message;
      } catch (const Error& error) {
        EXPECT_STREQ(error.what(), message);
      }
    };
    expect_refused("kept_blocks is not aligned to its element size (8 bytes)",
                   [](auto& p) { p.kept_blocks.data = shifted(p.kept_blocks.data, 4); });
    expect_refused("policy.thresholds is not aligned to its element size (4 bytes)", [](auto& p) {
      p.policy.thresholds.data = shifted(p.policy.thresholds.data, 2);
    });
    expect_refused("lse shares memory with q; an output needs memory of its own",
                   [&](auto& p) { p.lse.data = call.q.data() + 3; });
    EXPECT_TRUE(call.untouched());
    prepared.run(call.params);
    EXPECT_FALSE(call.untouched());
  }
}

// Paged calls are what the header says they are; a backend that does not serve them says so.
TEST(Bounds, PagedCallsAreValidAndRefusedByEachBackendByName) {
  const auto expect_unserved = [](Call& call) {
    for (const std::string backend : {"cpu", "reference"}) {
      call.params.backend = backend;
      const AttentionPlan plan = plan_attention(call.params);
      EXPECT_EQ(plan.status.code, ErrorCode::kUnsupported) << plan.status.message;
      EXPECT_EQ(plan.status.message,
                "page_table was given; backend " + backend + " takes contiguous k and v");
      // The bound on the keys counts, not the size of a page.
      EXPECT_EQ(plan.kv_blocks, 4);
    }
    EXPECT_TRUE(call.untouched());
  };
  Call padded;
  padded.page();
  padded.params.block_max = {};
  padded.params.kept_mask = {};
  expect_unserved(padded);
  std::fill(padded.pages.begin() + 13 + 10, padded.pages.end(), -1);  // beyond 150 keys
  expect_unserved(padded);
  padded.params.page_table_stride = 0;  // one row for both
  expect_unserved(padded);

  Call packed;  // as vLLM has it: q by cu_seqlens_q, keys by seqused_k and the table, K beside V
  packed.pack();
  packed.page();
  packed.params.cu_seqlens_k = nullptr;
  for (auto* view : {&packed.params.k, &packed.params.v}) {
    view->shape[0] = 12;
    view->shape[3] = kDim;
    const std::int64_t token = 2 * kDim, head = 16 * token, page = kHeadsKv * head;
    const std::int64_t stride[4] = {page, token, head, 1};
    std::copy(stride, stride + 4, view->stride);
  }
  packed.params.v.data = packed.kv.data() + kDim;
  packed.lengths = {180, 100, 0, 0};
  packed.params.seqused_k = packed.lengths.data();
  for (auto& page : packed.pages) page %= 12;
  expect_unserved(packed);
}

}  // namespace
}  // namespace bsfa
