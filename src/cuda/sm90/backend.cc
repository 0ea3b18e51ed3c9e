#include "core/backend.hpp"

#include <algorithm>
#include <cstdint>

#include "core/status.hpp"
#include "cuda/common/convert.hpp"
#include "cuda/common/device.hpp"
#include "cuda/common/order_statistics.hpp"
#include "cuda/common/prepare.hpp"
#include "cuda/sm90/launch.hpp"
#include "cuda/sm90/tensor_map.hpp"

// cuda-sm90: what it serves, and how a call becomes launches.

struct __half;
struct __nv_bfloat16;

namespace bsfa {
namespace {

using namespace cuda;
using namespace cuda::sm90;

constexpr std::size_t kCounterBytes = 256;  // the tile counter and, after it, the tile count

bool available() { return any_device(9, 0); }

std::string describe() {
  std::string reason;
  const std::string devices = list_devices(&reason);
  if (devices.empty()) return "TMA and wgmma, compute capability 9.0; no CUDA device: " + reason;
  return "TMA and wgmma, compute capability 9.0; here: " + devices;
}

// What this family does not take beside what none does.
Status check_family(const Problem& problem) {
  if (problem.head_dim != 64 && problem.head_dim != 128) {
    return unsupported("q has head_dim ", problem.head_dim, "; cuda-sm90 accepts 64 and 128");
  }
  if (problem.block_max && problem.policy.kind != PolicyKind::kDense) {
    return unsupported("block_max was asked for with a policy; cuda-sm90 writes it with dense");
  }
  return {};
}

Status check_operands(const Problem& problem) {
  BSFA_RETURN_IF_ERROR(check_tensor_map("q", problem.q));
  BSFA_RETURN_IF_ERROR(check_tensor_map("k", problem.k));
  BSFA_RETURN_IF_ERROR(check_tensor_map("v", problem.v));
  const OutputView& out = problem.out;
  BSFA_RETURN_IF_ERROR(
      check_tensor_map("out", {out.data,
                               out.dtype,
                               {out.shape[0], out.shape[1], out.shape[2], out.shape[3]},
                               {out.stride[0], out.stride[1], out.stride[2], out.stride[3]}}));
  return check_pointers(problem);
}

// The tiles of a call, or where lengths are on the device a bound: in a packed batch a sequence of
// n rows touches at most n / 128 + 2 query blocks.
std::int64_t most_tiles(const Problem& problem) {
  std::int64_t q_blocks = problem.sequences.num_sequences * problem.q_blocks;
  if (problem.sequences.packed) {
    const std::int64_t rows = problem.q.shape[0] * problem.q.shape[1];
    q_blocks = std::min(q_blocks, rows / kBlockM + 2 * problem.sequences.num_sequences);
  }
  return q_blocks * problem.num_heads_q;
}

Status plan(const Problem& problem, AttentionPlan* plan) {
  BSFA_RETURN_IF_ERROR(check_features(problem, "cuda-sm90"));
  BSFA_RETURN_IF_ERROR(check_family(problem));
  DeviceFacts facts;
  BSFA_RETURN_IF_ERROR(device_facts(problem.device.index, &facts));
  if (facts.major != 9 || facts.minor != 0) {
    return unsupported("cuda device ", problem.device.index, " has compute capability ",
                       facts.major, ".", facts.minor, "; cuda-sm90 needs 9.0");
  }
  BSFA_RETURN_IF_ERROR(check_operands(problem));
  const char* forms[] = {"dense", "gated", "calibrating"};
  plan->kernel = text(forms[static_cast<int>(form_of(problem))], " ", kBlockM, "x", kBlockN, "x",
                      problem.head_dim, ", TMA and wgmma");
  plan->compute = dtype_name(problem.q.dtype);
  plan->workspace_bytes =
      kCounterBytes + static_cast<std::size_t>(most_tiles(problem)) * kListedTileBytes;
  return {};
}

template <typename T, int kHeadDim>
Status launch_form(Form form, const Arguments& arguments, int multiprocessors,
                   cudaStream_t stream) {
  switch (form) {
    case Form::kDense:
      return launch_attention<T, Form::kDense, kHeadDim>(arguments, multiprocessors, stream);
    case Form::kGated:
      return launch_attention<T, Form::kGated, kHeadDim>(arguments, multiprocessors, stream);
    case Form::kCalibrating:
      return launch_attention<T, Form::kCalibrating, kHeadDim>(arguments, multiprocessors, stream);
  }
  return {};
}

Status run(const Problem& problem) {
  const CurrentDevice current(problem.device.index);
  BSFA_RETURN_IF_ERROR(current.status());
  DeviceFacts facts;
  BSFA_RETURN_IF_ERROR(device_facts(problem.device.index, &facts));
  const auto stream = static_cast<cudaStream_t>(problem.stream);
  const Form form = form_of(problem);

  Arguments arguments{};
  arguments.params = kernel_params(problem, facts);
  if (problem.sequences.num_sequences == 0) return {};
  BSFA_RETURN_IF_ERROR(prepare(prepare_params(problem, arguments.params), stream));
  if (problem.q_blocks == 0) return {};

  arguments.most_tiles = static_cast<int>(most_tiles(problem));
  arguments.tile_count = arguments.params.tile_counter + 1;
  arguments.tiles =
      reinterpret_cast<ListedTile*>(static_cast<char*>(problem.workspace) + kCounterBytes);
  BSFA_RETURN_IF_ERROR(list_tiles(arguments, form, stream));

  // Without keys nothing is ever copied, but a map must describe something.
  const bool no_keys = problem.k.data == nullptr || problem.k.shape[1] == 0;
  BSFA_RETURN_IF_ERROR(encode_tensor_map("q", problem.q, kBlockM, &arguments.q));
  BSFA_RETURN_IF_ERROR(
      encode_tensor_map("k", no_keys ? problem.q : problem.k, kBlockN, &arguments.k));
  BSFA_RETURN_IF_ERROR(
      encode_tensor_map("v", no_keys ? problem.q : problem.v, kBlockN, &arguments.v));

  if (problem.q.dtype == DType::kFloat16) {
    return problem.head_dim == 64
               ? launch_form<__half, 64>(form, arguments, facts.multiprocessors, stream)
               : launch_form<__half, 128>(form, arguments, facts.multiprocessors, stream);
  }
  return problem.head_dim == 64
             ? launch_form<__nv_bfloat16, 64>(form, arguments, facts.multiprocessors, stream)
             : launch_form<__nv_bfloat16, 128>(form, arguments, facts.multiprocessors, stream);
}

}  // namespace

const Backend& cuda_sm90_backend() {
  static const Backend backend{"cuda-sm90", DeviceType::kCuda,      90, available, describe, plan,
                               run,         cuda::select_thresholds};
  return backend;
}

}  // namespace bsfa
