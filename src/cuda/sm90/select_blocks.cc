#include "cuda/sm90/select_blocks.hpp"

#include <algorithm>
#include <bit>
#include <cstdint>

#include "core/status.hpp"
#include "cuda/common/convert.hpp"
#include "cuda/common/device.hpp"
#include "cuda/sm90/selector.hpp"
#include "cuda/sm90/tensor_map.hpp"

struct __half;
struct __nv_bfloat16;

// The sampled selector of cuda-sm90: what it serves, and how a call becomes launches.

namespace bsfa::cuda::sm90 {
namespace {

constexpr std::size_t kTicketBytes = 256;

Status check_selector(const SelectionProblem& problem) {
  BSFA_RETURN_IF_ERROR(check_features(problem, "cuda-sm90"));
  if (problem.head_dim != 64 && problem.head_dim != 128) {
    return unsupported("q has head_dim ", problem.head_dim,
                       "; the selector of cuda-sm90 accepts 64 and 128");
  }
  if (problem.selector.previous) {
    return unsupported("selector.previous is true; cuda-sm90 accepts false");
  }
  BSFA_RETURN_IF_ERROR(check_tensor_map("q", problem.q));  // rows are read 4 bytes at a time
  return check_tensor_map("k", problem.k);
}

// How the work is divided, and the memory for it.
struct Division {
  int rows_log2;
  TileOrder order;
  int ctas;
  std::size_t lse_bytes;
  std::size_t mass_bytes;

  Division(const SelectionProblem& problem, const DeviceFacts& facts)
      : rows_log2(std::countr_zero(static_cast<unsigned>(problem.selector.rows))) {
    // As heads of their own are counted here those of the keys, and as query blocks tiles.
    order = {static_cast<int>(problem.num_heads_kv), 1,
             selector_tiles(static_cast<int>(problem.q_blocks), static_cast<int>(problem.group),
                            rows_log2),
             section_kv_heads(problem, facts, 1)};
    ctas = std::min(total_tiles(problem.sequences, order), facts.multiprocessors);
    const std::size_t blocks = static_cast<std::size_t>(ctas) * problem.kv_blocks;
    lse_bytes = blocks * kSampledRows * sizeof(float);
    mass_bytes = blocks * (kSampledRows >> rows_log2) * sizeof(std::uint32_t);
  }

  std::size_t workspace_bytes() const { return kTicketBytes + lse_bytes + mass_bytes; }
};

}  // namespace

Status plan_selection(const SelectionProblem& problem, SelectionPlan* plan) {
  BSFA_RETURN_IF_ERROR(check_selector(problem));
  DeviceFacts facts;
  BSFA_RETURN_IF_ERROR(device_facts(problem.device.index, &facts));
  if (facts.major != 9 || facts.minor != 0) {
    return unsupported("cuda device ", problem.device.index, " has compute capability ",
                       facts.major, ".", facts.minor, "; cuda-sm90 needs 9.0");
  }
  plan->kernel = "sampled " + std::to_string(kSampledRows) + "x" + std::to_string(kBlockN) + "x" +
                 std::to_string(problem.head_dim) + ", TMA and wgmma";
  plan->workspace_bytes = Division(problem, facts).workspace_bytes();
  return {};
}

Status select_blocks(const SelectionProblem& problem) {
  const CurrentDevice current(problem.device.index);
  BSFA_RETURN_IF_ERROR(current.status());
  BSFA_RETURN_IF_ERROR(check_pointers(problem));
  BSFA_RETURN_IF_ERROR(check_pointer("indices", problem.indices, problem.device));
  BSFA_RETURN_IF_ERROR(check_pointer("counts", problem.counts, problem.device));
  BSFA_RETURN_IF_ERROR(check_pointer("left_out", problem.left_out.data, problem.device));
  DeviceFacts facts;
  BSFA_RETURN_IF_ERROR(device_facts(problem.device.index, &facts));
  const auto stream = static_cast<cudaStream_t>(problem.stream);
  const Division division(problem, facts);
  if (division.ctas == 0) return {};  // no lists

  const KernelParams common = kernel_params(problem, facts);
  SelectorArguments arguments{};
  const bool no_keys = problem.k.data == nullptr || problem.k.shape[1] == 0;
  BSFA_RETURN_IF_ERROR(
      encode_tensor_map("k", no_keys ? problem.q : problem.k, kBlockN, &arguments.k));
  arguments.sequences = problem.sequences;
  arguments.q = problem.q.data;
  std::copy(problem.q.stride, problem.q.stride + 3, arguments.q_stride);
  arguments.num_heads_kv = static_cast<int>(problem.num_heads_kv);
  arguments.group = static_cast<int>(problem.group);
  arguments.q_blocks = static_cast<int>(problem.q_blocks);
  arguments.kv_blocks = static_cast<int>(problem.kv_blocks);
  arguments.order = division.order;
  arguments.rows_log2 = division.rows_log2;
  arguments.scale_log2 = common.scale_log2;
  arguments.slack = common.slack;
  arguments.far = common.far;
  arguments.sink_blocks = problem.selector.sink_blocks;
  arguments.local_blocks = problem.selector.local_blocks;
  arguments.floor_units = floor_units(problem.selector.floor);
  arguments.coverage = problem.selector.coverage;
  arguments.max_left_out = problem.selector.max_left_out;
  arguments.ticket = static_cast<int*>(problem.workspace);
  char* const scratch = static_cast<char*>(problem.workspace) + kTicketBytes;
  arguments.block_lse = reinterpret_cast<float*>(scratch);
  arguments.masses = reinterpret_cast<std::uint32_t*>(scratch + division.lse_bytes);
  arguments.indices = problem.indices;
  arguments.counts = problem.counts;
  arguments.stride = problem.stride;
  arguments.left_out = problem.left_out.data;
  std::copy(problem.left_out.stride, problem.left_out.stride + 3, arguments.left_out_stride);

  BSFA_RETURN_IF_ERROR(check(cudaMemsetAsync(arguments.ticket, 0, sizeof(int), stream),
                             "start of the selector's counter"));
  if (problem.q.dtype == DType::kFloat16) {
    return problem.head_dim == 64 ? launch_selector<__half, 64>(arguments, division.ctas, stream)
                                  : launch_selector<__half, 128>(arguments, division.ctas, stream);
  }
  return problem.head_dim == 64
             ? launch_selector<__nv_bfloat16, 64>(arguments, division.ctas, stream)
             : launch_selector<__nv_bfloat16, 128>(arguments, division.ctas, stream);
}

}  // namespace bsfa::cuda::sm90
