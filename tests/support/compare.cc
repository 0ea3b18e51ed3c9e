#include "support/compare.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <sstream>
#include <vector>

#include "core/block_lists.hpp"
#include "core/numeric.hpp"
#include "core/problem.hpp"
#include "reference/oracle.hpp"

namespace bsfa::testing {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Plain attention in fp32 with operands, weights and output rounded as a backend may round them:
// what the error of a backend is measured with. [seqlen_q, dim_v]
std::vector<float> plain_attention(const Problem& problem, std::int64_t n, std::int64_t head,
                                   DType precision, const std::vector<std::uint8_t>& kept,
                                   std::int64_t kv_blocks) {
  const Sequence s = sequence_at(problem.sequences, n);
  const BlockShape block = problem.sequences.block;
  const std::int64_t kv_head = head / problem.group;
  const auto load = [&](const TensorView& t, std::int64_t row, std::int64_t h, std::int64_t d) {
    return rounded(load_element(t.data, t.dtype,
                                s.batch * t.stride[0] + row * t.stride[1] + h * t.stride[2] + d),
                   precision);
  };
  std::vector<float> keys(static_cast<std::size_t>(s.seqlen_k * problem.head_dim));
  std::vector<float> values(static_cast<std::size_t>(s.seqlen_k * problem.head_dim_v));
  for (std::int64_t c = 0; c < s.seqlen_k; ++c) {
    for (std::int64_t d = 0; d < problem.head_dim; ++d) {
      keys[static_cast<std::size_t>(c * problem.head_dim + d)] =
          load(problem.k, s.k_begin + c, kv_head, d);
    }
    for (std::int64_t d = 0; d < problem.head_dim_v; ++d) {
      values[static_cast<std::size_t>(c * problem.head_dim_v + d)] =
          load(problem.v, s.k_begin + c, kv_head, d);
    }
  }
  std::vector<float> result(static_cast<std::size_t>(s.seqlen_q * problem.head_dim_v), 0.0f);
  std::vector<float> scores(static_cast<std::size_t>(s.seqlen_k));
  std::vector<float> query(static_cast<std::size_t>(problem.head_dim));
  for (std::int64_t r = 0; r < s.seqlen_q; ++r) {
    const std::int64_t row_of_blocks = floor_div(s.q_offset + r, block.q) - first_q_block(s, block);
    const BlockRange visible = visible_keys(problem.sequences, s, r);
    for (std::int64_t d = 0; d < problem.head_dim; ++d) {
      query[static_cast<std::size_t>(d)] = load(problem.q, s.q_begin + r, head, d);
    }
    float maximum = problem.sinks != nullptr ? problem.sinks[head] : -kInfinity;
    for (std::int64_t c = visible.begin; c < visible.end; ++c) {
      float dot = 0;
      for (std::int64_t d = 0; d < problem.head_dim; ++d) {
        dot += query[static_cast<std::size_t>(d)] *
               keys[static_cast<std::size_t>(c * problem.head_dim + d)];
      }
      float score = dot * problem.softmax_scale.value();
      if (problem.softcap > 0) score = problem.softcap * std::tanh(score / problem.softcap);
      if (kept[static_cast<std::size_t>(row_of_blocks * kv_blocks + c / block.kv)] == 0) {
        score = -kInfinity;
      }
      scores[static_cast<std::size_t>(c)] = score;
      maximum = std::max(maximum, score);
    }
    if (maximum == -kInfinity) continue;
    float sum = problem.sinks != nullptr ? std::exp(problem.sinks[head] - maximum) : 0.0f;
    float* out = result.data() + r * problem.head_dim_v;
    for (std::int64_t c = visible.begin; c < visible.end; ++c) {
      const float weight = std::exp(scores[static_cast<std::size_t>(c)] - maximum);
      sum += weight;
      const float factor = rounded(weight, precision);
      for (std::int64_t d = 0; d < problem.head_dim_v; ++d) {
        out[d] += factor * values[static_cast<std::size_t>(c * problem.head_dim_v + d)];
      }
    }
    for (std::int64_t d = 0; d < problem.head_dim_v; ++d) {
      out[d] = rounded(out[d] / sum, problem.out.dtype);
    }
  }
  return result;
}

bool same_class(double expected, double got) {
  return std::isfinite(expected) ? std::isfinite(got)
                                 : (std::isnan(expected) ? std::isnan(got) : got == expected);
}

std::string check_blocks(const AttentionData& data, const Problem& problem, std::int64_t n,
                         std::int64_t head, const OracleHead& oracle) {
  std::ostringstream error;
  const Sequence s = sequence_at(problem.sequences, n);
  const BlockShape block = problem.sequences.block;
  const std::int64_t base = (n * problem.num_heads_q + head) * data.q_blocks * data.kv_blocks;
  std::int64_t kept_count = 0;
  for (std::int64_t row = 0; row < data.q_blocks; ++row) {
    const std::int64_t i = first_q_block(s, block) + row;
    for (std::int64_t column = 0; column < data.kv_blocks; ++column) {
      const auto index = static_cast<std::size_t>(base + row * data.kv_blocks + column);
      const int kept = data.kept_mask[index];
      const float block_max = data.block_max[index];
      const auto fail = [&](const std::string& what) {
        error << what << " at sequence " << n << " head " << head << " block (" << row << ", "
              << column << "): kept " << kept << ", block_max " << block_max;
        return error.str();
      };
      const std::int64_t j = problem.sequences.kv_offset / block.kv + column;
      const bool inside = row < oracle.q_blocks && column < oracle.kv_blocks;
      if (!inside || !visible_blocks(problem.sequences, s, i).contains(j)) {
        if (kept != 0 || block_max != -kInfinity) return fail("an invisible block is not empty");
        continue;
      }
      const auto cell = static_cast<std::size_t>(row * oracle.kv_blocks + column);
      const double expected = oracle.block_max[cell];
      const double band = oracle.band[cell];
      if (!same_class(expected, block_max) ||
          (std::isfinite(expected) && std::abs(expected - block_max) > band + 1e-30)) {
        error << "oracle " << expected << " band " << band << "; ";
        return fail("block_max");
      }
      if (kept != 0 && kept != 1) return fail("kept_mask is neither 0 nor 1");
      kept_count += kept;
      bool expected_kept = true;
      if (problem.policy.kind == PolicyKind::kSlidingWindow) {
        expected_kept = sliding_window_range(i, problem.policy.window_blocks, block).contains(j);
      } else if (problem.policy.kind == PolicyKind::kThreshold) {
        const ThresholdView& table = problem.policy.thresholds;
        const float threshold = table.data[n * table.stride_batch + head * table.stride_head +
                                           threshold_index(i, table.num_q_blocks)];
        expected_kept = always_kept(i, j, block) || !(expected < threshold);
        if (!always_kept(i, j, block) && std::abs(expected - threshold) <= band) continue;
      } else if (problem.policy.kind != PolicyKind::kDense) {
        expected_kept = oracle.decided[cell] != 0;
        if (oracle.undecided[cell] != 0) continue;
      }
      expected_kept =
          expected_kept && is_listed(problem.lists, problem.num_heads_q, n, head, row, column);
      if ((kept != 0) != expected_kept) {
        error << "oracle says " << expected_kept << " (block_max " << expected << "); ";
        return fail("decision");
      }
    }
  }
  const auto count = static_cast<std::size_t>(n * problem.num_heads_q + head);
  if (data.kept_blocks[count] != kept_count ||
      data.visible_blocks[count] != oracle.visible_blocks) {
    error << "counts at sequence " << n << " head " << head << ": kept " << data.kept_blocks[count]
          << " (mask has " << kept_count << "), visible " << data.visible_blocks[count]
          << " (oracle " << oracle.visible_blocks << ")";
    return error.str();
  }
  return "";
}

std::string check_output(const AttentionData& data, const Problem& problem, std::int64_t n,
                         std::int64_t head, const OracleHead& oracle,
                         const std::vector<float>& plain, double factor) {
  constexpr std::int64_t kTileRows = 64;
  std::ostringstream error;
  const Sequence s = sequence_at(problem.sequences, n);
  const std::int64_t dim = problem.head_dim_v;
  for (std::int64_t begin = 0; begin < s.seqlen_q; begin += kTileRows) {
    const std::int64_t end = std::min(begin + kTileRows, s.seqlen_q);
    double allowed = 0;
    for (std::int64_t i = begin * dim; i < end * dim; ++i) {
      const double difference =
          plain[static_cast<std::size_t>(i)] - oracle.out[static_cast<std::size_t>(i)];
      if (std::isfinite(difference)) allowed = std::max(allowed, std::abs(difference));
    }
    allowed = factor * allowed + 2e-6;
    for (std::int64_t r = begin; r < end; ++r) {
      const auto fail = [&](const char* what, std::int64_t d, double got, double expected) {
        error << what << " at sequence " << n << " head " << head << " row " << r << " column " << d
              << ": got " << got << ", oracle " << expected << ", allowed difference " << allowed;
        return error.str();
      };
      for (std::int64_t d = 0; d < dim; ++d) {
        const double got = data.get(data.out, data.c.q_dtype, s.batch, s.q_begin + r, head, d);
        const double expected = oracle.out[static_cast<std::size_t>(r * dim + d)];
        if (!same_class(expected, got) ||
            (std::isfinite(expected) && std::abs(got - expected) > allowed)) {
          return fail("out", d, got, expected);
        }
      }
      const auto& stride = data.lse.strides();
      const double got = static_cast<const float*>(
          data.lse.data())[s.batch * stride[0] + head * stride[1] + (s.q_begin + r) * stride[2]];
      const double expected = oracle.lse[static_cast<std::size_t>(r)];
      // Scores are rounded once for each product; the sum of weights to fp32.
      const double lse_allowed = 1e-5 * (1 + std::abs(expected)) + 0x1p-18 * problem.softcap;
      if (!same_class(expected, got) ||
          (std::isfinite(expected) && std::abs(got - expected) > lse_allowed)) {
        return fail("lse", -1, got, expected);
      }
    }
  }
  return "";
}

}  // namespace

