#include "harness.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>

#include "bsfa/backends.hpp"
#include "core/numeric.hpp"
#include "reference/oracle.hpp"

namespace bsfa::gpu_test {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

std::uint16_t encode(float value, DType dtype) {
  return dtype == DType::kFloat16 ? float16_from_float(value) : bfloat16_from_float(value);
}

float decode(std::uint16_t bits, DType dtype) {
  return dtype == DType::kFloat16 ? float_from_float16(bits) : float_from_bfloat16(bits);
}

template <typename T>
DeviceBuffer on_device(const std::vector<T>& values) {
  DeviceBuffer buffer(std::max<std::size_t>(1, values.size()) * sizeof(T));
  buffer.upload(values.data(), values.size() * sizeof(T));
  return buffer;
}

template <typename T>
std::vector<T> as(const std::vector<std::uint8_t>& bytes) {
  std::vector<T> values(bytes.size() / sizeof(T));
  std::memcpy(values.data(), bytes.data(), values.size() * sizeof(T));
  return values;
}

std::int64_t longest(const std::vector<std::int64_t>& lengths) {
  return *std::max_element(lengths.begin(), lengths.end());
}

std::int64_t total(const std::vector<std::int64_t>& lengths) {
  return std::accumulate(lengths.begin(), lengths.end(), std::int64_t{0});
}

std::vector<std::int32_t> offsets(const std::vector<std::int64_t>& lengths) {
  std::vector<std::int32_t> result = {0};
  for (const std::int64_t length : lengths) {
    result.push_back(result.back() + static_cast<std::int32_t>(length));
  }
  return result;
}

}  // namespace

std::vector<std::string> cuda_backends() {
  std::vector<std::string> names;
  for (const BackendInfo& info : backends()) {
    if (info.device == DeviceType::kCuda) names.push_back(info.name);
  }
  return names;
}

DeviceBuffer::DeviceBuffer(std::size_t bytes) : bytes_(bytes) {
  if (cudaMalloc(&data_, bytes) != cudaSuccess) throw std::bad_alloc();
  if (cudaMemset(data_, 0xff, bytes) != cudaSuccess) throw std::bad_alloc();
}

DeviceBuffer::~DeviceBuffer() { cudaFree(data_); }

void DeviceBuffer::upload(const void* from, std::size_t bytes) {
  if (bytes > 0) {
    EXPECT_EQ(cudaMemcpy(data_, from, bytes, cudaMemcpyHostToDevice), cudaSuccess);
  }
}

std::vector<std::uint8_t> DeviceBuffer::download() const {
  std::vector<std::uint8_t> bytes(bytes_);
  if (bytes_ > 0) {
    EXPECT_EQ(cudaMemcpy(bytes.data(), data_, bytes_, cudaMemcpyDeviceToHost), cudaSuccess);
  }
  return bytes;
}

Call::Tensor Call::make_tensor(std::int64_t batch, std::int64_t rows, std::int64_t heads) const {
  const std::int64_t dim = spec_.head_dim;
  Tensor t{};
  const std::int64_t shape[4] = {batch, rows, heads, dim};
  std::copy(shape, shape + 4, t.shape);
  t.stride[3] = 1;
  std::int64_t per_batch = 0;
  switch (spec_.layout) {
    case Layout::kTokens:
      t.stride[2] = dim;
      t.stride[1] = heads * dim;
      per_batch = rows * t.stride[1];
      break;
    case Layout::kHeads:
      t.stride[1] = dim;
      t.stride[2] = rows * dim;
      per_batch = heads * t.stride[2];
      break;
    case Layout::kGaps:
      t.offset = 8;
      t.stride[2] = dim + 8;
      t.stride[1] = heads * t.stride[2] + 16;
      per_batch = (rows + 3) * t.stride[1];
      break;
    case Layout::kUnaligned:
      t.offset = 3;
      t.stride[2] = dim + 1;
      t.stride[1] = heads * t.stride[2] + 5;
      per_batch = rows * t.stride[1] + 1;
      break;
  }
  t.stride[0] = per_batch;
  t.elements = static_cast<std::size_t>(t.offset + batch * per_batch + 64);
  t.host.assign(t.elements, 0xffff);  // NaN wherever nothing belongs
  t.device = DeviceBuffer(t.elements * 2);
  return t;
}

