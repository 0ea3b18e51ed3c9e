// The kernels of one instruction set. Included inside an anonymous namespace of the target's own
// namespace, after scalar-inl.h and a simd_*-inl.h that defines Simd; the target then fills a
// KernelSet with Kernels<Words>. Layouts and contracts: kernels.hpp.
//
// Each score is one chain of multiply-adds along head_dim from 0 upwards, whatever tile it falls
// into: its bits depend on its q and k rows alone.

using F = Simd::F;
inline constexpr int kWidth = Simd::kWidth;
inline constexpr float kMinusInfinity = -__builtin_inff();
inline constexpr float kLog2E = 1.44269504088896341f;

// One fp32 number a word.
struct Float32Words {
  using Element = float;
  static constexpr int kElements = 1;
  static F multiply_add(F sum, F a, F b) { return Simd::fma(a, b, sum); }
  static void store(Element* p, F x) { Simd::store(p, x); }
  static Element from_float(float x) { return x; }
};

// 2^x for x <= 127; 0 for x below -126; NaN stays.
inline F exp2(F x) {
  // Minimax on [0, 1) with p(0) = 1, relative error 8.2e-8.
  const auto polynomial = [](F f) {
    F p = Simd::set1(0x1.e97516p-10f);
    p = Simd::fma(p, f, Simd::set1(0x1.27784ep-7f));
    p = Simd::fma(p, f, Simd::set1(0x1.c91ce8p-5f));
    p = Simd::fma(p, f, Simd::set1(0x1.ebdb56p-3f));
    p = Simd::fma(p, f, Simd::set1(0x1.62e4bap-1f));
    return Simd::fma(p, f, Simd::set1(1.0f));
  };
  x = Simd::clamp_exponent(x);
  return Simd::scale_by_power(polynomial(Simd::fraction(x)), x);
}

inline F tanh(F x) {
  const F magnitude = Simd::abs(x);
  // Small: the Taylor series to x^9. Others: (1 - e) / (1 + e) with e = exp(-2 |x|).
  const F square = Simd::mul(x, x);
  F series = Simd::set1(62.0f / 2835.0f);
  series = Simd::fma(series, square, Simd::set1(-17.0f / 315.0f));
  series = Simd::fma(series, square, Simd::set1(2.0f / 15.0f));
  series = Simd::fma(series, square, Simd::set1(-1.0f / 3.0f));
  series = Simd::fma(Simd::mul(series, square), x, x);
  const F exponent = Simd::max(Simd::set1(-40.0f), Simd::mul(magnitude, Simd::set1(-2 * kLog2E)));
  const F e = exp2(exponent);
  const F one = Simd::set1(1.0f);
  const F ratio = Simd::div(Simd::sub(one, e), Simd::add(one, e));
  const F zero = Simd::set1(0.0f);
  const F large = Simd::select_less(x, zero, Simd::sub(zero, ratio), ratio);
  return Simd::select_less(magnitude, Simd::set1(0.25f), series, large);
}

// Row r of the source as fp32, rounded to bf16 if asked.
inline void convert_row(const SourceRows& source, std::int64_t row, std::int64_t dim,
                        bool round_bf16, float* to) {
  std::int64_t d = 0;
  if (source.dtype == 0) {
    const float* from = static_cast<const float*>(source.data) + row * source.stride;
    for (; d + kWidth <= dim; d += kWidth) {
      const F x = Simd::load(from + d);
      Simd::store(to + d, round_bf16 ? Simd::round_bf16(x) : x);
    }
    for (; d < dim; ++d) to[d] = round_bf16 ? bfloat_to_float(float_to_bfloat(from[d])) : from[d];
    return;
  }
  const std::uint16_t* from = static_cast<const std::uint16_t*>(source.data) + row * source.stride;
  if (source.dtype == 1) {
    for (; d + kWidth <= dim; d += kWidth) {
      const F x = Simd::load_f16(from + d);
      Simd::store(to + d, round_bf16 ? Simd::round_bf16(x) : x);
    }
    for (; d < dim; ++d) {
      const float x = half_to_float(from[d]);
      to[d] = round_bf16 ? bfloat_to_float(float_to_bfloat(x)) : x;
    }
  } else {
    for (; d + kWidth <= dim; d += kWidth) Simd::store(to + d, Simd::load_bf16(from + d));
    for (; d < dim; ++d) to[d] = bfloat_to_float(from[d]);
  }
}

