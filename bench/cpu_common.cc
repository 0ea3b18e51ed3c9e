#include "cpu_common.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdlib>
#include <new>
#include <random>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace bsfa::bench {
namespace {

constexpr std::int64_t kQBlock = 128;
constexpr std::int64_t kKvBlock = 64;

std::uint16_t to_bf16(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  return static_cast<std::uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

// For normal numbers that fit, as the generated ones do.
std::uint16_t to_f16(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  const auto sign = static_cast<std::uint16_t>((bits >> 16) & 0x8000u);
  if (magnitude < 0x38800000u) return sign;
  return static_cast<std::uint16_t>(
      sign | ((magnitude + 0xfffu + ((magnitude >> 13) & 1u) - 0x38000000u) >> 13));
}

float from_f16(std::uint16_t half) {
  const std::uint32_t sign = static_cast<std::uint32_t>(half & 0x8000u) << 16;
  const std::uint32_t magnitude = half & 0x7fffu;
  if (magnitude == 0) return std::bit_cast<float>(sign);
  return std::bit_cast<float>(sign | ((magnitude << 13) + 0x38000000u));
}

#if defined(__x86_64__)
// Twelve independent chains, so that latency does not count. Inline assembly: a compiler would
// find out that nothing depends on the result.
#define BSFA_CHAINS(instruction, reg)                                                        \
  instruction " %%" reg "30, %%" reg "31, %%" reg "0\n\t" instruction " %%" reg "30, %%" reg \
              "31, %%" reg "1\n\t" instruction " %%" reg "30, %%" reg "31, %%" reg           \
              "2\n\t" instruction " %%" reg "30, %%" reg "31, %%" reg "3\n\t" instruction    \
              " %%" reg "30, %%" reg "31, %%" reg "4\n\t" instruction " %%" reg "30, %%" reg \
              "31, %%" reg "5\n\t" instruction " %%" reg "30, %%" reg "31, %%" reg           \
              "6\n\t" instruction " %%" reg "30, %%" reg "31, %%" reg "7\n\t" instruction    \
              " %%" reg "30, %%" reg "31, %%" reg "8\n\t" instruction " %%" reg "30, %%" reg \
              "31, %%" reg "9\n\t" instruction " %%" reg "30, %%" reg "31, %%" reg           \
              "10\n\t" instruction " %%" reg "30, %%" reg "31, %%" reg "11\n\t"
#define BSFA_ZMM_CLOBBERS                                                                  \
  "zmm0", "zmm1", "zmm2", "zmm3", "zmm4", "zmm5", "zmm6", "zmm7", "zmm8", "zmm9", "zmm10", \
      "zmm11", "zmm30", "zmm31"

constexpr long kLoops = 400000;

__attribute__((target("avx512f"))) void fp32_chains() {
  asm volatile("vpxorq %%zmm30, %%zmm30, %%zmm30\n\tvpxorq %%zmm31, %%zmm31, %%zmm31" ::
                   : "zmm30", "zmm31");
  for (long i = 0; i < kLoops; ++i) {
    asm volatile(BSFA_CHAINS("vfmadd231ps", "zmm")::: BSFA_ZMM_CLOBBERS);
  }
}

__attribute__((target("avx512f,avx512bf16"))) void bf16_chains() {
  asm volatile("vpxorq %%zmm30, %%zmm30, %%zmm30\n\tvpxorq %%zmm31, %%zmm31, %%zmm31" ::
                   : "zmm30", "zmm31");
  for (long i = 0; i < kLoops; ++i) {
    asm volatile(BSFA_CHAINS("vdpbf16ps", "zmm")::: BSFA_ZMM_CLOBBERS);
  }
}

__attribute__((target("avx2,fma"))) void avx2_chains() {
  for (long i = 0; i < kLoops; ++i) {
    asm volatile(
        "vfmadd231ps %%ymm14, %%ymm15, %%ymm0\n\tvfmadd231ps %%ymm14, %%ymm15, %%ymm1\n\t"
        "vfmadd231ps %%ymm14, %%ymm15, %%ymm2\n\tvfmadd231ps %%ymm14, %%ymm15, %%ymm3\n\t"
        "vfmadd231ps %%ymm14, %%ymm15, %%ymm4\n\tvfmadd231ps %%ymm14, %%ymm15, %%ymm5\n\t"
        "vfmadd231ps %%ymm14, %%ymm15, %%ymm6\n\tvfmadd231ps %%ymm14, %%ymm15, %%ymm7\n\t"
        "vfmadd231ps %%ymm14, %%ymm15, %%ymm8\n\tvfmadd231ps %%ymm14, %%ymm15, %%ymm9\n\t"
        "vfmadd231ps %%ymm14, %%ymm15, %%ymm10\n\tvfmadd231ps %%ymm14, %%ymm15, %%ymm11\n\t" ::
            : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9",
              "xmm10", "xmm11");
  }
}
#endif

}  // namespace

AlignedMemory::~AlignedMemory() { std::free(data_); }

void AlignedMemory::reserve(std::size_t bytes) {
  if (bytes <= bytes_) return;
  std::free(data_);
  bytes_ = (bytes + 255) / 256 * 256;
  data_ = std::aligned_alloc(256, bytes_);
  if (data_ == nullptr) throw std::bad_alloc();
}

float load(const void* data, DType dtype, std::int64_t index) {
  if (dtype == DType::kFloat32) return static_cast<const float*>(data)[index];
  const std::uint16_t bits = static_cast<const std::uint16_t*>(data)[index];
  if (dtype == DType::kFloat16) return from_f16(bits);
  return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
}

const void* CausalProblem::Operand::data(DType dtype) const {
  if (dtype == DType::kFloat32) return f32.data();
  return dtype == DType::kFloat16 ? f16.data() : bf16.data();
}

CausalProblem::CausalProblem(std::int64_t q_heads, std::int64_t kv_heads, std::int64_t dim,
                             std::int64_t num_tokens)
    : heads_q(q_heads), heads_kv(kv_heads), head_dim(dim), tokens(num_tokens) {
  std::mt19937_64 random(42);
  std::normal_distribution<float> normal;
  for (Operand* operand : {&q_, &k_, &v_}) {
    const std::int64_t heads = operand == &q_ ? heads_q : heads_kv;
    const auto count = static_cast<std::size_t>(tokens * heads * head_dim);
    operand->f32.resize(count);
    operand->f16.resize(count);
    operand->bf16.resize(count);
    for (std::size_t i = 0; i < count; ++i) {
      const float x = normal(random);
      operand->f32[i] = x;
      operand->f16[i] = to_f16(x);
      operand->bf16[i] = to_bf16(x);
    }
  }
}

AttentionParams CausalProblem::params(DType q, DType kv) const {
  AttentionParams p;
  p.q = contiguous<const void*>(q_.data(q), q, 1, tokens, heads_q, head_dim);
  p.k = contiguous<const void*>(k_.data(kv), kv, 1, tokens, heads_kv, head_dim);
  p.v = contiguous<const void*>(v_.data(kv), kv, 1, tokens, heads_kv, head_dim);
  p.causal = true;
  p.backend = "cpu";
  return p;
}

double CausalProblem::error_of(
    const std::function<float(std::int64_t, std::int64_t, std::int64_t)>& out, DType dtype,
    const std::uint8_t* kept_mask, std::int64_t kv_blocks) const {
  double worst = 0;
  const std::int64_t q_blocks = (tokens + kQBlock - 1) / kQBlock;
  for (int sample = 0; sample < 24; ++sample) {
    const std::int64_t t = sample == 0 ? 0 : (tokens - 1) * sample / 23;
    const std::int64_t h = sample % heads_q;
    const std::int64_t kv_head = h / (heads_q / heads_kv);
    const auto element = [&](const Operand& operand, std::int64_t row, std::int64_t heads,
                             std::int64_t head, std::int64_t d) {
      return static_cast<double>(
          load(operand.data(dtype), dtype, (row * heads + head) * head_dim + d));
    };
    std::vector<double> weights(static_cast<std::size_t>(t + 1), 0.0);
    double maximum = -HUGE_VAL;
    for (std::int64_t c = 0; c <= t; ++c) {
      double& score = weights[static_cast<std::size_t>(c)];
      if (kept_mask != nullptr &&
          kept_mask[(h * q_blocks + t / kQBlock) * kv_blocks + c / kKvBlock] == 0) {
        score = -HUGE_VAL;
        continue;
      }
      for (std::int64_t d = 0; d < head_dim; ++d) {
        score += element(q_, t, heads_q, h, d) * element(k_, c, heads_kv, kv_head, d);
      }
      score /= std::sqrt(static_cast<double>(head_dim));
      maximum = std::max(maximum, score);
    }
    double sum = 0;
    std::vector<double> expected(static_cast<std::size_t>(head_dim), 0.0);
    for (std::int64_t c = 0; c <= t; ++c) {
      const double weight = std::exp(weights[static_cast<std::size_t>(c)] - maximum);
      sum += weight;
      for (std::int64_t d = 0; d < head_dim; ++d) {
        expected[static_cast<std::size_t>(d)] += weight * element(v_, c, heads_kv, kv_head, d);
      }
    }
    double largest = 0;
    double difference = 0;
    for (std::int64_t d = 0; d < head_dim; ++d) {
      const double reference = expected[static_cast<std::size_t>(d)] / sum;
      const double got = out(t, h, d);
      if (!std::isfinite(got)) return HUGE_VAL;
      largest = std::max(largest, std::abs(reference));
      difference = std::max(difference, std::abs(got - reference));
    }
    worst = std::max(worst, difference / largest);
  }
  return worst;
}

std::vector<float> quantile_thresholds(const std::vector<float>& block_max, std::int64_t heads,
                                       std::int64_t q_blocks, std::int64_t kv_blocks,
                                       double density) {
  std::vector<float> thresholds(static_cast<std::size_t>(heads * q_blocks));
  for (std::int64_t h = 0; h < heads; ++h) {
    for (std::int64_t i = 0; i < q_blocks; ++i) {
      const std::int64_t diagonal = i * kQBlock / kKvBlock;
      const float* row = &block_max[static_cast<std::size_t>((h * q_blocks + i) * kv_blocks)];
      std::vector<float> maxima(row, row + std::min(diagonal, kv_blocks));
      const double visible =
          static_cast<double>(std::min(kv_blocks, diagonal + kQBlock / kKvBlock));
      const auto keep = static_cast<std::int64_t>(
          std::llround(density * visible - (visible - static_cast<double>(maxima.size()))));
      std::sort(maxima.begin(), maxima.end(), std::greater<>());
      float& threshold = thresholds[static_cast<std::size_t>(h * q_blocks + i)];
      if (keep <= 0) {
        threshold = HUGE_VALF;
      } else if (keep >= static_cast<std::int64_t>(maxima.size())) {
        threshold = -HUGE_VALF;
      } else {
        const auto k = static_cast<std::size_t>(keep);
        threshold = 0.5f * (maxima[k - 1] + maxima[k]);
      }
    }
  }
  return thresholds;
}

Peak measure_peak() {
  Peak peak;
#if defined(__x86_64__)
  const auto best = [](void (*chains)(), double flops_per_instruction) {
    double seconds = HUGE_VAL;
    for (int i = 0; i < 15; ++i) seconds = std::min(seconds, seconds_of(chains));
    return static_cast<double>(kLoops) * 12 * flops_per_instruction / seconds * 1e-9;
  };
  if (__builtin_cpu_supports("avx512f")) {
    peak.fp32 = best(fp32_chains, 32);
  } else if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    peak.fp32 = best(avx2_chains, 16);
  }
  if (__builtin_cpu_supports("avx512bf16")) peak.bf16 = best(bf16_chains, 64);
#endif
  return peak;
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

}  // namespace bsfa::bench