void Call::fill(Tensor* tensor, float scale, bool queries) {
  std::mt19937 random(spec_.seed * 7919 + static_cast<unsigned>(tensor->elements) +
                      (tensor == &v_ ? 1 : 0));
  std::normal_distribution<float> normal(0, scale);
  const SequenceLayout& layout = problem_.sequences;
  for (std::int64_t index = 0; index < layout.num_sequences; ++index) {
    const Sequence s = sequence_at(layout, index);
    const std::int64_t begin = queries ? s.q_begin : s.k_begin;
    const std::int64_t count = queries ? s.seqlen_q : s.seqlen_k;
    for (std::int64_t r = begin; r < begin + count; ++r) {
      for (std::int64_t head = 0; head < tensor->shape[2]; ++head) {
        for (std::int64_t d = 0; d < tensor->shape[3]; ++d) {
          float value = normal(random);
          if (spec_.negative_scores && tensor != &v_) {
            value = queries ? std::abs(value) : -std::abs(value);
          }
          tensor->host[static_cast<std::size_t>(tensor->offset + s.batch * tensor->stride[0] +
                                                r * tensor->stride[1] + head * tensor->stride[2] +
                                                d)] = encode(value, spec_.dtype);
        }
      }
    }
  }
}

Call::Call(const Case& spec) : spec_(spec) {
  const auto sequences = static_cast<std::int64_t>(spec.seqlens_q.size());
  const bool packed = spec.batch == Batch::kPacked;
  const std::int64_t rows_q = packed ? total(spec.seqlens_q) : longest(spec.seqlens_q);
  std::int64_t rows_k = packed ? total(spec.seqlens_k) : longest(spec.seqlens_k);
  if (spec.batch == Batch::kPadded) rows_k += 37;
  const std::int64_t batch = packed ? 1 : sequences;
  q_ = make_tensor(batch, rows_q, spec.heads_q);
  k_ = make_tensor(batch, rows_k, spec.heads_kv);
  v_ = make_tensor(batch, rows_k, spec.heads_kv);
  out_ = make_tensor(batch, rows_q, spec.heads_q);

  const auto view = [&](Tensor& t, const void* data) {
    TensorView result{static_cast<const std::uint16_t*>(data) + t.offset, spec.dtype, {}, {}};
    std::copy(t.shape, t.shape + 4, result.shape);
    std::copy(t.stride, t.stride + 4, result.stride);
    return result;
  };
  for (AttentionParams* p : {&host_, &device_}) {
    const bool on_host = p == &host_;
    const auto at = [&](Tensor& t) { return on_host ? t.host.data() : t.device.data(); };
    p->q = view(q_, at(q_));
    p->k = view(k_, at(k_));
    p->v = view(v_, at(v_));
    const TensorView out = view(out_, at(out_));
    p->out = {const_cast<void*>(out.data), spec.dtype, {}, {}};
    std::copy(out.shape, out.shape + 4, p->out.shape);
    std::copy(out.stride, out.stride + 4, p->out.stride);
    p->causal = spec.causal;
    p->q_offset = spec.q_offset;
    p->kv_offset = spec.kv_offset;
    p->window = spec.window;
    p->softcap = spec.softcap;
    if (spec.policy == PolicyKind::kSlidingWindow) {
      p->policy = Policy::sliding_window(spec.window_blocks);
    }
  }
  host_.device = {DeviceType::kCpu, 0};
  device_.device = {DeviceType::kCuda, 0};

  const auto array = [](const std::vector<std::int32_t>& values, DeviceBuffer* buffer,
                        const std::int32_t** host, const std::int32_t** device) {
    *buffer = on_device(values);
    *host = values.data();
    *device = static_cast<const std::int32_t*>(buffer->data());
  };
  if (packed) {
    cu_q_ = offsets(spec.seqlens_q);
    cu_k_ = offsets(spec.seqlens_k);
    array(cu_q_, &cu_q_device_, &host_.cu_seqlens_q, &device_.cu_seqlens_q);
    array(cu_k_, &cu_k_device_, &host_.cu_seqlens_k, &device_.cu_seqlens_k);
    for (AttentionParams* p : {&host_, &device_}) {
      p->num_sequences = sequences;
      p->max_seqlen_q = longest(spec.seqlens_q);
      p->max_seqlen_k = longest(spec.seqlens_k);
    }
  } else if (spec.batch == Batch::kPadded) {
    for (const std::int64_t length : spec.seqlens_k) {
      seqused_.push_back(static_cast<std::int32_t>(length));
    }
    array(seqused_, &seqused_device_, &host_.seqused_k, &device_.seqused_k);
    for (const std::int64_t padding : spec.leftpad) {
      leftpad_.push_back(static_cast<std::int32_t>(padding));
    }
    if (!leftpad_.empty()) {
      array(leftpad_, &leftpad_device_, &host_.leftpad_k, &device_.leftpad_k);
    }
  }
  for (const std::int64_t offset : spec.q_offsets) {
    q_offsets_.push_back(static_cast<std::int32_t>(offset));
  }
  if (!q_offsets_.empty()) {
    array(q_offsets_, &q_offsets_device_, &host_.q_offsets, &device_.q_offsets);
  }
  if (spec.sinks) {
    for (std::int64_t head = 0; head < spec.heads_q; ++head) {
      sinks_.push_back(0.5f * static_cast<float>(head) - 0.25f);
    }
    sinks_device_ = on_device(sinks_);
    host_.sinks = sinks_.data();
    device_.sinks = static_cast<const float*>(sinks_device_.data());
  }

  const Status status = make_problem(host_, &problem_);
  if (!status.ok()) throw Error(status);
  fill(&q_, 1.0f, true);
  fill(&k_, 1.0f, false);
  fill(&v_, 1.0f, false);
  if (spec.poison_score != 0) {
    const Sequence s = sequence_at(problem_.sequences, 0);
    k_.host[static_cast<std::size_t>(k_.offset + (s.k_begin + 3) * k_.stride[1])] =
        encode(spec.poison_score, spec.dtype);
  }
  for (Tensor* t : {&q_, &k_, &v_}) t->device.upload(t->host.data(), t->elements * 2);
  if (spec.policy == PolicyKind::kThreshold) place_thresholds();

  // Results. The statistics lie densely.
  const std::int64_t lse_shape[3] = {batch, spec.heads_q, rows_q};
  const std::int64_t count_shape[2] = {sequences, spec.heads_q};
  const std::int64_t cell_shape[4] = {sequences, spec.heads_q, problem_.q_blocks,
                                      problem_.kv_blocks};
  lse_elements_ = static_cast<std::size_t>(batch * spec.heads_q * rows_q);
  cells_ =
      static_cast<std::size_t>(sequences * spec.heads_q * problem_.q_blocks * problem_.kv_blocks);
  const auto counts = static_cast<std::size_t>(sequences * spec.heads_q);
  lse_ = DeviceBuffer(std::max<std::size_t>(1, lse_elements_) * 4);
  kept_ = DeviceBuffer(counts * 8);
  visible_ = DeviceBuffer(counts * 8);
  mask_ = DeviceBuffer(std::max<std::size_t>(1, cells_));
  maxima_ = DeviceBuffer(std::max<std::size_t>(1, cells_) * 4);
  const auto attach = [](auto* statistic, const DeviceBuffer& buffer, const auto& shape) {
    using Element = std::remove_pointer_t<decltype(statistic->data)>;
    statistic->data = static_cast<Element*>(buffer.data());
    std::copy(std::begin(shape), std::end(shape), statistic->shape);
    set_contiguous(statistic->shape, statistic->stride);
  };
  attach(&device_.lse, lse_, lse_shape);
  attach(&device_.kept_blocks, kept_, count_shape);
  attach(&device_.visible_blocks, visible_, count_shape);
  attach(&device_.kept_mask, mask_, cell_shape);
  if (spec.block_max) attach(&device_.block_max, maxima_, cell_shape);
}