template <typename Words>
struct Kernels {
  using Element = typename Words::Element;
  static constexpr int kElements = Words::kElements;
  static constexpr int kMaxDim = 256;
  static constexpr int kCacheLine = 64;
  // Steps of a multiply-add loop in one go: every head_dim and every vector of keys is a multiple,
  // and a short loop is left without a mispredicted branch.
  static constexpr int kStepUnroll = 4;

  static void store_row(const float* from, std::int64_t count, Element* to) {
    std::int64_t d = 0;
    for (; d + kWidth <= count; d += kWidth) Words::store(to + d, Simd::load(from + d));
    for (; d < count; ++d) to[d] = Words::from_float(from[d]);
  }

  static void pack_q(const SourceRows& source, std::int64_t rows, std::int64_t dim, bool round_bf16,
                     void* words) {
    alignas(64) float row[kMaxDim];
    auto* to = static_cast<Element*>(words);
    for (std::int64_t r = 0; r < rows; ++r) {
      convert_row(source, r, dim, round_bf16, row);
      store_row(row, dim, to + r * dim);
    }
  }

  static void pack_k(const SourceRows& source, std::int64_t keys, std::int64_t dim, bool round_bf16,
                     void* words) {
    alignas(64) float row[kMaxDim];
    alignas(64) float group[kWidth][kMaxDim / kElements];  // as words
    const std::int64_t steps = dim / kElements;
    auto* to = static_cast<float*>(words);
    for (int first = 0; first < kPanelKeys; first += kWidth) {
      for (int i = 0; i < kWidth; ++i) {
        if (first + i < keys) {
          convert_row(source, first + i, dim, round_bf16, row);
          store_row(row, dim, reinterpret_cast<Element*>(group[i]));
        } else {
          __builtin_memset(group[i], 0, static_cast<std::size_t>(steps) * sizeof(float));
        }
      }
      std::int64_t step = 0;
      for (; step + kWidth <= steps; step += kWidth) {
        F tile[kWidth];
        BSFA_UNROLL for (int i = 0; i < kWidth; ++i) tile[i] = Simd::load(group[i] + step);
        Simd::transpose(tile);
        BSFA_UNROLL for (int i = 0; i < kWidth; ++i) {
          Simd::store(to + (step + i) * kPanelKeys + first, tile[i]);
        }
      }
      for (; step < steps; ++step) {
        for (int i = 0; i < kWidth; ++i) to[step * kPanelKeys + first + i] = group[i][step];
      }
    }
  }

  static bool pack_v(const SourceRows& source, std::int64_t first, std::int64_t last,
                     std::int64_t dim, std::int64_t padded_dim, bool round_bf16, void* words) {
    alignas(64) float row[kMaxDim];
    auto* to = static_cast<Element*>(words);
    std::uint32_t largest = 0;  // bits of the largest magnitude: NaN and infinity above all
    for (int key = 0; key < kPanelKeys; ++key) {
      std::int64_t filled = 0;
      if (key >= first && key < last) {
        convert_row(source, key, dim, round_bf16, row);
        for (; filled < dim; ++filled) {
          const std::uint32_t magnitude = bits_of_float(row[filled]) & 0x7fffffffu;
          largest = magnitude > largest ? magnitude : largest;
        }
      }
      for (; filled < padded_dim; ++filled) row[filled] = 0;
      if constexpr (kElements == 1) {
        store_row(row, padded_dim, to + key * padded_dim);
      } else {
        Element* pair = to + (key / 2) * padded_dim * 2 + key % 2;
        for (std::int64_t d = 0; d < padded_dim; ++d) pair[2 * d] = Words::from_float(row[d]);
      }
    }
    return largest >= 0x7f800000u;
  }

