#pragma once

#include <bit>
#include <cstdint>

#include "bsfa/tensor.hpp"

// Exact conversions between fp32 and the 16-bit types, round to nearest even, NaN preserved. For
// code that need not be fast: the oracle, validation, tests, file readers.

namespace bsfa {

constexpr float float_from_bfloat16(std::uint16_t bits) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
}

constexpr std::uint16_t bfloat16_from_float(float value) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<std::uint16_t>((bits >> 16) | 0x40u);
  return static_cast<std::uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

constexpr float float_from_float16(std::uint16_t half) {
  const std::uint32_t sign = (half & 0x8000u) << 16;
  const std::uint32_t exponent = (half >> 10) & 0x1fu;
  const std::uint32_t mantissa = half & 0x3ffu;
  if (exponent == 0x1f) return std::bit_cast<float>(sign | 0x7f800000u | (mantissa << 13));
  if (exponent != 0) {
    return std::bit_cast<float>(sign | ((exponent + 112u) << 23) | (mantissa << 13));
  }
  const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
  return sign != 0 ? -magnitude : magnitude;
}

constexpr std::uint16_t float16_from_float(float value) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
  const auto sign = static_cast<std::uint16_t>((bits >> 16) & 0x8000u);
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return sign | 0x7e00u;
  if (magnitude >= 0x477ff000u) return sign | 0x7c00u;  // rounds to 65536 or more
  if (magnitude < 0x38800000u) {                        // subnormal: a multiple of 2^-24
    const std::uint32_t shift = 126u - (magnitude >> 23);
    if (shift > 24u) return sign;
    const std::uint32_t full = (magnitude & 0x7fffffu) | 0x800000u;
    const std::uint32_t kept = full >> shift;
    const std::uint32_t rest = full & ((1u << shift) - 1u);
    const std::uint32_t half = 1u << (shift - 1u);
    return static_cast<std::uint16_t>(
        sign | (kept + (rest > half || (rest == half && (kept & 1u)) ? 1u : 0u)));
  }
  const std::uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
  return static_cast<std::uint16_t>(sign | ((rounded - 0x38000000u) >> 13));
}

// Element `index` of an array of `dtype`, as fp32 (exact).
inline float load_element(const void* data, DType dtype, std::int64_t index) {
  switch (dtype) {
    case DType::kFloat32:
      return static_cast<const float*>(data)[index];
    case DType::kFloat16:
      return float_from_float16(static_cast<const std::uint16_t*>(data)[index]);
    case DType::kBFloat16:
      return float_from_bfloat16(static_cast<const std::uint16_t*>(data)[index]);
  }
  return 0;
}

inline void store_element(void* data, DType dtype, std::int64_t index, float value) {
  switch (dtype) {
    case DType::kFloat32:
      static_cast<float*>(data)[index] = value;
      return;
    case DType::kFloat16:
      static_cast<std::uint16_t*>(data)[index] = float16_from_float(value);
      return;
    case DType::kBFloat16:
      static_cast<std::uint16_t*>(data)[index] = bfloat16_from_float(value);
      return;
  }
}

// What is left of `value` in a type.
constexpr float rounded(float value, DType dtype) {
  switch (dtype) {
    case DType::kBFloat16:
      return float_from_bfloat16(bfloat16_from_float(value));
    case DType::kFloat16:
      return float_from_float16(float16_from_float(value));
    case DType::kFloat32:
      break;
  }
  return value;
}

}  // namespace bsfa
