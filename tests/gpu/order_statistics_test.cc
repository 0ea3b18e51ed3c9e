#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>

#include "bsfa/backends.hpp"
#include "bsfa/calibration.hpp"
#include "harness.hpp"

// Order statistics of block maxima on a card are those of the CPU, which has its own tests.

namespace bsfa::gpu_test {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

class OrderStatistics : public testing::Test {
 protected:
  void SetUp() override {
    int devices = 0;
    if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) GTEST_SKIP() << "no card";
  }
};

// Thresholds by what they say.
struct Outcomes {
  int finite = 0, dense = 0, refused = 0;
};

// [heads, rows, columns], the columns two apart and the thresholds' heads innermost.
void expect_as_on_cpu(std::int64_t heads, std::int64_t rows, std::int64_t columns,
                      const std::vector<std::int64_t>& budgets, unsigned seed, Outcomes* outcomes,
                      const std::string& backend) {
  SCOPED_TRACE(testing::Message() << heads << " x " << rows << " x " << columns);
  std::mt19937 random(seed);
  const auto pick = [&](std::int64_t low, std::int64_t high) {
    return std::uniform_int_distribution<std::int64_t>(low, high)(random);
  };
  std::normal_distribution<float> normal;
  const auto num_budgets = static_cast<std::int64_t>(budgets.size());
  std::vector<float> maxima(static_cast<std::size_t>(heads * rows * columns * 2), -kInf);
  for (std::int64_t row = 0; row < heads * rows; ++row) {
    // Visible: a run of columns, before it what a model's window hides.
    const std::int64_t begin = pick(0, 3) == 0 ? pick(0, columns) : 0;
    const std::int64_t end = pick(0, 3) == 0 ? pick(begin, columns) : columns;
    const bool ties = pick(0, 1) == 0;
    for (std::int64_t c = begin; c < end; ++c) {
      const float value = normal(random);
      maxima[static_cast<std::size_t>((row * columns + c) * 2)] = ties ? std::round(value) : value;
    }
    if (end > begin && pick(0, 9) == 0) {
      const float bad[] = {std::nanf(""), kInf, -kInf};
      maxima[static_cast<std::size_t>((row * columns + pick(begin, end - 1)) * 2)] =
          bad[pick(0, 2)];
    }
  }
  const std::size_t results = static_cast<std::size_t>(num_budgets * heads * rows);
  std::vector<float> expected(results);

  SelectThresholdsParams params;
  params.block_max = {maxima.data(), {heads, rows, columns}, {rows * columns * 2, columns * 2, 2}};
  params.first_q_block = std::max<std::int64_t>(0, columns / 2 - rows / 2);  // diagonals inside
  params.first_kv_block = 1;
  params.budgets = budgets.data();
  params.num_budgets = num_budgets;
  params.thresholds = {expected.data(), {num_budgets, heads, rows}, {heads * rows, 1, heads}};
  select_thresholds(params);

  DeviceBuffer from(maxima.size() * sizeof(float));
  DeviceBuffer to(results * sizeof(float));
  from.upload(maxima.data(), maxima.size() * sizeof(float));
  params.block_max.data = static_cast<const float*>(from.data());
  params.thresholds.data = static_cast<float*>(to.data());
  params.device = {DeviceType::kCuda, 0};
  params.backend = backend;
  select_thresholds(params);
  BSFA_CUDA_OK(cudaDeviceSynchronize());
  const std::vector<std::uint8_t> bytes = to.download();
  const float* got = reinterpret_cast<const float*>(bytes.data());
  for (std::size_t i = 0; i < results; ++i) {
    if (std::isnan(expected[i])) {
      ASSERT_TRUE(std::isnan(got[i])) << "result " << i << " is " << got[i];
      ++outcomes->refused;
    } else {
      ASSERT_EQ(got[i], expected[i]) << "result " << i;
      ++(expected[i] == -kInf ? outcomes->dense : outcomes->finite);
    }
  }
}

// Lengths around those at which a warp's own part of the sort ends and threads have several pairs.
TEST_F(OrderStatistics, AreThoseOfTheCpu) {
  Outcomes outcomes;
  unsigned seed = 0;
  std::vector<std::string> names = {""};
  for (const BackendInfo& backend : backends()) {
    if (backend.device == DeviceType::kCuda && backend.available) names.push_back(backend.name);
  }
  for (const std::int64_t columns :
       {1, 2, 3, 31, 32, 33, 63, 64, 65, 127, 128, 129, 500, 512, 513, 1000, 2048, 5000}) {
    // A service of the device: whichever of its backends is named, or none.
    const std::string& name = names[seed % names.size()];
    expect_as_on_cpu(3, 40, columns, {1, 2, 5, 16, 63, 64, 300}, ++seed, &outcomes, name);
  }
  // The cases are worth something only if all three are among them.
  EXPECT_GT(outcomes.finite, 1000);
  EXPECT_GT(outcomes.dense, 1000);
  EXPECT_GT(outcomes.refused, 500);
}

}  // namespace
}  // namespace bsfa::gpu_test