  // A tile of kRows x (kTileVectors vectors) scores from column `column` of the panel on; lanes
  // [kRows][kWidth] take the largest of each lane. Not inlined: what else lived in registers would
  // push the sums out of them.
  template <int kRows>
  [[gnu::noinline]] static Simd::NanFlags score_tile(const float* q, std::int64_t steps,
                                                     const float* k, int column, Upcoming* upcoming,
                                                     float* scores, float* lanes,
                                                     Simd::NanFlags nan) {
    constexpr int kVectors = Simd::kTileVectors;
    F sum[kRows][kVectors];
    BSFA_UNROLL for (int r = 0; r < kRows; ++r) {
      BSFA_UNROLL for (int v = 0; v < kVectors; ++v) sum[r][v] = Simd::set1(0.0f);
    }
    k += column;
    const char* ahead[2] = {upcoming->begin[0], upcoming->begin[1]};
    const char* const end[2] = {upcoming->end[0], upcoming->end[1]};
    for (std::int64_t first = 0; first < steps; first += kStepUnroll) {
      BSFA_UNROLL for (int i = 0; i < 2; ++i) {
        __builtin_prefetch(ahead[i], 0, 2);
        ahead[i] += ahead[i] < end[i] ? kCacheLine : 0;
      }
      BSFA_UNROLL for (int u = 0; u < kStepUnroll; ++u) {
        F b[kVectors];
        BSFA_UNROLL for (int v = 0; v < kVectors; ++v) {
          b[v] = Simd::load(k + (first + u) * kPanelKeys + v * kWidth);
        }
        BSFA_UNROLL for (int r = 0; r < kRows; ++r) {
          const F a = Simd::set1(q[r * steps + first + u]);
          BSFA_UNROLL for (int v = 0; v < kVectors; ++v) {
            sum[r][v] = Words::multiply_add(sum[r][v], a, b[v]);
          }
        }
      }
    }
    upcoming->begin[0] = ahead[0];
    upcoming->begin[1] = ahead[1];
    scores += column;
    BSFA_UNROLL for (int r = 0; r < kRows; ++r) {
      F largest = Simd::max(sum[r][0], sum[r][1]);
      nan = Simd::note_nan(nan, sum[r][0], sum[r][1]);
      BSFA_UNROLL for (int v = 2; v < kVectors; v += 2) {
        nan = Simd::note_nan(nan, sum[r][v], sum[r][v + 1]);
        largest = Simd::max(Simd::max(sum[r][v], sum[r][v + 1]), largest);
      }
      if (column > 0) largest = Simd::max(largest, Simd::load(lanes + r * kWidth));
      Simd::store(lanes + r * kWidth, largest);
      BSFA_UNROLL for (int v = 0; v < kVectors; ++v) {
        Simd::store(scores + r * kPanelKeys + v * kWidth, sum[r][v]);
      }
    }
    return nan;
  }

  // Calls body.template operator()<kRows>(row) for tiles that cover [begin, end): as few as kMost
  // allows, their heights differing by at most one, so that none is too low to hide its latency.
  template <int kMost, typename Body>
  static void for_row_tiles(int begin, int end, Body&& body) {
    int tiles = (end - begin + kMost - 1) / kMost;
    for (int row = begin; row < end; --tiles) {
      const int rows = (end - row + tiles - 1) / tiles;
      dispatch<kMost>(rows, row, body);
      row += rows;
    }
  }

  template <int kRows, typename Body>
  static void dispatch(int rows, int row, Body&& body) {
    if (rows == kRows) {
      body.template operator()<kRows>(row);
    } else if constexpr (kRows > 1) {
      dispatch<kRows - 1>(rows, row, body);
    }
  }

  // row_max[r] = the largest lane of lanes[r], for all kMaxRows rows; returns the largest of all.
  static float reduce_rows(const float (&lanes)[kMaxRows][kWidth], float* row_max) {
    F largest = Simd::set1(kMinusInfinity);
    for (int r = 0; r < kMaxRows; r += kWidth) {
      F x[kWidth];
      BSFA_UNROLL for (int i = 0; i < kWidth; ++i) x[i] = Simd::load(lanes[r + i]);
      Simd::transpose(x);
      BSFA_UNROLL for (int i = 1; i < kWidth; ++i) x[0] = Simd::max(x[i], x[0]);
      Simd::store(row_max + r, x[0]);
      largest = Simd::max(x[0], largest);
    }
    return Simd::reduce_max(largest);
  }

