#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "bsfa/attention.hpp"
#include "kernel/problem.hpp"
#include "kernel/timing.hpp"

// What the statistic of the mass policy costs on the CPU: the policy beside the threshold gate with
// thresholds that keep as many blocks of each query block. One thread, causal, 4 query and 2
// key/value heads, fp32 numbers multiplied as bf16. The scores of each block of keys are lowered by
// a random amount up to `spread`, so that some matter and others do not. Both run in turns; the
// ratio is the median of 15 rounds.
//
//   cpu_mass [TOKENS HEAD_DIM SPREAD]...    (default: 2048 64 14, 8192 64 14, 8192 128 14, 8192 64 6)

namespace {

using namespace bsfa;

constexpr std::int64_t kHeads = 4, kKeyHeads = 2;
constexpr int kRounds = 15;

struct Setting {
  std::int64_t tokens, dim;
  float spread;
};

class Problem {
 public:
  explicit Problem(const Setting& s)
      : q_blocks_((s.tokens + 127) / 128), kv_blocks_((s.tokens + 63) / 64) {
    std::mt19937_64 random(1);
    std::normal_distribution<float> normal;
    std::uniform_real_distribution<float> lowered(-s.spread, 0);
    const auto fill = [&](std::vector<float>& values, std::int64_t heads, float scale) {
      values.resize(static_cast<std::size_t>(s.tokens * heads * s.dim));
      for (float& value : values) value = scale * normal(random);
    };
    fill(q_, kHeads, 0.5f);
    fill(k_, kKeyHeads, 1);
    fill(v_, kKeyHeads, 1);
    out_.resize(q_.size());
    // The first element of every row is the root of head_dim: that of a key is added to its scores.
    const auto first = [&](std::vector<float>& values, std::int64_t row, float value) {
      values[static_cast<std::size_t>(row * s.dim)] = value;
    };
    for (std::int64_t row = 0; row < s.tokens * kHeads; ++row) {
      first(q_, row, std::sqrt(static_cast<float>(s.dim)));
    }
    std::vector<float> strength(kKeyHeads);
    for (std::int64_t t = 0; t < s.tokens; ++t) {
      for (std::int64_t head = 0; head < kKeyHeads; ++head) {
        float& of_head = strength[static_cast<std::size_t>(head)];
        if (t % 64 == 0) of_head = lowered(random);
        first(k_, t * kKeyHeads + head, of_head);
      }
    }
    const auto view = [&](const std::vector<float>& values, std::int64_t heads) {
      return contiguous<const void*>(values.data(), DType::kFloat32, 1, s.tokens, heads, s.dim);
    };
    params_.q = view(q_, kHeads);
    params_.k = view(k_, kKeyHeads);
    params_.v = view(v_, kKeyHeads);
    params_.out =
        contiguous<void*>(out_.data(), DType::kFloat32, 1, s.tokens, kHeads, s.dim);
    params_.causal = true;
    params_.compute_type = ComputeType::kBFloat16;
    params_.backend = "cpu";
    params_.kept_blocks = {kept_.data(), {1, kHeads}, {kHeads, 1}};
    params_.visible_blocks = {visible_.data(), {1, kHeads}, {kHeads, 1}};
    find_thresholds();
  }

  double seconds(const Policy& policy) {
    AttentionParams params = params_;
    params.policy = policy;
    run(&params);
    return bench::seconds_of([&] { attention_forward(params); });
  }

  double density() const {
    std::int64_t kept = 0, visible = 0;
    for (std::size_t head = 0; head < kept_.size(); ++head) {
      kept += kept_[head];
      visible += visible_[head];
    }
    return static_cast<double>(kept) / static_cast<double>(visible);
  }

  Policy threshold() const {
    return Policy::threshold({thresholds_.data(), kHeads, q_blocks_, q_blocks_, 0, {}});
  }

