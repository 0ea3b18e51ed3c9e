// AVX2 with FMA and F16C. Included by one translation unit inside its target namespace.

struct Simd {
  using F = __m256;
  static constexpr int kWidth = 8;
  static constexpr int kTileRows = 6;
  static constexpr int kTileVectors = 2;

  static F load(const float* p) { return _mm256_loadu_ps(p); }
  static void store(float* p, F x) { _mm256_storeu_ps(p, x); }
  static F set1(float x) { return _mm256_set1_ps(x); }
  static F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  static F add(F a, F b) { return _mm256_add_ps(a, b); }
  static F sub(F a, F b) { return _mm256_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm256_mul_ps(a, b); }
  static F div(F a, F b) { return _mm256_div_ps(a, b); }
  // b if either is NaN.
  static F max(F a, F b) { return _mm256_max_ps(a, b); }
  static F abs(F a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
  static F select_less(F a, F b, F if_less, F otherwise) {
    return _mm256_blendv_ps(otherwise, if_less, _mm256_cmp_ps(a, b, _CMP_LT_OQ));
  }
  static float reduce_max(F x) {
    __m128 y = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    y = _mm_max_ps(y, _mm_movehl_ps(y, y));
    return _mm_cvtss_f32(_mm_max_ss(y, _mm_movehdup_ps(y)));
  }
  static float reduce_add(F x) {
    __m128 y = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    y = _mm_add_ps(y, _mm_movehl_ps(y, y));
    return _mm_cvtss_f32(_mm_add_ss(y, _mm_movehdup_ps(y)));
  }

  using NanFlags = __m256;
  static NanFlags no_nan() { return _mm256_setzero_ps(); }
  static NanFlags note_nan(NanFlags flags, F x, F y) {
    return _mm256_or_ps(flags, _mm256_cmp_ps(x, y, _CMP_UNORD_Q));
  }
  static bool any_nan(NanFlags flags) { return _mm256_movemask_ps(flags) != 0; }

  // Lane i of x[j] becomes lane j of x[i].
  static void transpose(F (&x)[kWidth]) {
    F y[kWidth];
    BSFA_UNROLL for (int i = 0; i < 8; i += 4) {
      const F low01 = _mm256_unpacklo_ps(x[i], x[i + 1]);
      const F high01 = _mm256_unpackhi_ps(x[i], x[i + 1]);
      const F low23 = _mm256_unpacklo_ps(x[i + 2], x[i + 3]);
      const F high23 = _mm256_unpackhi_ps(x[i + 2], x[i + 3]);
      y[i] = _mm256_shuffle_ps(low01, low23, 0x44);
      y[i + 1] = _mm256_shuffle_ps(low01, low23, 0xee);
      y[i + 2] = _mm256_shuffle_ps(high01, high23, 0x44);
      y[i + 3] = _mm256_shuffle_ps(high01, high23, 0xee);
    }
    BSFA_UNROLL for (int c = 0; c < 4; ++c) {
      x[c] = _mm256_permute2f128_ps(y[c], y[4 + c], 0x20);
      x[4 + c] = _mm256_permute2f128_ps(y[c], y[4 + c], 0x31);
    }
  }

  // Lanes whose index base + lane is in [lo, hi) keep x, the others become `outside`.
  static F keep_range(F x, int base, int lo, int hi, F outside) {
    const __m256i index =
        _mm256_add_epi32(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm256_set1_epi32(base));
    const __m256i inside = _mm256_and_si256(_mm256_cmpgt_epi32(index, _mm256_set1_epi32(lo - 1)),
                                            _mm256_cmpgt_epi32(_mm256_set1_epi32(hi), index));
    return _mm256_blendv_ps(outside, x, _mm256_castsi256_ps(inside));
  }

  // Below, 2^floor is made a zero.
  static F clamp_exponent(F x) { return _mm256_max_ps(_mm256_set1_ps(-126.5f), x); }
  static F fraction(F x) { return _mm256_sub_ps(x, _mm256_floor_ps(x)); }
  // p * 2^floor(x) for -126.5 <= x <= 127.
  static F scale_by_power(F p, F x) {
    const __m256i exponent =
        _mm256_add_epi32(_mm256_cvtps_epi32(_mm256_floor_ps(x)), _mm256_set1_epi32(127));
    return _mm256_mul_ps(p, _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23)));
  }

  static F load_bf16(const std::uint16_t* p) {
    const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
  }
  static F load_f16(const std::uint16_t* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  // Rounds to nearest even; a NaN keeps its upper half and becomes quiet.
  static __m256i round_bits(F x) {
    const __m256i bits = _mm256_castps_si256(x);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded =
        _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    return _mm256_blendv_epi8(rounded, quiet, is_nan);
  }
  static F round_bf16(F x) {
    return _mm256_castsi256_ps(
        _mm256_and_si256(round_bits(x), _mm256_set1_epi32(static_cast<int>(0xffff0000u))));
  }
  static void store_bf16(std::uint16_t* p, F x) {
    const __m256i high = _mm256_srli_epi32(round_bits(x), 16);
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(high, high), 0x08);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(packed));
  }
  static void store_f16(std::uint16_t* p, F x) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                     _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
};
