#include "core/numeric.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace bsfa {
namespace {

TEST(Numeric, EveryFloat16SurvivesARoundTrip) {
  for (std::uint32_t bits = 0; bits < 0x10000u; ++bits) {
    const auto half = static_cast<std::uint16_t>(bits);
    const float value = float_from_float16(half);
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(float_from_float16(float16_from_float(value))));
    } else {
      ASSERT_EQ(float16_from_float(value), half) << value;
    }
  }
}

TEST(Numeric, EveryBFloat16SurvivesARoundTrip) {
  for (std::uint32_t bits = 0; bits < 0x10000u; ++bits) {
    const auto value = float_from_bfloat16(static_cast<std::uint16_t>(bits));
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(float_from_bfloat16(bfloat16_from_float(value))));
    } else {
      ASSERT_EQ(bfloat16_from_float(value), bits);
    }
  }
}

// Between two neighbours of the 16-bit type the nearer one is taken, and the even one in the
// middle.
template <typename ToFloat, typename FromFloat>
void expect_nearest_even(std::uint16_t last_finite, ToFloat to_float, FromFloat from_float) {
  for (std::uint16_t low = 0; low < last_finite; ++low) {
    const double a = to_float(low);
    const double b = to_float(static_cast<std::uint16_t>(low + 1));
    const auto middle = static_cast<float>((a + b) / 2);
    const auto even = static_cast<std::uint16_t>(low % 2 == 0 ? low : low + 1);
    ASSERT_EQ(from_float(middle), even) << "between " << a << " and " << b;
    ASSERT_EQ(from_float(std::nextafter(middle, 0.0f)), low) << a;
    ASSERT_EQ(from_float(std::nextafter(middle, std::numeric_limits<float>::infinity())), low + 1)
        << a;
    ASSERT_EQ(from_float(-middle), even | 0x8000u) << "negative of " << middle;
  }
}

TEST(Numeric, Float16RoundsToNearestEven) {
  expect_nearest_even(0x7bff, float_from_float16, float16_from_float);
}

TEST(Numeric, BFloat16RoundsToNearestEven) {
  expect_nearest_even(0x7f7f, float_from_bfloat16, bfloat16_from_float);
}

TEST(Numeric, OverflowAndInfinity) {
  EXPECT_EQ(float16_from_float(65519.0f), 0x7bff);
  EXPECT_EQ(float16_from_float(65520.0f), 0x7c00);
  EXPECT_EQ(float16_from_float(-std::numeric_limits<float>::infinity()), 0xfc00);
  EXPECT_EQ(bfloat16_from_float(std::numeric_limits<float>::max()), 0x7f80);
}

}  // namespace
}  // namespace bsfa
