// Conversions of single elements, for what is left over beside the vectors. Included inside a
// target namespace: core/numeric.hpp has the same functions, but as inline ones that must not be
// compiled with wide instructions (see kernels.hpp).

inline float float_of_bits(std::uint32_t bits) {
  float value;
  __builtin_memcpy(&value, &bits, sizeof value);
  return value;
}

inline std::uint32_t bits_of_float(float value) {
  std::uint32_t bits;
  __builtin_memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float bfloat_to_float(std::uint16_t bits) {
  return float_of_bits(static_cast<std::uint32_t>(bits) << 16);
}

inline std::uint16_t float_to_bfloat(float value) {
  const std::uint32_t bits = bits_of_float(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<std::uint16_t>((bits >> 16) | 0x40u);
  return static_cast<std::uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

inline float half_to_float(std::uint16_t half) {
  // The exponent field moved to its place is 112 too small; for a subnormal the same product with
  // 2^112 normalises it. Infinity and NaN need the full exponent.
  const std::uint32_t magnitude = (half & 0x7fffu) << 13;
  const float scaled = float_of_bits(magnitude) * 0x1p112f;
  const std::uint32_t sign = (half & 0x8000u) << 16;
  const std::uint32_t bits =
      (half & 0x7c00u) == 0x7c00u ? magnitude | 0x7f800000u : bits_of_float(scaled);
  return float_of_bits(sign | bits);
}

inline std::uint16_t float_to_half(float value) {
  const std::uint32_t bits = bits_of_float(value);
  const std::uint32_t sign = (bits >> 16) & 0x8000u;
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) {
    return static_cast<std::uint16_t>(sign | 0x7e00u | ((magnitude >> 13) & 0x1ffu));
  }
  if (magnitude >= 0x477ff000u) return static_cast<std::uint16_t>(sign | 0x7c00u);
  if (magnitude < 0x38800000u) {
    // A multiple of 2^-24: the sum with 2^-1 has its last bit there and rounds to nearest even.
    const float sum = float_of_bits(magnitude) + 0.5f;
    return static_cast<std::uint16_t>(sign | (bits_of_float(sum) - 0x3f000000u));
  }
  const std::uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
  return static_cast<std::uint16_t>(sign | ((rounded - 0x38000000u) >> 13));
}
