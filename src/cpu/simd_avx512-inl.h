// AVX-512 (F, BW, DQ, VL). Included by one translation unit inside its target namespace.

struct Simd {
  using F = __m512;
  static constexpr int kWidth = 16;
  static constexpr int kTileRows = 6;
  static constexpr int kTileVectors = 4;

  static F load(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, F x) { _mm512_storeu_ps(p, x); }
  static F set1(float x) { return _mm512_set1_ps(x); }
  static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static F add(F a, F b) { return _mm512_add_ps(a, b); }
  static F sub(F a, F b) { return _mm512_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F div(F a, F b) { return _mm512_div_ps(a, b); }
  // b if either is NaN.
  static F max(F a, F b) { return _mm512_max_ps(a, b); }
  static F abs(F a) { return _mm512_andnot_ps(_mm512_set1_ps(-0.0f), a); }
  static F select_less(F a, F b, F if_less, F otherwise) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), otherwise, if_less);
  }
  static float reduce_max(F x) { return _mm512_reduce_max_ps(x); }
  static float reduce_add(F x) { return _mm512_reduce_add_ps(x); }

  // A bit for each lane that has been a number all along: the masked compare accumulates for free.
  using NanFlags = __mmask16;
  static NanFlags no_nan() { return 0xffff; }
  static NanFlags note_nan(NanFlags flags, F x, F y) {
    return _mm512_mask_cmp_ps_mask(flags, x, y, _CMP_ORD_Q);
  }
  static bool any_nan(NanFlags flags) { return flags != 0xffff; }

  // Lane i of x[j] becomes lane j of x[i].
  static void transpose(F (&x)[kWidth]) {
    F y[kWidth];
    BSFA_UNROLL for (int i = 0; i < 16; i += 2) {
      y[i] = _mm512_unpacklo_ps(x[i], x[i + 1]);
      y[i + 1] = _mm512_unpackhi_ps(x[i], x[i + 1]);
    }
    // Each 128-bit part now holds two rows; then, of four rows, one column in each part.
    BSFA_UNROLL for (int i = 0; i < 16; i += 4) {
      BSFA_UNROLL for (int half = 0; half < 2; ++half) {
        const __m512d low = _mm512_castps_pd(y[i + half]);
        const __m512d high = _mm512_castps_pd(y[i + half + 2]);
        x[i + 2 * half] = _mm512_castpd_ps(_mm512_unpacklo_pd(low, high));
        x[i + 2 * half + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low, high));
      }
    }
    // x[4g + c] holds columns c, c + 4, c + 8, c + 12 of rows 4g..4g+3.
    BSFA_UNROLL for (int c = 0; c < 4; ++c) {
      const F even_low = _mm512_shuffle_f32x4(x[c], x[4 + c], 0x88);
      const F odd_low = _mm512_shuffle_f32x4(x[c], x[4 + c], 0xdd);
      const F even_high = _mm512_shuffle_f32x4(x[8 + c], x[12 + c], 0x88);
      const F odd_high = _mm512_shuffle_f32x4(x[8 + c], x[12 + c], 0xdd);
      y[c] = _mm512_shuffle_f32x4(even_low, even_high, 0x88);
      y[8 + c] = _mm512_shuffle_f32x4(even_low, even_high, 0xdd);
      y[4 + c] = _mm512_shuffle_f32x4(odd_low, odd_high, 0x88);
      y[12 + c] = _mm512_shuffle_f32x4(odd_low, odd_high, 0xdd);
    }
    BSFA_UNROLL for (int i = 0; i < 16; ++i) x[i] = y[i];
  }

  // Lanes whose index base + lane is in [lo, hi) keep x, the others become `outside`.
  static F keep_range(F x, int base, int lo, int hi, F outside) {
    const __m512i index =
        _mm512_add_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
                         _mm512_set1_epi32(base));
    const __mmask16 inside = _mm512_cmpge_epi32_mask(index, _mm512_set1_epi32(lo)) &
                             _mm512_cmplt_epi32_mask(index, _mm512_set1_epi32(hi));
    return _mm512_mask_blend_ps(inside, outside, x);
  }

  static F clamp_exponent(F x) { return x; }
  // x - floor(x) (0 for an infinite x), and p * 2^floor(x) (0 for x = -inf).
  static F fraction(F x) { return _mm512_reduce_ps(x, 0x09); }
  static F scale_by_power(F p, F x) { return _mm512_scalef_ps(p, x); }

  static F load_bf16(const std::uint16_t* p) {
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
  }
  static F load_f16(const std::uint16_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  // Rounds to nearest even; a NaN keeps its upper half and becomes quiet.
  static __m512i round_bits(F x) {
    const __m512i bits = _mm512_castps_si512(x);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded =
        _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    return _mm512_mask_or_epi32(rounded, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), bits,
                                _mm512_set1_epi32(0x400000));
  }
  static F round_bf16(F x) {
    return _mm512_castsi512_ps(
        _mm512_and_si512(round_bits(x), _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
  }
  static void store_bf16(std::uint16_t* p, F x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                        _mm512_cvtepi32_epi16(_mm512_srli_epi32(round_bits(x), 16)));
  }
  static void store_f16(std::uint16_t* p, F x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                        _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
};