 private:
  void run(AttentionParams* params) {
    params->workspace_bytes = workspace_size(*params);
    workspace_.reserve(params->workspace_bytes);
    params->workspace = workspace_.data();
  }

  // Between the maxima of as many blocks as mass keeps besides the diagonal, and the others.
  void find_thresholds() {
    const auto cells = static_cast<std::size_t>(kHeads * q_blocks_ * kv_blocks_);
    std::vector<std::uint8_t> mask(cells);
    std::vector<float> maxima(cells);
    AttentionParams params = params_;
    params.policy = Policy::mass();
    params.kept_mask = {mask.data(),
                        {1, kHeads, q_blocks_, kv_blocks_},
                        {0, q_blocks_ * kv_blocks_, kv_blocks_, 1}};
    params.block_max = {maxima.data(),
                        {1, kHeads, q_blocks_, kv_blocks_},
                        {0, q_blocks_ * kv_blocks_, kv_blocks_, 1}};
    run(&params);
    attention_forward(params);
    for (std::int64_t row = 0; row < kHeads * q_blocks_; ++row) {
      std::vector<float> found;
      std::size_t kept = 0;
      for (std::int64_t j = 0; j < 2 * (row % q_blocks_); ++j) {
        const auto cell = static_cast<std::size_t>(row * kv_blocks_ + j);
        found.push_back(maxima[cell]);
        kept += mask[cell];
      }
      std::sort(found.rbegin(), found.rend());
      thresholds_.push_back(kept == found.size() ? -HUGE_VALF
                            : kept == 0          ? HUGE_VALF
                                                 : (found[kept - 1] + found[kept]) / 2);
    }
  }

  std::int64_t q_blocks_, kv_blocks_;
  std::vector<float> q_, k_, v_, out_;
  std::vector<std::int64_t> kept_ = std::vector<std::int64_t>(kHeads);
  std::vector<std::int64_t> visible_ = std::vector<std::int64_t>(kHeads);
  std::vector<float> thresholds_;
  bench::AlignedMemory workspace_;
  AttentionParams params_;
};

void measure(const Setting& s) {
  Problem problem(s);
  std::vector<double> ratios, mass, gate;
  double mass_density = 0;
  for (int round = 0; round < kRounds; ++round) {
    mass.push_back(problem.seconds(Policy::mass()));
    mass_density = problem.density();
    gate.push_back(problem.seconds(problem.threshold()));
    if (std::abs(problem.density() - mass_density) > 1e-3) {
      std::fprintf(stderr, "error: densities differ: %.4f and %.4f\n", mass_density,
                   problem.density());
      std::exit(1);
    }
    ratios.push_back(mass.back() / gate.back());
  }
  const bench::Spread ratio = bench::spread_of(ratios);
  std::printf("%6lld %4lld %7.3f %9.2f %9.2f %7.3f (%.3f to %.3f)\n",
              static_cast<long long>(s.tokens), static_cast<long long>(s.dim), mass_density,
              1e3 * bench::spread_of(mass).median, 1e3 * bench::spread_of(gate).median,
              ratio.median, ratio.min, ratio.max);
}

}  // namespace

int main(int argc, char** argv) {
  std::vector<Setting> settings;
  if (argc % 3 != 1) {
    std::fprintf(stderr, "usage: %s [TOKENS HEAD_DIM SPREAD]...\n", argv[0]);
    return 2;
  }
  for (int i = 1; i + 2 < argc; i += 3) {
    settings.push_back({std::atoll(argv[i]), std::atoll(argv[i + 1]),
                        static_cast<float>(std::atof(argv[i + 2]))});
  }
  if (settings.empty()) settings = {{2048, 64, 14}, {8192, 64, 14}, {8192, 128, 14}, {8192, 64, 6}};
  std::printf("tokens  dim density   mass ms   gate ms  mass / gate (min to max)\n");
  for (const Setting& s : settings) measure(s);
  return 0;
}