  static BlockStatistic scores(const void* q, const void* k, std::int64_t steps, int row_begin,
                               int row_end, const Upcoming& upcoming, float* scores,
                               float* row_max) {
    Upcoming ahead = upcoming;
    Simd::NanFlags nan = Simd::no_nan();
    alignas(64) float lanes[kMaxRows][kWidth];
    const F nothing = Simd::set1(kMinusInfinity);
    for (int r = 0; r < row_begin; ++r) Simd::store(lanes[r], nothing);
    for (int r = row_end; r < kMaxRows; ++r) Simd::store(lanes[r], nothing);
    for_row_tiles<Simd::kTileRows>(row_begin, row_end, [&]<int kRows>(int row) {
      for (int column = 0; column < kPanelKeys; column += Simd::kTileVectors * kWidth) {
        nan = score_tile<kRows>(static_cast<const float*>(q) + row * steps, steps,
                                static_cast<const float*>(k), column, &ahead,
                                scores + row * kPanelKeys, lanes[row], nan);
      }
    });
    return {reduce_rows(lanes, row_max), Simd::any_nan(nan)};
  }

  static BlockStatistic mask(int row_begin, int row_end, const int* lo, const int* hi, float scale,
                             float softcap, float* scores, float* row_max) {
    Simd::NanFlags nan = Simd::no_nan();
    F block_max = Simd::set1(kMinusInfinity);
    const F outside = block_max;
    for (int r = row_begin; r < row_end; ++r) {
      F largest = Simd::set1(kMinusInfinity);
      for (int c = 0; c < kPanelKeys; c += kWidth) {
        float* at = scores + r * kPanelKeys + c;
        F x = Simd::mul(Simd::load(at), Simd::set1(scale));
        if (softcap > 0) {
          x = Simd::mul(tanh(Simd::div(x, Simd::set1(softcap))), Simd::set1(softcap));
        }
        x = Simd::keep_range(x, c, lo[r], hi[r], outside);
        nan = Simd::note_nan(nan, x, x);
        largest = Simd::max(x, largest);
        Simd::store(at, x);
      }
      row_max[r] = Simd::reduce_max(largest);
      block_max = Simd::max(largest, block_max);
    }
    return {Simd::reduce_max(block_max), Simd::any_nan(nan)};
  }

  static float mass(int rows, const float* row_max, const float* other_max, float scale_log2,
                    const float* reference, const float* factor) {
    const F scale = Simd::set1(scale_log2);
    const F most = Simd::set1(127.0f);  // enough to keep any block
    const F minus_infinity = Simd::set1(kMinusInfinity);
    const F zero = Simd::set1(0.0f);
    F total = zero;
    for (int r = 0; r < rows; r += kWidth) {
      const F largest = Simd::max(Simd::load(row_max + r), Simd::load(other_max + r));
      const F exponent = Simd::mul(Simd::sub(largest, Simd::load(reference + r)), scale);
      const F bounded = Simd::select_less(exponent, most, exponent, most);
      const F term = Simd::mul(exp2(bounded), Simd::load(factor + r));
      total = Simd::add(total, Simd::select_less(minus_infinity, largest, term, zero));
    }
    return Simd::reduce_add(total);
  }

  static void weight_sums(int rows, const float* scores, const float* row_max, float scale_log2,
                          float* sums) {
    const F scale = Simd::set1(scale_log2);
    for (int r = 0; r < rows; ++r) {
      if (row_max[r] == kMinusInfinity) {
        sums[r] = 0;
        continue;
      }
      const F largest = Simd::set1(row_max[r]);
      F sum = Simd::set1(0.0f);
      for (int c = 0; c < kPanelKeys; c += kWidth) {
        const F x = Simd::load(scores + r * kPanelKeys + c);
        sum = Simd::add(sum, exp2(Simd::mul(Simd::sub(x, largest), scale)));
      }
      sums[r] = Simd::reduce_add(sum);
    }
  }

  // A reference is raised only by so much that weights halve at least: each raise rounds what was
  // summed before, and of many small ones the errors would add up.
  static void softmax_step(int row_begin, int row_end, const float* row_max, float scale_log2,
                           const SoftmaxState& state) {
    const F scale = Simd::set1(scale_log2);
    const F halving = Simd::set1(-1.0f);
    const F minus_infinity = Simd::set1(kMinusInfinity);
    for (int r = row_begin / kWidth * kWidth; r < row_end; r += kWidth) {
      const F before = Simd::load(state.reference + r);
      const F largest = Simd::load(row_max + r);
      const F shrink = Simd::mul(Simd::sub(before, largest), scale);
      const F after = Simd::select_less(shrink, halving, largest, before);
      // A row that has seen nothing yet: any finite number does, its weights are all 0.
      const F safe = Simd::select_less(minus_infinity, after, after, Simd::set1(0.0f));
      Simd::store(state.reference + r, after);
      Simd::store(state.subtract + r, safe);
      Simd::store(state.rescale + r, exp2(Simd::mul(Simd::sub(before, safe), scale)));
    }
  }

