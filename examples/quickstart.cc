// Calibrate one layer and run it gated, with the public API alone.
//
//   c++ -std=c++20 quickstart.cc $(pkg-config --cflags --libs bsfa) -o quickstart && ./quickstart

#include <algorithm>
#include <bsfa/attention.hpp>
#include <bsfa/calibration.hpp>
#include <bsfa/executor.hpp>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <thread>
#include <vector>

namespace {

constexpr std::int64_t kSeqlen = 2048, kHeadsQ = 4, kHeadsKv = 2, kHeadDim = 64;
constexpr std::int64_t kQBlocks = kSeqlen / 128, kKvBlocks = kSeqlen / 64;
constexpr std::int64_t kBudget = 4;  // blocks that a query block keeps beside the diagonal

// Tokens with a common direction in some blocks and none in the others: like a real model's keys,
// most of the attention goes to few blocks.
std::vector<float> tokens(std::int64_t heads, double share_of_strong_blocks, std::mt19937& random) {
  std::normal_distribution<float> normal;
  std::bernoulli_distribution is_strong(share_of_strong_blocks);
  std::vector<float> values(kSeqlen * heads * kHeadDim);
  float direction = 0;
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (i % (64 * heads * kHeadDim) == 0) direction = is_strong(random) ? 1.0f : 0.0f;
    values[i] = normal(random) + direction;
  }
  return values;
}

// A call's workspace: aligned to 256 bytes, as large as the plan says.
struct Workspace {
  explicit Workspace(std::size_t bytes)
      : data(std::aligned_alloc(256, (bytes + 255) / 256 * 256)), size(bytes) {}
  ~Workspace() { std::free(data); }
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
  void* data;
  std::size_t size;
};

void run(bsfa::AttentionParams params) {
  const Workspace workspace(bsfa::workspace_size(params));
  params.workspace = workspace.data;
  params.workspace_bytes = workspace.size;
  bsfa::attention_forward(params);
}

}  // namespace

int main() {
  using bsfa::DType;
  std::mt19937 random(1);
  const std::vector<float> q = tokens(kHeadsQ, 1.0, random);
  const std::vector<float> k = tokens(kHeadsKv, 0.1, random);
  const std::vector<float> v = tokens(kHeadsKv, 0.1, random);
  std::vector<float> exact(q.size()), gated(q.size());
  bsfa::ThreadPool pool(static_cast<int>(std::max(1u, std::thread::hardware_concurrency())));

  bsfa::AttentionParams params;
  const auto tensor = [](const std::vector<float>& data, std::int64_t heads) {
    return bsfa::contiguous<const void*>(data.data(), DType::kFloat32, 1, kSeqlen, heads, kHeadDim);
  };
  params.q = tensor(q, kHeadsQ);
  params.k = tensor(k, kHeadsKv);
  params.v = tensor(v, kHeadsKv);
  params.out =
      bsfa::contiguous<void*>(exact.data(), DType::kFloat32, 1, kSeqlen, kHeadsQ, kHeadDim);
  params.causal = true;
  params.executor = &pool;

  // 1. One dense pass gives the exact output and the largest score of every block ...
  std::vector<float> block_max(kHeadsQ * kQBlocks * kKvBlocks);
  params.block_max = {block_max.data(), {1, kHeadsQ, kQBlocks, kKvBlocks}, {}};
  bsfa::set_contiguous(params.block_max.shape, params.block_max.stride);
  run(params);

  // 2. ... from which follow the thresholds of a budget (a real calibration averages 16 samples)
  // ...
  std::vector<float> thresholds(kHeadsQ * kQBlocks);
  bsfa::SelectThresholdsParams select;
  select.block_max = {block_max.data(), {kHeadsQ, kQBlocks, kKvBlocks}, {}};
  bsfa::set_contiguous(select.block_max.shape, select.block_max.stride);
  select.budgets = &kBudget;
  select.num_budgets = 1;
  select.thresholds = {thresholds.data(), {1, kHeadsQ, kQBlocks}, {}};
  bsfa::set_contiguous(select.thresholds.shape, select.thresholds.stride);
  bsfa::select_thresholds(select);

  // 3. ... and with them the gated call skips softmax, V and PV of every other block.
  params.block_max = {};
  params.out.data = gated.data();
  params.policy = bsfa::Policy::threshold({thresholds.data(), kHeadsQ, kQBlocks, kQBlocks, 0, {}});
  std::vector<std::int64_t> kept(kHeadsQ), visible(kHeadsQ);
  params.kept_blocks = {kept.data(), {1, kHeadsQ}, {kHeadsQ, 1}};
  params.visible_blocks = {visible.data(), {1, kHeadsQ}, {kHeadsQ, 1}};
  run(params);

  double difference = 0, norm = 0;
  for (std::size_t i = 0; i < exact.size(); ++i) {
    difference += std::pow(exact[i] - gated[i], 2);
    norm += std::pow(exact[i], 2);
  }
  for (std::int64_t head = 0; head < kHeadsQ; ++head) {
    std::printf("head %d: kept %d of %d blocks\n", static_cast<int>(head),
                static_cast<int>(kept[head]), static_cast<int>(visible[head]));
  }
  std::printf("relative difference from dense attention: %.3f\n", std::sqrt(difference / norm));
  // Each query block keeps its budget exactly, for these are the thresholds of this very input.
  const double expected = bsfa::predicted_density(kBudget, kSeqlen, params.block);
  for (std::int64_t head = 0; head < kHeadsQ; ++head) {
    if (kept[head] != std::llround(expected * static_cast<double>(visible[head]))) return 1;
  }
  return 0;
}