std::string run_case(AttentionData& data, const std::string& backend, Executor* executor) {
  AttentionParams params = data.params();
  params.backend = backend;
  params.executor = executor;
  const AttentionPlan plan = plan_attention(params);
  if (!plan.status.ok()) return plan.status.message;
  constexpr std::size_t kGuard = 256;
  constexpr std::uint8_t kFill = 0xff;
  std::vector<std::uint8_t> memory(plan.workspace_bytes + 3 * kGuard, kFill);
  const auto address = reinterpret_cast<std::uintptr_t>(memory.data());
  const std::size_t begin = kGuard + (kGuard - address % kGuard) % kGuard;
  params.workspace = memory.data() + begin;
  params.workspace_bytes = plan.workspace_bytes;
  data.poison();
  try {
    attention_forward(params);
  } catch (const Error& error) {
    return error.what();
  }
  for (std::size_t i = 0; i < memory.size(); ++i) {
    if ((i < begin || i >= begin + plan.workspace_bytes) && memory[i] != kFill) {
      return "wrote outside the workspace";
    }
  }
  return data.outputs_intact() ? "" : "wrote outside out or lse";
}

std::string compare_with_oracle(AttentionData& data, bool has_float16_unit, double factor) {
  const AttentionParams params = data.params();
  Problem problem;
  const Status status = make_problem(params, &problem);
  if (!status.ok()) return status.message;
  const DType precision = multiply_dtype(problem, has_float16_unit);
  for (std::int64_t n = 0; n < data.num_sequences; ++n) {
    const Sequence s = sequence_at(problem.sequences, n);
    const std::int64_t rows = q_block_range(s, data.c.block).size();
    const std::int64_t columns = ceil_div(s.seqlen_k, data.c.block.kv);
    for (std::int64_t head = 0; head < problem.num_heads_q; ++head) {
      std::vector<std::uint8_t> kept(static_cast<std::size_t>(rows * columns));
      const std::int64_t base = (n * problem.num_heads_q + head) * data.q_blocks * data.kv_blocks;
      for (std::int64_t row = 0; row < rows; ++row) {
        for (std::int64_t column = 0; column < columns; ++column) {
          kept[static_cast<std::size_t>(row * columns + column)] =
              data.kept_mask[static_cast<std::size_t>(base + row * data.kv_blocks + column)];
        }
      }
      const OracleHead oracle = oracle_head(problem, n, head, precision, kept);
      std::string error = check_blocks(data, problem, n, head, oracle);
      if (error.empty()) {
        error = check_output(data, problem, n, head, oracle,
                             plain_attention(problem, n, head, precision, kept, columns), factor);
      }
      if (!error.empty()) return error;
    }
  }
  return "";
}

}  // namespace bsfa::testing