// Each threshold stands between two block maxima of its row, as many above it as the density wants.
void Call::place_thresholds() {
  std::int64_t entries = spec_.table_blocks;
  const SequenceLayout& layout = problem_.sequences;
  if (entries == 0) {
    for (std::int64_t index = 0; index < layout.num_sequences; ++index) {
      entries = std::max(entries, q_block_range(sequence_at(layout, index), layout.block).end);
    }
  }
  entries = std::max<std::int64_t>(entries, 1);
  table_.assign(static_cast<std::size_t>(spec_.heads_q * entries), 0.0f);
  for (std::int64_t head = 0; head < spec_.heads_q; ++head) {
    // From the last sequence that reaches the entry.
    for (std::int64_t index = 0; index < layout.num_sequences; ++index) {
      const Sequence s = sequence_at(layout, index);
      const OracleHead dense = oracle_head(problem_, index, head, spec_.dtype);
      const std::int64_t first = first_q_block(s, layout.block);
      for (std::int64_t row = 0; row < dense.q_blocks; ++row) {
        std::vector<double> maxima;
        for (std::int64_t n = 0; n < dense.kv_blocks; ++n) {
          const double m = dense.block_max[static_cast<std::size_t>(row * dense.kv_blocks + n)];
          if (std::isfinite(m) &&
              !always_kept(first + row, n + layout.kv_offset / layout.block.kv, layout.block)) {
            maxima.push_back(m);
          }
        }
        std::sort(maxima.begin(), maxima.end(), std::greater<>());
        const auto keep =
            static_cast<std::size_t>(spec_.density * static_cast<double>(maxima.size()) + 0.5);
        float threshold = -1.0f;
        if (!maxima.empty()) {
          const double above = keep == 0 ? maxima[0] + 1 : maxima[keep - 1];
          const double below = keep == maxima.size() ? maxima.back() - 1 : maxima[keep];
          threshold = static_cast<float>((above + below) / 2);
        }
        if (spec_.extreme_heads && head < 2) threshold = head == 0 ? -kInfinity : kInfinity;
        const std::int64_t column = threshold_index(first + row, entries);
        table_[static_cast<std::size_t>(head * entries + column)] = threshold;
      }
    }
  }
  table_device_ = on_device(table_);
  ThresholdView table{table_.data(), spec_.heads_q, entries, entries, 0, {}};
  host_.policy = Policy::threshold(table);
  table.data = static_cast<const float*>(table_device_.data());
  device_.policy = Policy::threshold(table);
  const Status status = make_problem(host_, &problem_);
  if (!status.ok()) throw Error(status);
}

