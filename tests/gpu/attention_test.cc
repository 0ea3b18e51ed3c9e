#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "bsfa/backends.hpp"
#include "harness.hpp"

// Every CUDA backend against the fp64 oracle: one list of cases for all.

namespace bsfa::gpu_test {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// What a family says that it does not take; everything else must run.
bool must_serve(const std::string& backend, const Case& c) {
  if (backend != "cuda-sm90") return true;
  return (c.head_dim == 64 || c.head_dim == 128) && c.layout != Layout::kUnaligned &&
         c.softcap == 0 &&
         !(c.policy == PolicyKind::kThreshold && c.block_max);
}

std::vector<Case> all_cases() {
  std::vector<Case> list;
  // Each case in both dtypes and all head_dims, unless it says otherwise.
  const auto add = [&](const std::string& name, auto change,
                       const std::vector<std::int64_t>& dims = {64, 96, 128, 256}) {
    for (const DType dtype : {DType::kFloat16, DType::kBFloat16}) {
      for (const std::int64_t dim : dims) {
        Case c;
        c.dtype = dtype;
        c.head_dim = dim;
        c.seed = static_cast<unsigned>(list.size() + 1);
        change(c);
        c.name = name + (dtype == DType::kFloat16 ? "_fp16_" : "_bf16_") + std::to_string(dim);
        list.push_back(c);
      }
    }
  };
  const auto gated = [](Case& c, double density) {
    c.policy = PolicyKind::kThreshold;
    c.density = density;
  };
  const auto lengths = [](Case& c, std::int64_t q, std::int64_t k) {
    c.seqlens_q = {q};
    c.seqlens_k = {k};
  };
  add("dense_causal", [&](Case& c) { lengths(c, 512, 512); });
  add("dense_bidirectional", [&](Case& c) {
    lengths(c, 300, 421);
    c.causal = false;
  });
  add("dense_ragged", [&](Case& c) { lengths(c, 131, 333); });
  add("gated_causal", [&](Case& c) {
    lengths(c, 640, 640);
    gated(c, 0.4);
  });
  add("gated_sparse_ragged", [&](Case& c) {
    lengths(c, 389, 1003);
    gated(c, 0.1);
  });
  add("gated_bidirectional", [&](Case& c) {
    lengths(c, 260, 517);
    c.causal = false;
    c.heads_q = 3;
    c.heads_kv = 3;
    gated(c, 0.3);
  });
  add("calibrating", [&](Case& c) {
    lengths(c, 384, 500);
    c.block_max = true;
  });
  add("calibrating_ragged", [&](Case& c) {
    lengths(c, 77, 77);
    c.block_max = true;
    c.q_offset = 0;
  });
  const std::vector<std::int64_t> common = {64, 128};
  add(
      "gated_with_maxima",
      [&](Case& c) {
        lengths(c, 300, 500);
        c.block_max = true;
        gated(c, 0.3);
      },
      common);
  add(
      "one_query",
      [&](Case& c) {
        lengths(c, 1, 700);
        gated(c, 0.5);
      },
      common);
  add(
      "one_key", [&](Case& c) { lengths(c, 70, 1); }, common);
  add(
      "chunk",
      [&](Case& c) {
        lengths(c, 256, 640);
        c.q_offset = 384;
        gated(c, 0.3);
      },
      common);
  add(
      "chunk_off_the_grid",
      [&](Case& c) {
        lengths(c, 200, 500);
        c.q_offset = 237;
        gated(c, 0.3);
      },
      common);
  add(
      "rows_before_position_0", [&](Case& c) { lengths(c, 300, 90); }, common);
  add(
      "shard",
      [&](Case& c) {
        lengths(c, 256, 192);
        c.kv_offset = 128;
        c.q_offset = 100;
      },
      common);
  add(
      "shard_gated",
      [&](Case& c) {
        lengths(c, 256, 384);
        c.kv_offset = 192;
        c.q_offset = 512;
        gated(c, 0.3);
      },
      common);
  add(
      "window",
      [&](Case& c) {
        lengths(c, 500, 600);
        c.window = 130;
      },
      common);
  add(
      "window_gated",
      [&](Case& c) {
        lengths(c, 500, 600);
        c.window = 333;
        gated(c, 0.4);
      },
      common);
  add(
      "sliding_window",
      [&](Case& c) {
        lengths(c, 600, 700);
        c.policy = PolicyKind::kSlidingWindow;
        c.window_blocks = 3;
      },
      common);
  add(
      "group_of_7",
      [&](Case& c) {
        lengths(c, 200, 300);
        c.heads_q = 14;
        c.heads_kv = 2;
        gated(c, 0.4);
      },
      common);
  add(
      "batch",
      [&](Case& c) {
        c.seqlens_q = {200, 200, 200};
        c.seqlens_k = {333, 333, 333};
        gated(c, 0.4);
      },
      common);
  add(
      "packed",
      [&](Case& c) {
        c.batch = Batch::kPacked;
        c.seqlens_q = {130, 0, 1, 257, 64};
        c.seqlens_k = {130, 50, 300, 391, 64};
        gated(c, 0.4);
      },
      common);
  // One long sequence among many short ones: most query blocks of the longest exist nowhere else.
  add(
      "packed_skewed",
      [&](Case& c) {
        c.batch = Batch::kPacked;
        c.seqlens_q = {1, 3, 700, 0, 130, 2, 1, 128, 5, 1};
        c.seqlens_k = {1, 3, 700, 9, 200, 2, 40, 128, 5, 1};
        gated(c, 0.3);
      },
      common);
  add(
      "packed_bidirectional",
      [&](Case& c) {
        c.batch = Batch::kPacked;
        c.seqlens_q = {100, 200};
        c.seqlens_k = {0, 250};
        c.causal = false;
      },
      common);
  add(
      "packed_calibrating",
      [&](Case& c) {
        c.batch = Batch::kPacked;
        c.seqlens_q = {190, 257};
        c.seqlens_k = {190, 391};
        c.q_offsets = {0, 134};
        c.block_max = true;
      },
      common);
  add(
      "padded",
      [&](Case& c) {
        c.batch = Batch::kPadded;
        c.seqlens_q = {150, 150, 150};
        c.seqlens_k = {150, 33, 0};
        c.leftpad = {5, 20, 3};
      },
      common);
  add(
      "padded_gated",
      [&](Case& c) {
        c.batch = Batch::kPadded;
        c.seqlens_q = {150, 150};
        c.seqlens_k = {600, 433};
        c.leftpad = {20, 3};
        c.q_offsets = {450, 283};
        gated(c, 0.3);
      },
      common);
  add(
      "sinks",
      [&](Case& c) {
        lengths(c, 200, 130);
        c.sinks = true;
      },
      common);
  add("softcap", [&](Case& c) {
    lengths(c, 300, 421);
    c.softcap = 1.5f;
  });
  add("softcap_gated", [&](Case& c) {
    lengths(c, 389, 1003);
    c.softcap = 2;
    c.sinks = true;
    gated(c, 0.3);
  });
  add("softcap_calibrating", [&](Case& c) {
    lengths(c, 200, 290);
    c.softcap = 30;
    c.window = 150;
    c.layout = Layout::kUnaligned;
    c.block_max = true;
  });
  add(
      "softcap_nan_in_a_key",
      [&](Case& c) {
        lengths(c, 256, 300);
        c.softcap = 5;
        c.poison_score = std::numeric_limits<float>::quiet_NaN();
        c.block_max = true;
      },
      common);
  add(
      "softcap_infinity_in_a_key",
      [&](Case& c) {
        lengths(c, 256, 300);
        c.softcap = 5;
        c.poison_score = kInfinity;
        c.block_max = true;
      },
      common);
  add(
      "short_table",
      [&](Case& c) {
        lengths(c, 700, 700);
        c.table_blocks = 2;
        gated(c, 0.3);
      },
      common);
  add(
      "extreme_heads",
      [&](Case& c) {
        lengths(c, 500, 500);
        c.heads_q = 3;
        c.heads_kv = 1;
        c.extreme_heads = true;
        gated(c, 0.3);
      },
      common);
  for (const auto& [layout, name] :
       {std::pair{Layout::kHeads, "layout_heads"}, std::pair{Layout::kGaps, "layout_gaps"},
        std::pair{Layout::kUnaligned, "layout_unaligned"}}) {
    add(name, [&, chosen = layout](Case& c) {
      c.seqlens_q = {150, 150};
      c.seqlens_k = {290, 290};
      c.layout = chosen;
      gated(c, 0.4);
    });
  }
  add(
      "layout_unaligned_dense",
      [&](Case& c) {
        lengths(c, 150, 290);
        c.layout = Layout::kUnaligned;
      },
      common);
  add(
      "nan_in_a_key",
      [&](Case& c) {
        lengths(c, 400, 400);
        c.poison_score = std::numeric_limits<float>::quiet_NaN();
        c.extreme_heads = true;
        gated(c, 0.3);
      },
      common);
  add(
      "nan_calibrating",
      [&](Case& c) {
        lengths(c, 256, 300);
        c.poison_score = std::numeric_limits<float>::quiet_NaN();
        c.block_max = true;
      },
      common);
  add(
      "infinity_in_a_key",
      [&](Case& c) {
        lengths(c, 256, 300);
        c.poison_score = kInfinity;
        c.block_max = true;
      },
      common);
  add(
      "negative_nan_in_a_key",
      [&](Case& c) {
        lengths(c, 400, 400);
        c.poison_score = -std::numeric_limits<float>::quiet_NaN();
        c.extreme_heads = true;
        gated(c, 0.3);
      },
      common);
  add(
      "negative_nan_calibrating",
      [&](Case& c) {
        lengths(c, 256, 300);
        c.poison_score = -std::numeric_limits<float>::quiet_NaN();
        c.block_max = true;
      },
      common);
  add(
      "negative_scores",
      [&](Case& c) {
        lengths(c, 640, 640);
        c.negative_scores = true;
        c.heads_q = 4;
        c.heads_kv = 2;
        c.extreme_heads = true;
        gated(c, 0.4);
      },
      common);
  add(
      "negative_scores_calibrating",
      [&](Case& c) {
        lengths(c, 300, 500);
        c.negative_scores = true;
        c.block_max = true;
      },
      common);
  return list;
}

using Parameter = std::tuple<std::string, Case>;

class Attention : public testing::TestWithParam<Parameter> {};
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(Attention);

TEST_P(Attention, AgreesWithTheOracle) {
  const auto& [backend, spec] = GetParam();
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) GTEST_SKIP() << "no card";
  Call call(spec);
  call.device_params().backend = backend;
  const AttentionPlan plan = plan_attention(call.device_params());
  if (!must_serve(backend, spec)) {
    EXPECT_EQ(plan.status.code, ErrorCode::kUnsupported) << plan.status.message;
    return;
  }
  ASSERT_TRUE(plan.status.ok()) << plan.status.message;
  DeviceBuffer workspace(std::max<std::size_t>(1, plan.workspace_bytes));
  call.device_params().workspace = workspace.data();
  call.device_params().workspace_bytes = plan.workspace_bytes;
  call.poison_results();
  attention_forward(call.device_params());
  ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  call.check();
  if (HasFailure()) return;
  const auto first = call.results();
  call.poison_results();
  attention_forward(call.device_params());
  ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  EXPECT_EQ(call.results(), first) << "two runs differ";
}

std::string name_of(const testing::TestParamInfo<Parameter>& info) {
  std::string name = std::get<0>(info.param) + "_" + std::get<1>(info.param).name;
  for (char& c : name) {
    if (c == '-') c = '_';
  }
  return name;
}

INSTANTIATE_TEST_SUITE_P(Gpu, Attention,
                         testing::Combine(testing::ValuesIn(cuda_backends()),
                                          testing::ValuesIn(all_cases())),
                         name_of);

}  // namespace
}  // namespace bsfa::gpu_test