  // out[kRows][kVectors vectors] = out * rescale + weights . v
  template <int kRows, int kVectors>
  [[gnu::noinline]] static void value_tile(const float* weights, const float* v,
                                           std::int64_t padded_dim, int step_begin, int step_end,
                                           const float* rescale, float* out) {
    F sum[kRows][kVectors];
    BSFA_UNROLL for (int r = 0; r < kRows; ++r) {
      BSFA_UNROLL for (int i = 0; i < kVectors; ++i) sum[r][i] = Simd::set1(0.0f);
    }
    for (int first = step_begin; first < step_end; first += kStepUnroll) {
      BSFA_UNROLL for (int u = 0; u < kStepUnroll; ++u) {
        F b[kVectors];
        BSFA_UNROLL for (int i = 0; i < kVectors; ++i) {
          b[i] = Simd::load(v + (first + u) * padded_dim + i * kWidth);
        }
        BSFA_UNROLL for (int r = 0; r < kRows; ++r) {
          const F a = Simd::set1(weights[r * (kPanelKeys / kElements) + first + u]);
          BSFA_UNROLL for (int i = 0; i < kVectors; ++i) {
            sum[r][i] = Words::multiply_add(sum[r][i], a, b[i]);
          }
        }
      }
    }
    BSFA_UNROLL for (int r = 0; r < kRows; ++r) {
      const F factor = Simd::set1(rescale[r]);
      BSFA_UNROLL for (int i = 0; i < kVectors; ++i) {
        float* at = out + r * padded_dim + i * kWidth;
        Simd::store(at, Simd::fma(Simd::load(at), factor, sum[r][i]));
      }
    }
  }

  template <int kRows, int kVectors = Simd::kTileVectors>
  static void value_columns(int vectors, const float* weights, const float* v,
                            std::int64_t padded_dim, int step_begin, int step_end,
                            const float* rescale, float* out) {
    if (vectors == kVectors) {
      value_tile<kRows, kVectors>(weights, v, padded_dim, step_begin, step_end, rescale, out);
    } else if constexpr (kVectors > 1) {
      value_columns<kRows, kVectors - 1>(vectors, weights, v, padded_dim, step_begin, step_end,
                                         rescale, out);
    }
  }

  static void add_values(int row_begin, int row_end, int key_begin, int key_end,
                         const float* scores, float scale_log2, const void* v,
                         const SoftmaxState& state) {
    const F scale = Simd::set1(scale_log2);
    // Weights exist for whole vectors of keys, so also for the steps that rounding adds.
    constexpr int kUnit = kStepUnroll * kElements > kWidth ? kStepUnroll * kElements : kWidth;
    key_begin = key_begin / kUnit * kUnit;
    key_end = (key_end + kUnit - 1) / kUnit * kUnit;
    const int step_begin = key_begin / kElements;
    const int step_end = key_end / kElements;
    const std::int64_t padded = state.padded_dim_v;
    for_row_tiles<Simd::kTileRows>(row_begin, row_end, [&]<int kRows>(int row) {
      alignas(64) Element weights[kRows][kPanelKeys];
      for (int r = 0; r < kRows; ++r) {
        const F reference = Simd::set1(state.subtract[row + r]);
        F sum = Simd::set1(0.0f);
        for (int c = key_begin; c < key_end; c += kWidth) {
          const F x = Simd::load(scores + (row + r) * kPanelKeys + c);
          // Subtracted before it is scaled: of large scores a product would be rounded by more
          // than weights differ.
          const F weight = exp2(Simd::mul(Simd::sub(x, reference), scale));
          sum = Simd::add(sum, weight);
          Words::store(weights[r] + c, weight);
        }
        float* total = state.sum + (row + r) * kMaxLanes;
        const F rescale = Simd::set1(state.rescale[row + r]);
        Simd::store(total, Simd::fma(Simd::load(total), rescale, sum));
      }
      const auto* words = reinterpret_cast<const float*>(&weights[0][0]);
      int left = static_cast<int>(padded / kWidth);
      int tiles = (left + Simd::kTileVectors - 1) / Simd::kTileVectors;
      for (std::int64_t column = 0; left > 0; --tiles) {
        const int vectors = (left + tiles - 1) / tiles;
        value_columns<kRows>(vectors, words, static_cast<const float*>(v) + column, padded,
                             step_begin, step_end, state.rescale + row,
                             state.out + row * padded + column);
        column += vectors * kWidth;
        left -= vectors;
      }
    });
  }