void Call::poison_results() {
  const auto poison = [](const DeviceBuffer& buffer, std::size_t bytes) {
    EXPECT_EQ(cudaMemset(buffer.data(), 0xff, bytes), cudaSuccess);
  };
  poison(out_.device, out_.elements * 2);
  poison(lse_, lse_elements_ * 4);
  poison(kept_, spec_.seqlens_q.size() * static_cast<std::size_t>(spec_.heads_q) * 8);
  poison(visible_, spec_.seqlens_q.size() * static_cast<std::size_t>(spec_.heads_q) * 8);
  poison(mask_, cells_);
  poison(maxima_, cells_ * 4);
}

std::vector<std::vector<std::uint8_t>> Call::results() const {
  return {out_.device.download(), lse_.download(),  kept_.download(),
          visible_.download(),    mask_.download(), maxima_.download()};
}

void Call::check() const {
  const auto got = results();
  for (std::int64_t index = 0; index < problem_.sequences.num_sequences; ++index) {
    for (std::int64_t head = 0; head < spec_.heads_q; ++head) {
      check_head(index, head, got);
      if (testing::Test::HasFailure()) return;
    }
  }
  // What lies between the rows of the output is not the call's to write.
  std::vector<bool> belongs(out_.elements, false);
  for (std::int64_t b = 0; b < out_.shape[0]; ++b) {
    for (std::int64_t r = 0; r < out_.shape[1]; ++r) {
      for (std::int64_t h = 0; h < out_.shape[2]; ++h) {
        for (std::int64_t d = 0; d < out_.shape[3]; ++d) {
          belongs[static_cast<std::size_t>(out_.offset + b * out_.stride[0] + r * out_.stride[1] +
                                           h * out_.stride[2] + d)] = true;
        }
      }
    }
  }
  const auto out = as<std::uint16_t>(got[0]);
  for (std::size_t i = 0; i < out.size(); ++i) {
    ASSERT_TRUE(belongs[i] || out[i] == 0xffff) << "element " << i << " outside the output";
  }
}

