#include <gtest/gtest.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "bsfa/executor.hpp"
#include "support/attention_case.hpp"

// A prepared call gives, bit for bit, what attention_forward gives, on whatever pointers it is run,
// and refuses what is another call or what its pointers lead to.

namespace bsfa::testing {
namespace {

std::string results(const AttentionData& data) {
  std::string bytes;
  const auto append = [&](const void* values, std::size_t size) {
    bytes.append(static_cast<const char*>(values), size);
  };
  append(data.out.data(), data.out.bytes());
  append(data.lse.data(), data.lse.bytes());
  append(data.kept_blocks.data(), data.kept_blocks.size() * sizeof(std::int64_t));
  append(data.visible_blocks.data(), data.visible_blocks.size() * sizeof(std::int64_t));
  append(data.kept_mask.data(), data.kept_mask.size());
  append(data.block_max.data(), data.block_max.size() * sizeof(float));
  return bytes;
}

// A call with a workspace of its own.
struct Ready {
  explicit Ready(AttentionData& data, const char* backend = "cpu") : params(data.params()) {
    params.backend = backend;
    params.workspace_bytes = workspace_size(params);
    if (params.workspace_bytes > 0) {
      memory.resize(params.workspace_bytes + 256);
      void* start = memory.data();
      std::size_t space = memory.size();
      params.workspace = std::align(256, params.workspace_bytes, start, space);
    }
  }
  std::vector<std::byte> memory;
  AttentionParams params;
};

std::vector<AttentionCase> cases() {
  AttentionCase plain;
  plain.batch = 2;
  plain.seqlen_q = 200;
  plain.seqlen_k = 330;
  plain.num_heads_q = 4;
  plain.num_heads_kv = 2;
  AttentionCase gated = plain;
  gated.policy = PolicyKind::kThreshold;
  gated.compute_type = ComputeType::kBFloat16;
  AttentionCase window = plain;
  window.policy = PolicyKind::kSlidingWindow;
  window.sinks = true;
  AttentionCase packed = plain;
  packed.seqlens_q = {100, 0, 170};
  packed.seqlens_k = {130, 20, 200};
  AttentionCase padded = plain;
  padded.leftpad_k = {3, 70};
  AttentionCase mass = plain;
  mass.policy = PolicyKind::kMass;
  mass.spread = 14;
  AttentionCase skip = mass;
  skip.policy = PolicyKind::kSkipSoftmax;
  skip.skip_order = SkipOrder::kOutwards;
  return {plain, gated, window, packed, padded, mass, skip};
}

TEST(Prepared, RunsOnOtherPointersAsTheWholeCallWould) {
  for (const char* backend : {"cpu", "reference"}) {
    for (AttentionCase c : cases()) {
      AttentionData first(c);
      Ready ready(first, backend);
      const PreparedAttention prepared(ready.params);
      EXPECT_EQ(prepared.plan().backend, backend);
      EXPECT_EQ(prepared.plan().workspace_bytes, ready.params.workspace_bytes);
      for (const std::uint64_t seed : {1, 2, 3}) {
        c.seed = seed;
        AttentionData data(c);
        Ready other(data, backend);
        ASSERT_TRUE(prepared.serves(other.params)) << describe(c);
        attention_forward(other.params);
        const std::string whole = results(data);
        data.poison();
        EXPECT_NE(results(data), whole);
        prepared.run(other.params);
        EXPECT_EQ(results(data), whole) << backend << ": " << describe(c);
        EXPECT_TRUE(data.outputs_intact());
      }
      attention_forward(ready.params);
      const std::string whole = results(first);
      first.poison();
      prepared.run();
      EXPECT_EQ(results(first), whole) << backend << ": " << describe(c);
    }
  }
}

TEST(Prepared, SeveralThreadsRunItAtATime) {
  AttentionCase c = cases()[1];
  AttentionData first(c);
  const Ready ready(first);
  const PreparedAttention prepared(ready.params);
  std::vector<std::unique_ptr<AttentionData>> data;
  std::vector<std::unique_ptr<Ready>> calls;
  std::vector<std::string> whole;
  for (const std::uint64_t seed : {5, 6, 7, 8}) {
    c.seed = seed;
    data.push_back(std::make_unique<AttentionData>(c));
    calls.push_back(std::make_unique<Ready>(*data.back()));
    attention_forward(calls.back()->params);
    whole.push_back(results(*data.back()));
    data.back()->poison();
  }
  std::vector<std::thread> threads;
  for (const auto& call : calls) {
    threads.emplace_back([&prepared, &call] { prepared.run(call->params); });
  }
  for (std::thread& thread : threads) thread.join();
  for (std::size_t i = 0; i < data.size(); ++i) EXPECT_EQ(results(*data[i]), whole[i]);
}

struct Change {
  const char* name;
  std::function<void(AttentionParams&)> make;
  const char* message;
};

// What is another call, or leads somewhere else, is refused by name and nothing is written.
TEST(Prepared, RefusesAnotherCall) {
  static ThreadPool two(2);
  static const std::int32_t no_padding[] = {0, 0};
  static const std::int32_t too_much[] = {400, 0};
  const Change changes[] = {
      {"shape", [](AttentionParams& p) { p.k.shape[1] = p.v.shape[1] = 300; },
       "k.shape is [2, 300, 2, 64]; the call was planned with [2, 330, 2, 64]"},
      {"stride", [](AttentionParams& p) { p.q.stride[1] *= 2; },
       "q.stride is [51200, 512, 64, 1]; the call was planned with [51200, 256, 64, 1]"},
      {"dtype", [](AttentionParams& p) { p.v.dtype = DType::kBFloat16; },
       "v.dtype is 2; the call was planned with 0"},
      {"scale", [](AttentionParams& p) { p.softmax_scale = 0.125f; },
       "softmax_scale is 0.125; the call was planned with not given"},
      {"causal", [](AttentionParams& p) { p.causal = false; },
       "causal is false; the call was planned with true"},
      {"offset", [](AttentionParams& p) { p.q_offset = 130; },
       "q_offset is 130; the call was planned with not given"},
      {"policy", [](AttentionParams& p) { p.policy = Policy::sliding_window(2); },
       "policy.kind is 2; the call was planned with 1"},
      {"table", [](AttentionParams& p) { p.policy.thresholds.num_q_blocks = 1; },
       "policy.thresholds.num_q_blocks is 1; the call was planned with"},
      {"c", [](AttentionParams& p) { p.policy.mass_c = 0.5f; },
       "policy.mass_c is 0.5; the call was planned with 0.1"},
      {"lambda", [](AttentionParams& p) { p.policy.skip_lambda = 0.5f; },
       "policy.skip_lambda is 0.5; the call was planned with 0.05"},
      {"order", [](AttentionParams& p) { p.policy.skip_order = SkipOrder::kOutwards; },
       "policy.skip_order is 1; the call was planned with 0"},
      {"grid", [](AttentionParams& p) { p.block.kv = 128; },
       "block is 128x128; the call was planned with 128x64"},
      {"compute", [](AttentionParams& p) { p.compute_type = ComputeType::kFloat32; },
       "compute_type is 1; the call was planned with 2"},
      {"statistic", [](AttentionParams& p) { p.lse.stride[2] = 2; },
       "lse.stride is [812, 203, 2]; the call was planned with [812, 203, 1]"},
      {"backend", [](AttentionParams& p) { p.backend = "reference"; },
       "backend is 'reference'; the call was planned with 'cpu'"},
      {"device", [](AttentionParams& p) { p.device.type = DeviceType::kCuda; },
       "device is cuda:0; the call was planned with cpu:0"},
      {"operand", [](AttentionParams& p) { p.q.data = nullptr; },
       "q is null; the call was planned with a pointer"},
      {"alignment", [](AttentionParams& p) { p.k.data = static_cast<const char*>(p.k.data) + 4; },
       "k is aligned to 4 bytes; the call was planned for 16"},
      {"absent", [](AttentionParams& p) { p.lse.data = nullptr; },
       "lse is null; the call was planned with it"},
      {"present", [](AttentionParams& p) { p.leftpad_k = no_padding; },
       "leftpad_k was given; the call was planned without it"},
      {"crooked",
       [](AttentionParams& p) {
         p.block_max.data = reinterpret_cast<float*>(reinterpret_cast<char*>(p.block_max.data) + 1);
       },
       "block_max is not aligned to its element size (4 bytes)"},
      {"workers", [](AttentionParams& p) { p.executor = &two; },
       "executor has max_workers() 2; the call was planned for 1"},
      {"workspace", [](AttentionParams& p) { p.workspace_bytes = 5; },
       "workspace_bytes is 5; this"},
      {"no workspace", [](AttentionParams& p) { p.workspace = nullptr; },
       "workspace is null; this"},
  };
  AttentionData data(cases()[1]);
  const Ready ready(data);
  const PreparedAttention prepared(ready.params);
  const std::string poisoned = results(data);
  const auto refusal = [&](const PreparedAttention& call, const AttentionParams& params) {
    try {
      call.run(params);
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument);
      return std::string(error.what());
    }
    return std::string("accepted");
  };
  for (const Change& change : changes) {
    AttentionParams params = ready.params;
    change.make(params);
    const std::string message = refusal(prepared, params);
    EXPECT_EQ(message.substr(0, std::string(change.message).size()), change.message)
        << change.name << ": " << message;
    EXPECT_EQ(results(data), poisoned) << change.name;
  }

  // The lengths are data: they are looked at whenever the call runs.
  AttentionData padded(cases()[4]);
  const Ready lengths(padded);
  const PreparedAttention with_padding(lengths.params);
  AttentionParams params = lengths.params;
  params.leftpad_k = too_much;
  EXPECT_NE(refusal(with_padding, params).find("leftpad_k and seqused_k give sequence 0"),
            std::string::npos);
  padded.c.leftpad_k[1] = 400;  // where it lies
  EXPECT_NE(refusal(with_padding, lengths.params).find("give sequence 1"), std::string::npos);
  padded.c.leftpad_k[1] = 70;
  EXPECT_EQ(refusal(with_padding, lengths.params), "accepted");
}

TEST(Prepared, RefusesWhatACallRefuses) {
  AttentionData data(cases()[0]);
  AttentionParams params = data.params();
  params.q.shape[3] = 12;
  try {
    const PreparedAttention prepared(params);
    FAIL() << "accepted";
  } catch (const Error& error) {
    EXPECT_EQ(error.what(), plan_attention(params).status.message);
  }
}

}  // namespace
}  // namespace bsfa::testing
