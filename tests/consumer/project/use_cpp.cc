// A C++ program that uses the installed library: calibrates, saves and loads, and runs with the
// thresholds that it found.
#include <bsfa/attention.hpp>
#include <bsfa/backends.hpp>
#include <bsfa/calibration.hpp>
#include <bsfa/thresholds.hpp>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

namespace {

constexpr std::int64_t kTokens = 700, kHeads = 2, kDim = 16, kBudget = 2;

struct Aligned {
  explicit Aligned(std::size_t bytes)
      : data(bytes > 0 ? std::aligned_alloc(256, (bytes + 255) / 256 * 256) : nullptr) {}
  ~Aligned() { std::free(data); }
  Aligned(const Aligned&) = delete;
  Aligned& operator=(const Aligned&) = delete;
  void* data;
};

std::vector<float> noise(std::size_t count, unsigned seed) {
  std::vector<float> values(count);
  for (float& value : values) {
    seed = seed * 1664525u + 1013904223u;
    value = static_cast<float>(seed >> 8) / 8388608.0f - 1.0f;
  }
  return values;
}

int fail(const char* what) {
  std::fprintf(stderr, "%s\n", what);
  return 1;
}

}  // namespace

int main(int argc, char** argv) try {
  if (argc != 2) return fail("usage: use_cpp FILE");
  const auto q = noise(kTokens * kHeads * kDim, 1), k = noise(kTokens * kDim, 2),
             v = noise(kTokens * kDim, 3);
  std::vector<float> out(q.size());
  bsfa::ThreadPool pool(2);
  bsfa::AttentionParams params;
  params.q =
      bsfa::contiguous<const void*>(q.data(), bsfa::DType::kFloat32, 1, kTokens, kHeads, kDim);
  params.k = bsfa::contiguous<const void*>(k.data(), bsfa::DType::kFloat32, 1, kTokens, 1, kDim);
  params.v = bsfa::contiguous<const void*>(v.data(), bsfa::DType::kFloat32, 1, kTokens, 1, kDim);
  params.out = bsfa::contiguous<void*>(out.data(), bsfa::DType::kFloat32, 1, kTokens, kHeads, kDim);
  params.causal = true;
  params.executor = &pool;

  // Calibration: block maxima of the dense call, thresholds of one budget.
  const bsfa::AttentionPlan plan = bsfa::plan_attention(params);
  if (!plan.status.ok()) return fail(plan.status.message.c_str());
  std::vector<float> maxima(static_cast<std::size_t>(kHeads * plan.q_blocks * plan.kv_blocks));
  params.block_max = {maxima.data(), {1, kHeads, plan.q_blocks, plan.kv_blocks}, {}};
  bsfa::set_contiguous(params.block_max.shape, params.block_max.stride);
  const std::size_t bytes = bsfa::workspace_size(params);
  const Aligned workspace(bytes);
  params.workspace = workspace.data;
  params.workspace_bytes = bytes;
  bsfa::attention_forward(params);

  std::vector<float> selected(static_cast<std::size_t>(kHeads * plan.q_blocks));
  bsfa::SelectThresholdsParams select;
  select.block_max = {maxima.data(), {kHeads, plan.q_blocks, plan.kv_blocks}, {}};
  bsfa::set_contiguous(select.block_max.shape, select.block_max.stride);
  select.budgets = &kBudget;
  select.num_budgets = 1;
  select.thresholds = {selected.data(), {1, kHeads, plan.q_blocks}, {}};
  bsfa::set_contiguous(select.thresholds.shape, select.thresholds.stride);
  bsfa::select_thresholds(select);

  const float scale = 1.0f / std::sqrt(static_cast<float>(kDim));
  bsfa::Calibration calibration({{kBudget}, {}, scale, 0, "noise", 0, "", kBudget}, 1, kHeads);
  calibration.begin_sample("noise", kTokens);
  calibration.add(0, 0, kTokens,
                  {selected.data(), {1, kHeads, plan.q_blocks}, {0, plan.q_blocks, 1}});
  calibration.end_sample();
  calibration.finish().save(argv[1]);

  // Use.
  const bsfa::ThresholdTable table = bsfa::ThresholdTable::load(argv[1]);
  table.check_model("noise", 1, kHeads, scale);
  std::int64_t kept[kHeads] = {}, visible[kHeads] = {};
  params.block_max = {};
  params.policy = bsfa::Policy::threshold(table.view(*table.metadata().recommended_budget, 0));
  params.kept_blocks = {kept, {1, kHeads}, {kHeads, 1}};
  params.visible_blocks = {visible, {1, kHeads}, {kHeads, 1}};
  const std::size_t gated_bytes = bsfa::workspace_size(params);
  const Aligned gated_workspace(gated_bytes);
  params.workspace = gated_workspace.data;
  params.workspace_bytes = gated_bytes;
  bsfa::attention_forward(params);
  const double predicted = bsfa::predicted_density(kBudget, kTokens, {});
  for (int head = 0; head < kHeads; ++head) {
    const double density = static_cast<double>(kept[head]) / static_cast<double>(visible[head]);
    std::printf("head %d: density %.3f, predicted %.3f\n", head, density, predicted);
    // Thresholds of the very same scores: the budget is kept to the block.
    if (std::fabs(density - predicted) > 1e-9) return fail("the density is not the predicted one");
  }

  // An error is an exception of this library, also across the shared library's border.
  params.backend = "no such backend";
  try {
    bsfa::attention_forward(params);
    return fail("an unknown backend was accepted");
  } catch (const bsfa::Error& error) {
    if (error.code() != bsfa::ErrorCode::kInvalidArgument) return fail(error.what());
  }
  std::printf("bsfa %s, %zu backends, %s on %s\n", bsfa::version(), bsfa::backends().size(),
              plan.backend.c_str(), plan.kernel.c_str());
  return 0;
} catch (const std::exception& error) {
  return fail(error.what());
}