void Call::check_head(std::int64_t index, std::int64_t head,
                      const std::vector<std::vector<std::uint8_t>>& got) const {
  const auto out = as<std::uint16_t>(got[0]);
  const auto lse = as<float>(got[1]);
  const auto kept = as<std::int64_t>(got[2]);
  const auto visible = as<std::int64_t>(got[3]);
  const std::vector<std::uint8_t>& mask = got[4];
  const auto maxima = as<float>(got[5]);
  const SequenceLayout& layout = problem_.sequences;
  const Sequence s = sequence_at(layout, index);
  const std::int64_t q_blocks = problem_.q_blocks;
  const std::int64_t kv_blocks = problem_.kv_blocks;
  const auto where = [&](std::int64_t i, std::int64_t j) {
    return testing::Message() << "sequence " << index << " head " << head << " block (" << i << ", "
                              << j << ")";
  };

  // Decisions: exact outside the rounding band; and nothing is kept where nothing is visible.
  const OracleHead expected = oracle_head(problem_, index, head, spec_.dtype);
  const auto count = static_cast<std::size_t>(index * spec_.heads_q + head);
  std::vector<std::uint8_t> decisions(
      static_cast<std::size_t>(expected.q_blocks * expected.kv_blocks));
  std::int64_t kept_here = 0;
  const Sequence sequence = sequence_at(layout, index);
  for (std::int64_t i = 0; i < q_blocks; ++i) {
    for (std::int64_t j = 0; j < kv_blocks; ++j) {
      const auto cell =
          static_cast<std::size_t>(((index * spec_.heads_q + head) * q_blocks + i) * kv_blocks + j);
      const bool inside = i < expected.q_blocks && j < expected.kv_blocks;
      const auto at = static_cast<std::size_t>(i * expected.kv_blocks + j);
      const float want_max = inside ? static_cast<float>(expected.block_max[at]) : -kInfinity;
      if (spec_.block_max) {
        const double slack =
            inside ? expected.band[at] + 0x1p-22 * std::abs(expected.block_max[at]) : 0;
        if (std::isnan(want_max)) {
          ASSERT_TRUE(std::isnan(maxima[cell])) << where(i, j) << " " << maxima[cell];
        } else if (std::isinf(want_max)) {
          ASSERT_EQ(maxima[cell], want_max) << where(i, j);
        } else {
          ASSERT_NEAR(maxima[cell], want_max, slack) << where(i, j);
        }
      }
      if (!inside) {
        ASSERT_EQ(mask[cell], 0) << where(i, j);
        continue;
      }
      decisions[at] = mask[cell];
      ASSERT_LE(mask[cell], 1) << where(i, j);
      kept_here += mask[cell];
      bool close = false;
      if (spec_.policy == PolicyKind::kThreshold && std::isfinite(want_max)) {
        const std::int64_t row = first_q_block(sequence, layout.block) + i;
        const ThresholdView& table = problem_.policy.thresholds;
        const double threshold =
            table.data[head * table.stride_head + threshold_index(row, table.num_q_blocks)];
        close = std::abs(expected.block_max[at] - threshold) <= expected.band[at];
      }
      if (!close) {
        ASSERT_EQ(mask[cell], expected.kept[at])
            << where(i, j) << " maximum " << expected.block_max[at];
      }
    }
  }
  ASSERT_EQ(kept[count], kept_here) << where(-1, -1);
  ASSERT_EQ(visible[count], expected.visible_blocks) << where(-1, -1);

  // The output, given the decisions that were taken. Probabilities are rounded to 16 bits, and so
  // is the result.
  const OracleHead given = oracle_head(problem_, index, head, spec_.dtype, decisions);
  const double unit = spec_.dtype == DType::kFloat16 ? 0x1p-11 : 0x1p-8;
  double tile_error = 0;
  double tile_norm = 0;
  for (std::int64_t r = 0; r < s.seqlen_q; ++r) {
    const auto row =
        static_cast<std::size_t>((s.batch * spec_.heads_q + head) * out_.shape[1] + s.q_begin + r);
    const double want_lse = given.lse[static_cast<std::size_t>(r)];
    if (std::isfinite(want_lse)) {
      ASSERT_NEAR(lse[row], want_lse, 2e-5 * (4 + std::abs(want_lse))) << "row " << r;
    } else if (std::isnan(want_lse)) {
      ASSERT_TRUE(std::isnan(lse[row])) << "row " << r << " lse " << lse[row];
    } else {
      ASSERT_EQ(lse[row], static_cast<float>(want_lse)) << "row " << r;
    }
    for (std::int64_t d = 0; d < spec_.head_dim; ++d) {
      const double want = given.out[static_cast<std::size_t>(r * spec_.head_dim + d)];
      const double have = decode(out[static_cast<std::size_t>(
                                     out_.offset + s.batch * out_.stride[0] +
                                     (s.q_begin + r) * out_.stride[1] + head * out_.stride[2] + d)],
                                 spec_.dtype);
      if (std::isnan(want)) {
        ASSERT_TRUE(std::isnan(have)) << "row " << r << " column " << d << " is " << have;
        continue;
      }
      ASSERT_NEAR(have, want, unit * (std::abs(want) + 2))
          << "sequence " << index << " head " << head << " row " << r << " column " << d;
      tile_error += (have - want) * (have - want);
      tile_norm += want * want;
    }
    if ((s.q_offset + r + 1) % 128 == 0 || r + 1 == s.seqlen_q) {
      ASSERT_LE(std::sqrt(tile_error), 0.8 * unit * std::sqrt(tile_norm) + 1e-6)
          << "sequence " << index << " head " << head << " tile ending at row " << r;
      tile_error = tile_norm = 0;
    }
  }
}

}  // namespace bsfa::gpu_test
