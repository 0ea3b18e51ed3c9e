#include "support/attention_case.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <sstream>
#include <stdexcept>

#include "core/numeric.hpp"
#include "core/problem.hpp"
#include "reference/oracle.hpp"

namespace bsfa::testing {
namespace {

constexpr std::uint8_t kPoison = 0xff;  // a NaN in every floating-point type

std::int64_t sum(const std::vector<std::int32_t>& values) {
  std::int64_t total = 0;
  for (const std::int32_t value : values) total += value;
  return total;
}

std::vector<std::int32_t> cumulative(const std::vector<std::int32_t>& lengths) {
  std::vector<std::int32_t> result{0};
  for (const std::int32_t length : lengths) result.push_back(result.back() + length);
  return result;
}

bool packed(const AttentionCase& c) { return !c.seqlens_q.empty(); }

std::int64_t dim_v(const AttentionCase& c) { return c.head_dim_v > 0 ? c.head_dim_v : c.head_dim; }

Buffer tensor(const AttentionCase& c, bool is_q, std::int64_t dim, DType dtype) {
  const std::int64_t batch = packed(c) ? 1 : c.batch;
  const std::int64_t tokens =
      packed(c) ? sum(is_q ? c.seqlens_q : c.seqlens_k) : (is_q ? c.seqlen_q : c.seqlen_k);
  const std::vector<int> order =
      c.heads_outside ? std::vector<int>{0, 2, 1, 3} : std::vector<int>{0, 1, 2, 3};
  return Buffer({batch, tokens, is_q ? c.num_heads_q : c.num_heads_kv, dim}, order, c.row_padding,
                static_cast<std::size_t>(dtype_size(dtype)), kPoison);
}

template <typename View>
View view_of(const Buffer& buffer, DType dtype, decltype(View::data) data) {
  View view;
  view.data = data;
  view.dtype = dtype;
  for (int axis = 0; axis < 4; ++axis) {
    view.shape[axis] = buffer.shape()[static_cast<std::size_t>(axis)];
    view.stride[axis] = buffer.strides()[static_cast<std::size_t>(axis)];
  }
  return view;
}

template <typename T, int kRank>
StridedView<T, kRank> statistic(std::vector<T>& values, const std::int64_t (&shape)[kRank]) {
  StridedView<T, kRank> view;
  static T nothing{};
  view.data = values.empty() ? &nothing : values.data();
  std::copy(std::begin(shape), std::end(shape), std::begin(view.shape));
  set_contiguous(view.shape, view.stride);
  return view;
}

}  // namespace

std::string describe(const AttentionCase& c) {
  std::ostringstream s;
  const auto list = [&](const char* name, const std::vector<std::int32_t>& values) {
    if (values.empty()) return;
    s << ' ' << name << '=';
    for (std::size_t i = 0; i < values.size(); ++i) s << (i > 0 ? "," : "") << values[i];
  };
  s << "batch=" << c.batch << " q=" << c.seqlen_q << " k=" << c.seqlen_k;
  list("seqlens_q", c.seqlens_q);
  list("seqlens_k", c.seqlens_k);
  list("leftpad_k", c.leftpad_k);
  list("seqused_k", c.seqused_k);
  list("q_offsets", c.q_offsets);
  s << " heads=" << c.num_heads_q << '/' << c.num_heads_kv << " dim=" << c.head_dim << '/'
    << dim_v(c) << " dtypes=" << dtype_name(c.q_dtype) << '/' << dtype_name(c.kv_dtype)
    << " compute=" << static_cast<int>(c.compute_type) << (c.causal ? " causal" : "")
    << (c.heads_outside ? " heads_outside" : "") << " padding=" << c.row_padding
    << " block=" << c.block.q << 'x' << c.block.kv << " kv_offset=" << c.kv_offset;
  if (c.q_offset) s << " q_offset=" << *c.q_offset;
  if (c.window) s << " window=" << *c.window;
  if (c.softcap > 0) s << " softcap=" << c.softcap;
  if (c.sinks) s << " sinks";
  s << " policy=" << static_cast<int>(c.policy) << " density=" << c.density
    << " window_blocks=" << c.window_blocks << " mass_c=" << c.mass_c
    << " skip_lambda=" << c.skip_lambda << " skip_order=" << static_cast<int>(c.skip_order)
    << " listed=" << c.listed << " magnitude=" << c.magnitude << " spread=" << c.spread
    << " seed=" << c.seed;
  return s.str();
}

Buffer::Buffer(const std::vector<std::int64_t>& shape, const std::vector<int>& order,
               std::int64_t padding, std::size_t size, std::uint8_t fill)
    : shape_(shape), strides_(shape.size()), size_(size), fill_(fill) {
  std::int64_t step = 1;
  for (std::size_t i = order.size(); i-- > 0;) {
    const auto axis = static_cast<std::size_t>(order[i]);
    strides_[axis] = step;
    step *= shape[axis];
    if (i + 1 == order.size()) step += padding;
  }
  bytes_.assign(static_cast<std::size_t>(step) * size + 2 * kGuard, fill);
}

bool Buffer::untouched_outside() const {
  std::vector<std::uint8_t> inside(bytes_.size(), 0);
  std::vector<std::int64_t> index(shape_.size(), 0);
  for (const std::int64_t extent : shape_) {
    if (extent == 0) return true;
  }
  while (true) {
    std::int64_t offset = 0;
    for (std::size_t axis = 0; axis < index.size(); ++axis) offset += index[axis] * strides_[axis];
    std::fill_n(inside.begin() + static_cast<std::ptrdiff_t>(kGuard) +
                    offset * static_cast<std::int64_t>(size_),
                size_, std::uint8_t{1});
    std::size_t axis = index.size();
    while (axis > 0 && ++index[axis - 1] == shape_[axis - 1]) index[--axis] = 0;
    if (axis == 0) break;
  }
  for (std::size_t i = 0; i < bytes_.size(); ++i) {
    if (inside[i] == 0 && bytes_[i] != fill_) return false;
  }
  return true;
}

AttentionData::AttentionData(const AttentionCase& attention_case)
    : c(attention_case),
      q(tensor(c, true, c.head_dim, c.q_dtype)),
      k(tensor(c, false, c.head_dim, c.kv_dtype)),
      v(tensor(c, false, dim_v(c), c.kv_dtype)),
      out(tensor(c, true, dim_v(c), c.q_dtype)),
      lse({q.shape()[0], c.num_heads_q, q.shape()[1]}, {0, 1, 2}, 3, sizeof(float), kPoison) {
  num_sequences = packed(c) ? static_cast<std::int64_t>(c.seqlens_q.size()) : c.batch;
  if (packed(c)) {
    cu_seqlens_q = cumulative(c.seqlens_q);
    cu_seqlens_k = cumulative(c.seqlens_k);
  }
  std::mt19937_64 random(c.seed);
  std::normal_distribution<float> normal;
  // Keys of a run of 64 share a direction of random strength, so that blocks differ in importance.
  for (std::int64_t b = 0; b < q.shape()[0]; ++b) {
    for (std::int64_t h = 0; h < c.num_heads_q; ++h) {
      for (std::int64_t t = 0; t < q.shape()[1]; ++t) {
        for (std::int64_t d = 0; d < c.head_dim; ++d) {
          set(q, c.q_dtype, b, t, h, d, c.magnitude * normal(random));
        }
      }
    }
    const std::int64_t left = c.leftpad_k.empty() ? 0 : c.leftpad_k[static_cast<std::size_t>(b)];
    const std::int64_t end =
        !c.seqused_k.empty() ? left + c.seqused_k[static_cast<std::size_t>(b)] : k.shape()[1];
    for (std::int64_t h = 0; h < c.num_heads_kv; ++h) {
      std::vector<float> direction(static_cast<std::size_t>(c.head_dim));
      for (std::int64_t t = left; t < end; ++t) {
        if ((t - left) % 64 == 0) {
          const float strength = 0.6f * normal(random);
          for (float& x : direction) x = strength * normal(random);
        }
        for (std::int64_t d = 0; d < c.head_dim; ++d) {
          set(k, c.kv_dtype, b, t, h, d,
              0.8f * normal(random) + direction[static_cast<std::size_t>(d)]);
        }
        for (std::int64_t d = 0; d < dim_v(c); ++d) set(v, c.kv_dtype, b, t, h, d, normal(random));
      }
    }
  }
  if (c.spread > 0) spread_blocks();
  if (c.sinks) {
    for (std::int64_t h = 0; h < c.num_heads_q; ++h) sinks.push_back(normal(random));
  }
  thresholds.assign(static_cast<std::size_t>(num_sequences * c.num_heads_q), 0.0f);

  Problem problem;
  AttentionParams shape_only = params();
  shape_only.kept_mask = {};
  shape_only.block_max = {};
  const Status status = make_problem(shape_only, &problem);
  if (!status.ok()) throw std::logic_error("test case: " + status.message);
  q_blocks = problem.q_blocks;
  kv_blocks = problem.kv_blocks;
  poison();
  if (c.policy == PolicyKind::kThreshold) calibrate();
  if (c.listed > 0) draw_lists();
}

// With the default scale: the first element of every row is the root of head_dim.
void AttentionData::spread_blocks() {
  std::mt19937_64 random(c.seed + 1);
  std::uniform_real_distribution<float> lowered(-c.spread, 0);
  for (std::int64_t b = 0; b < q.shape()[0]; ++b) {
    for (std::int64_t h = 0; h < c.num_heads_q; ++h) {
      for (std::int64_t t = 0; t < q.shape()[1]; ++t) {
        set(q, c.q_dtype, b, t, h, 0, std::sqrt(static_cast<float>(c.head_dim)));
      }
    }
    for (std::int64_t h = 0; h < c.num_heads_kv; ++h) {
      float strength = 0;
      for (std::int64_t t = 0; t < k.shape()[1]; ++t) {
        if (t % 64 == 0) strength = lowered(random);
        set(k, c.kv_dtype, b, t, h, 0, strength);
      }
    }
  }
}

void AttentionData::draw_lists() {
  std::mt19937_64 random(c.seed);
  lists = {};
  lists.num_heads = c.lists_of_kv_heads ? c.num_heads_kv : c.num_heads_q;
  lists.q_blocks = q_blocks;
  if (c.lists_by_counts) lists.stride = kv_blocks;
  list_indices.clear();
  list_counts.clear();
  list_offsets = {0};
  for (std::int64_t n = 0; n < num_sequences * lists.num_heads * q_blocks; ++n) {
    std::vector<std::int32_t> list;
    const std::uint64_t kind = random() % 6;
    for (std::int32_t j = 0; j < kv_blocks; ++j) {
      const bool drawn = static_cast<double>(random() % 1000) < 1000 * c.listed;
      if (kind == 1 || (kind > 1 && drawn)) list.push_back(j);
    }
    std::shuffle(list.begin(), list.end(), random);
    list_counts.push_back(static_cast<std::int32_t>(list.size()));
    // What is behind the count of a list is never looked at.
    if (c.lists_by_counts) list.resize(static_cast<std::size_t>(kv_blocks), -77);
    list_indices.insert(list_indices.end(), list.begin(), list.end());
    list_offsets.push_back(static_cast<std::int64_t>(list_indices.size()));
  }
  lists.indices = list_indices.data();
  lists.num_indices = static_cast<std::int64_t>(list_indices.size());
  if (c.lists_by_counts) {
    lists.counts = list_counts.data();
  } else {
    lists.offsets = list_offsets.data();
  }
}

AttentionParams AttentionData::params() {
  AttentionParams p;
  p.q = view_of<TensorView>(q, c.q_dtype, q.data());
  p.k = view_of<TensorView>(k, c.kv_dtype, k.data());
  p.v = view_of<TensorView>(v, c.kv_dtype, v.data());
  p.out = view_of<OutputView>(out, c.q_dtype, out.data());
  p.softmax_scale = c.softmax_scale;
  p.causal = c.causal;
  p.q_offset = c.q_offset;
  p.kv_offset = c.kv_offset;
  p.window = c.window;
  p.softcap = c.softcap;
  p.sinks = c.sinks ? sinks.data() : nullptr;
  p.block = c.block;
  p.compute_type = c.compute_type;
  p.policy.kind = c.policy;
  p.policy.window_blocks = c.window_blocks;
  p.policy.mass_c = c.mass_c;
  p.policy.skip_lambda = c.skip_lambda;
  p.policy.skip_order = c.skip_order;
  if (c.policy == PolicyKind::kThreshold) {
    p.policy.thresholds = {thresholds.data(),
                           c.num_heads_q,
                           table_blocks,
                           table_blocks,
                           c.num_heads_q * table_blocks,
                           c.block};
  }
  p.lists = lists;
  if (packed(c)) {
    p.cu_seqlens_q = cu_seqlens_q.data();
    p.cu_seqlens_k = cu_seqlens_k.data();
    p.num_sequences = num_sequences;
    p.max_seqlen_q = *std::max_element(c.seqlens_q.begin(), c.seqlens_q.end());
    p.max_seqlen_k = *std::max_element(c.seqlens_k.begin(), c.seqlens_k.end());
  }
  p.leftpad_k = c.leftpad_k.empty() ? nullptr : c.leftpad_k.data();
  p.seqused_k = c.seqused_k.empty() ? nullptr : c.seqused_k.data();
  p.q_offsets = c.q_offsets.empty() ? nullptr : c.q_offsets.data();
  p.lse.data = static_cast<float*>(lse.data());
  for (std::size_t axis = 0; axis < 3; ++axis) {
    p.lse.shape[axis] = lse.shape()[axis];
    p.lse.stride[axis] = lse.strides()[axis];
  }
  const std::int64_t counts[2] = {num_sequences, c.num_heads_q};
  const std::int64_t cells[4] = {num_sequences, c.num_heads_q, q_blocks, kv_blocks};
  kept_blocks.resize(static_cast<std::size_t>(num_sequences * c.num_heads_q));
  visible_blocks.resize(kept_blocks.size());
  kept_mask.resize(kept_blocks.size() * static_cast<std::size_t>(q_blocks * kv_blocks));
  block_max.resize(kept_mask.size());
  p.kept_blocks = statistic(kept_blocks, counts);
  p.visible_blocks = statistic(visible_blocks, counts);
  p.kept_mask = statistic(kept_mask, cells);
  p.block_max = statistic(block_max, cells);
  return p;
}

void AttentionData::poison() {
  std::fill_n(static_cast<std::uint8_t*>(out.data()), out.bytes(), kPoison);
  std::fill_n(static_cast<std::uint8_t*>(lse.data()), lse.bytes(), kPoison);
  std::fill(kept_blocks.begin(), kept_blocks.end(), -1);
  std::fill(visible_blocks.begin(), visible_blocks.end(), -1);
  std::fill(kept_mask.begin(), kept_mask.end(), std::uint8_t{0x7e});
  std::fill(block_max.begin(), block_max.end(), 12345.0f);
}

bool AttentionData::outputs_intact() const {
  return out.untouched_outside() && lse.untouched_outside();
}

void AttentionData::calibrate() {
  AttentionParams p = params();
  p.policy = Policy::dense();
  Problem problem;
  const Status status = make_problem(p, &problem);
  if (!status.ok()) throw std::logic_error("test case: " + status.message);
  const DType precision = multiply_dtype(problem, true);
  std::int64_t last_block = 0;
  for (std::int64_t n = 0; n < num_sequences; ++n) {
    const Sequence s = sequence_at(problem.sequences, n);
    last_block = std::max(last_block, q_block_range(s, c.block).end - 1);
  }
  table_blocks = last_block + 1;
  thresholds.assign(static_cast<std::size_t>(num_sequences * c.num_heads_q * table_blocks), 0.0f);
  for (std::int64_t n = 0; n < num_sequences; ++n) {
    const Sequence s = sequence_at(problem.sequences, n);
    for (std::int64_t h = 0; h < c.num_heads_q; ++h) {
      const OracleHead head = oracle_head(problem, n, h, precision);
      for (std::int64_t row = 0; row < head.q_blocks; ++row) {
        const std::int64_t i = first_q_block(s, c.block) + row;
        if (i < 0) continue;
        std::vector<double> maxima;
        for (std::int64_t j = 0; j < head.kv_blocks; ++j) {
          const double value = head.block_max[static_cast<std::size_t>(row * head.kv_blocks + j)];
          if (std::isfinite(value)) maxima.push_back(value);
        }
        if (maxima.empty()) continue;
        std::sort(maxima.begin(), maxima.end());
        const auto index =
            static_cast<std::size_t>((1 - c.density) * static_cast<double>(maxima.size() - 1));
        thresholds[static_cast<std::size_t>((n * c.num_heads_q + h) * table_blocks + i)] =
            static_cast<float>(maxima[index] + 1e-3);
      }
    }
  }
}

void AttentionData::set_products(float query, const std::vector<float>& keys) {
  for (std::int64_t d = 0; d < c.head_dim; ++d) {
    for (std::int64_t t = 0; t < c.seqlen_q; ++t) {
      set(q, c.q_dtype, 0, t, 0, d, d == 0 ? query : 0);
    }
    for (std::int64_t t = 0; t < c.seqlen_k; ++t) {
      set(k, c.kv_dtype, 0, t, 0, d, d == 0 ? keys[static_cast<std::size_t>(t)] : 0);
    }
  }
}

float AttentionData::get(const Buffer& buffer, DType dtype, std::int64_t b, std::int64_t t,
                         std::int64_t h, std::int64_t d) const {
  const auto& stride = buffer.strides();
  return load_element(buffer.data(), dtype,
                      b * stride[0] + t * stride[1] + h * stride[2] + d * stride[3]);
}

void AttentionData::set(Buffer& buffer, DType dtype, std::int64_t b, std::int64_t t, std::int64_t h,
                        std::int64_t d, float value) {
  const auto& stride = buffer.strides();
  store_element(buffer.data(), dtype, b * stride[0] + t * stride[1] + h * stride[2] + d * stride[3],
                value);
}

}  // namespace bsfa::testing
