#include "core/backend.hpp"

#include <limits>

#include "core/numeric.hpp"
#include "core/status.hpp"
#include "reference/oracle.hpp"
#include "reference/selection.hpp"

// The oracle behind the public API, for whoever wants to compare: only when named, never chosen.

namespace bsfa {
namespace {

// How many blocks, rows of statistics and tokens one sequence fills; the rest is set to "nothing".
void write_head(const Problem& problem, std::int64_t sequence, std::int64_t head,
                const OracleHead& result) {
  const Sequence s = sequence_at(problem.sequences, sequence);
  const OutputView& out = problem.out;
  for (std::int64_t r = 0; r < result.seqlen_q; ++r) {
    const std::int64_t row = s.q_begin + r;
    const std::int64_t base = s.batch * out.stride[0] + row * out.stride[1] + head * out.stride[2];
    for (std::int64_t d = 0; d < problem.head_dim_v; ++d) {
      store_element(out.data, out.dtype, base + d,
                    static_cast<float>(result.out[r * problem.head_dim_v + d]));
    }
    if (problem.lse) {
      const auto& lse = problem.lse;
      lse.data[s.batch * lse.stride[0] + head * lse.stride[1] + row * lse.stride[2]] =
          static_cast<float>(result.lse[r]);
    }
  }
  const auto count = [&](const StridedView<std::int64_t, 2>& view, std::int64_t value) {
    if (view) view.data[sequence * view.stride[0] + head * view.stride[1]] = value;
  };
  count(problem.kept_blocks, result.kept_blocks);
  count(problem.visible_blocks, result.visible_blocks);
  if (!problem.kept_mask && !problem.block_max) return;
  for (std::int64_t i = 0; i < problem.q_blocks; ++i) {
    for (std::int64_t j = 0; j < problem.kv_blocks; ++j) {
      const bool inside = i < result.q_blocks && j < result.kv_blocks;
      const auto cell = static_cast<std::size_t>(i * result.kv_blocks + j);
      const auto at = [&](const auto& view) -> auto& {
        return view.data[sequence * view.stride[0] + head * view.stride[1] + i * view.stride[2] +
                         j * view.stride[3]];
      };
      if (problem.kept_mask) at(problem.kept_mask) = inside ? result.kept[cell] : 0;
      if (problem.block_max) {
        at(problem.block_max) = inside ? static_cast<float>(result.block_max[cell])
                                       : -std::numeric_limits<float>::infinity();
      }
    }
  }
}

// Rows of a packed call that belong to no sequence: out = 0, lse = -inf.
void blank_rows_of_nobody(const Problem& problem) {
  const OutputView& out = problem.out;
  const StridedView<float, 3>& lse = problem.lse;
  const BlockRange rows = rows_of_nobody(problem.sequences, problem.q.shape[1]);
  for (std::int64_t row = rows.begin; row < rows.end; ++row) {
    for (std::int64_t head = 0; head < problem.num_heads_q; ++head) {
      const std::int64_t base = row * out.stride[1] + head * out.stride[2];
      for (std::int64_t d = 0; d < problem.head_dim_v; ++d) {
        store_element(out.data, out.dtype, base + d, 0.0f);
      }
      if (lse) {
        lse.data[head * lse.stride[1] + row * lse.stride[2]] =
            -std::numeric_limits<float>::infinity();
      }
    }
  }
}

bool available() { return true; }

std::string describe() { return "fp64 oracle, for comparison only"; }

Status check_policy(PolicyKind kind) {
  switch (kind) {  // without default: the compiler asks about every policy that is added
    case PolicyKind::kDense:
    case PolicyKind::kThreshold:
    case PolicyKind::kSlidingWindow:
    case PolicyKind::kMass:
    case PolicyKind::kSkipSoftmax:
      return {};
  }
  return unsupported("policy.kind is ", static_cast<int>(kind),
                     "; backend reference takes dense, threshold, sliding_window, mass, skip_softmax");
}

class ReferenceCall final : public PlannedCall {
 public:
  Status check_pointers(const Problem&, const AttentionParams&) const override { return {}; }

  Status run(const Problem& problem) const override {
    const DType precision = multiply_dtype(problem, true);
    blank_rows_of_nobody(problem);
    for (std::int64_t sequence = 0; sequence < problem.sequences.num_sequences; ++sequence) {
      for (std::int64_t head = 0; head < problem.num_heads_q; ++head) {
        write_head(problem, sequence, head, oracle_head(problem, sequence, head, precision));
      }
    }
    return {};
  }
};

Status plan(const Problem& problem, AttentionPlan* plan, std::unique_ptr<PlannedCall>* call) {
  BSFA_RETURN_IF_ERROR(check_policy(problem.policy.kind));
  if (problem.page_table != nullptr) {
    return unsupported("page_table was given; backend reference takes contiguous k and v");
  }
  plan->kernel = "fp64";
  plan->compute = dtype_name(multiply_dtype(problem, true));
  plan->workspace_bytes = 0;
  if (call != nullptr) *call = std::make_unique<ReferenceCall>();
  return {};
}

}  // namespace

const Backend& reference_backend() {
  static const Backend backend{"reference",
                               DeviceType::kCpu,
                               -1,
                               available,
                               describe,
                               plan,
                               nullptr,
                               plan_oracle_selection,
                               run_oracle_selection};
  return backend;
}

}  // namespace bsfa