  // total = total * rescale + part exactly, but for the rounding of total, which stays in part.
  static void carry_row(bool first, F rescale, std::int64_t count, float* part, float* total) {
    const F zero = Simd::set1(0.0f);
    const F infinity = Simd::set1(-kMinusInfinity);
    for (std::int64_t d = 0; d < count; d += kWidth) {
      const F old = first ? zero : Simd::load(total + d);
      const F add = Simd::load(part + d);
      const F kept = Simd::mul(old, rescale);
      const F sum = Simd::add(kept, add);
      const F added = Simd::sub(sum, kept);
      const F lost = Simd::add(Simd::sub(kept, Simd::sub(sum, added)), Simd::sub(add, added));
      Simd::store(total + d, sum);
      Simd::store(part + d, Simd::select_less(Simd::abs(sum), infinity, lost, zero));
    }
  }

  static void carry(int rows, bool first, float scale_log2, const SoftmaxState& state) {
    const F scale = Simd::set1(scale_log2);
    for (int r = 0; r < rows; r += kWidth) {
      const F rise =
          Simd::sub(Simd::load(state.total_reference + r), Simd::load(state.subtract + r));
      Simd::store(state.rescale + r, first ? Simd::set1(0.0f) : exp2(Simd::mul(rise, scale)));
      Simd::store(state.total_reference + r, Simd::load(state.reference + r));
    }
    const std::int64_t dim = state.padded_dim_v;
    for (int r = 0; r < rows; ++r) {
      const F rescale = Simd::set1(state.rescale[r]);
      carry_row(first, rescale, kMaxLanes, state.sum + r * kMaxLanes,
                state.total_sum + r * kMaxLanes);
      carry_row(first, rescale, dim, state.out + r * dim, state.total_out + r * dim);
    }
  }

  static void finish(int rows, std::int64_t dim, float scale, const SoftmaxState& state,
                     const float* sink, void* data, std::int64_t stride, int dtype, float* lse,
                     std::int64_t lse_stride) {
    for (int r = 0; r < rows; ++r) {
      double reference = static_cast<double>(state.reference[r]) * static_cast<double>(scale);
      double total = static_cast<double>(Simd::reduce_add(Simd::load(state.sum + r * kMaxLanes)));
      double rescale = 1;
      if (sink != nullptr) {
        const double logit = static_cast<double>(*sink);
        const double top = logit > reference ? logit : reference;
        const double safe = top == static_cast<double>(kMinusInfinity) ? 0.0 : top;
        rescale = __builtin_exp(reference - safe);
        total = total * rescale + __builtin_exp(logit - safe);
        reference = top;
      }
      const bool empty = total == 0.0;  // no kept key: at least one weight would be 1
      const float factor = empty ? 0.0f : static_cast<float>(rescale / total);
      if (lse != nullptr) {
        lse[r * lse_stride] =
            empty ? kMinusInfinity : static_cast<float>(reference + __builtin_log(total));
      }
      const float* out = state.out + r * state.padded_dim_v;
      const F inverse = Simd::set1(factor);
      std::int64_t d = 0;
      if (dtype == 0) {
        float* to = static_cast<float*>(data) + r * stride;
        for (; d + kWidth <= dim; d += kWidth) {
          Simd::store(to + d, Simd::mul(Simd::load(out + d), inverse));
        }
        for (; d < dim; ++d) to[d] = out[d] * factor;
        continue;
      }
      std::uint16_t* to = static_cast<std::uint16_t*>(data) + r * stride;
      for (; d + kWidth <= dim; d += kWidth) {
        const F x = Simd::mul(Simd::load(out + d), inverse);
        if (dtype == 1) {
          Simd::store_f16(to + d, x);
        } else {
          Simd::store_bf16(to + d, x);
        }
      }
      for (; d < dim; ++d) {
        to[d] = dtype == 1 ? float_to_half(out[d] * factor) : float_to_bfloat(out[d] * factor);
      }
    }
  }

  static constexpr KernelSet set(const char* name) {
    return {name, 2 / kElements, pack_q,       pack_k,     pack_v, scores, mask,
            mass, weight_sums,   softmax_step, add_values, carry,  finish};
  }
};
