#include "kernel/problem.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdlib>
#include <new>
#include <random>

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
    const GateResult& gate) const {
  constexpr std::int64_t kSamples = 4;
  constexpr float kRounding = 1e-4F;  // of a score of order 1 in fp32, with room
  double worst = 0;
  for (std::int64_t sample = 0; sample < kSamples; ++sample) {
    const std::int64_t i = (q_blocks() - 1) * sample / (kSamples - 1);
    const std::int64_t head = (heads_q - 1) * sample / (kSamples - 1);
    const std::int64_t first = i * kQBlock;
    const std::int64_t rows = std::min(kQBlock, tokens - first);
    const std::int64_t keys = first + rows;
    const std::int64_t columns = (keys + kKvBlock - 1) / kKvBlock;

    // One query block of one head; q in fp32 (exactly what `dtype` holds), so that out is, too.
    std::vector<float> q(static_cast<std::size_t>(rows * head_dim));
    for (std::int64_t r = 0; r < rows; ++r) {
      for (std::int64_t d = 0; d < head_dim; ++d) {
        q[static_cast<std::size_t>(r * head_dim + d)] =
            load(q_.data(dtype), dtype, ((first + r) * heads_q + head) * head_dim + d);
      }
    }
    AttentionParams p = params(DType::kFloat32, dtype);
    p.backend = "reference";
    p.q = contiguous<const void*>(q.data(), DType::kFloat32, 1, rows, 1, head_dim);
    for (TensorView* operand : {&p.k, &p.v}) {
      operand->shape[1] = keys;
      operand->shape[2] = 1;
      operand->data = static_cast<const char*>(operand->data) +
                      head / (heads_q / heads_kv) * head_dim * dtype_size(dtype);
    }
    p.q_offset = first;
    std::vector<float> expected(q.size());
    p.out = contiguous<void*>(expected.data(), DType::kFloat32, 1, rows, 1, head_dim);
    std::vector<std::uint8_t> kept(static_cast<std::size_t>(columns));
    std::vector<float> block_max(kept.size());
    if (gate.thresholds != nullptr) {
      const float* thresholds = gate.thresholds + head * q_blocks();
      p.policy = Policy::threshold({thresholds, 1, q_blocks(), q_blocks(), 0, {}});
      p.kept_mask = {kept.data(), {1, 1, 1, columns}, {columns, columns, columns, 1}};
      p.block_max = {block_max.data(), {1, 1, 1, columns}, {columns, columns, columns, 1}};
    }
    attention_forward(p);

    if (gate.thresholds != nullptr) {
      const float threshold = gate.thresholds[head * q_blocks() + i];
      const std::uint8_t* got = gate.kept_mask + (head * q_blocks() + i) * kv_blocks();
      bool on_the_edge = false;
      for (std::int64_t j = 0; j < columns; ++j) {
        const auto c = static_cast<std::size_t>(j);
        if (kept[c] == got[j]) continue;
        if (!(std::abs(block_max[c] - threshold) <= kRounding)) return HUGE_VAL;
        on_the_edge = true;
      }
      if (on_the_edge) continue;  // both decisions are right, and their outputs differ
    }
    for (std::int64_t r = 0; r < rows; ++r) {
      double largest = 0;
      double difference = 0;
      for (std::int64_t d = 0; d < head_dim; ++d) {
        const double reference = expected[static_cast<std::size_t>(r * head_dim + d)];
        const double got = out(first + r, head, d);
        if (!std::isfinite(got)) return HUGE_VAL;
        largest = std::max(largest, std::abs(reference));
        difference = std::max(difference, std::abs(got - reference));
      }
      worst = std::max(worst, difference / largest);
    }
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

}  // namespace bsfa::bench
