// 128-bit vectors in the compilers' own vector notation: SSE2 on x86-64, NEON on AArch64. Included
// by one translation unit inside its target namespace.

struct Simd {
  using F [[gnu::vector_size(16)]] = float;
  using I [[gnu::vector_size(16)]] = std::int32_t;
  static constexpr int kWidth = 4;
  static constexpr int kTileRows = 4;
  static constexpr int kTileVectors = 2;

  static F load(const float* p) {
    F x;
    __builtin_memcpy(&x, p, sizeof x);
    return x;
  }
  static void store(float* p, F x) { __builtin_memcpy(p, &x, sizeof x); }
  static F set1(float x) { return F{x, x, x, x}; }
  static F fma(F a, F b, F c) { return a * b + c; }
  static F add(F a, F b) { return a + b; }
  static F sub(F a, F b) { return a - b; }
  static F mul(F a, F b) { return a * b; }
  static F div(F a, F b) { return a / b; }
  // b if either is NaN.
  static F max(F a, F b) { return a > b ? a : b; }
  static F abs(F a) { return (F)((I)a & 0x7fffffff); }
  static F select_less(F a, F b, F if_less, F otherwise) { return a < b ? if_less : otherwise; }
  static float reduce_max(F x) {
    const float a = x[0] > x[1] ? x[0] : x[1];
    const float b = x[2] > x[3] ? x[2] : x[3];
    return a > b ? a : b;
  }
  static float reduce_add(F x) { return (x[0] + x[1]) + (x[2] + x[3]); }

  using NanFlags = I;
  static NanFlags no_nan() { return I{}; }
  static NanFlags note_nan(NanFlags flags, F x, F y) { return flags | (x != x) | (y != y); }
  static bool any_nan(NanFlags flags) { return (flags[0] | flags[1] | flags[2] | flags[3]) != 0; }

  // Lane i of x[j] becomes lane j of x[i].
  static void transpose(F (&x)[kWidth]) {
    const F a = x[0], b = x[1], c = x[2], d = x[3];
    BSFA_UNROLL for (int i = 0; i < 4; ++i) x[i] = F{a[i], b[i], c[i], d[i]};
  }

  // Lanes whose index base + lane is in [lo, hi) keep x, the others become `outside`.
  static F keep_range(F x, int base, int lo, int hi, F outside) {
    const I index = I{0, 1, 2, 3} + base;
    return ((index >= lo) & (index < hi)) ? x : outside;
  }  // Below, 2^floor is made a zero.
  static F clamp_exponent(F x) { return max(set1(-126.5f), x); }
  // floor(x); for a whole number x possibly x - 1.
  static F floor(F x) { return (x - 0.5f + 0x1.8p23f) - 0x1.8p23f; }
  static F fraction(F x) { return x - floor(x); }
  // p * 2^floor(x) for -126.5 <= x <= 127.
  static F scale_by_power(F p, F x) { return p * (F)(((I)(floor(x) + 0x1.8p23f) + 127) << 23); }

  static F load_bf16(const std::uint16_t* p) {
    return (F)(I{p[0] << 16, p[1] << 16, p[2] << 16, static_cast<std::int32_t>(p[3]) << 16});
  }
  static F load_f16(const std::uint16_t* p) {
    return F{half_to_float(p[0]), half_to_float(p[1]), half_to_float(p[2]), half_to_float(p[3])};
  }
  static void store_bf16(std::uint16_t* p, F x) {
    for (int i = 0; i < 4; ++i) p[i] = float_to_bfloat(x[i]);
  }
  static void store_f16(std::uint16_t* p, F x) {
    for (int i = 0; i < 4; ++i) p[i] = float_to_half(x[i]);
  }
  static F round_bf16(F x) {
    std::uint16_t bits[4];
    store_bf16(bits, x);
    return load_bf16(bits);
  }
};
