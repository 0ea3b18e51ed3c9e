#include "core/backend.hpp"

#include <algorithm>
#include <cstdint>
#include <memory>
#include <utility>

#include "core/status.hpp"
#include "cuda/common/convert.hpp"
#include "cuda/common/device.hpp"
#include "cuda/common/order_statistics.hpp"
#include "cuda/common/prepare.hpp"
#include "cuda/sm90/launch.hpp"
#include "cuda/sm90/select_blocks.hpp"
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
  if (problem.softcap > 0) {
    return unsupported("softcap is ", problem.softcap, "; cuda-sm90 accepts 0 (none)");
  }
  if (problem.block_max && problem.policy.kind != PolicyKind::kDense) {
    return unsupported("block_max was asked for with a policy; cuda-sm90 writes it with dense");
  }
  if (problem.block_max && problem.lists) {
    return unsupported(
        "block_max was asked for with lists; cuda-sm90 writes it where every block is visited");
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

// The tiles of a call, or a bound.
std::int64_t most_tiles(const Problem& problem) {
  return most_q_blocks(problem) * problem.num_heads_q;
}

template <typename T, int kHeadDim>
Status launch_form(Form form, const Arguments& arguments, int multiprocessors,
                   cudaStream_t stream) {
  const bool selected = static_cast<bool>(arguments.params.lists);
  switch (form) {
    case Form::kDense:
      return selected ? launch_attention<T, Form::kDense, kHeadDim, true>(arguments,
                                                                          multiprocessors, stream)
                      : launch_attention<T, Form::kDense, kHeadDim, false>(arguments,
                                                                           multiprocessors, stream);
    case Form::kGated:
      return selected ? launch_attention<T, Form::kGated, kHeadDim, true>(arguments,
                                                                          multiprocessors, stream)
                      : launch_attention<T, Form::kGated, kHeadDim, false>(arguments,
                                                                           multiprocessors, stream);
    case Form::kCalibrating:
      return launch_attention<T, Form::kCalibrating, kHeadDim, false>(arguments, multiprocessors,
                                                                      stream);
  }
  return {};
}

// What TMA reads q, k and v by, and the addresses that they are of.
struct OperandMaps {
  CUtensorMap q, k, v;
  const void* addresses[3] = {nullptr, nullptr, nullptr};

  bool are_of(const Problem& problem) const {
    return problem.q.data == addresses[0] && problem.k.data == addresses[1] &&
           problem.v.data == addresses[2];
  }

  Status encode(const Problem& problem) {
    // Without keys nothing is ever copied, but a map must describe something.
    const bool no_keys = problem.k.data == nullptr || problem.k.shape[1] == 0;
    BSFA_RETURN_IF_ERROR(encode_tensor_map("q", problem.q, kBlockM, &q));
    BSFA_RETURN_IF_ERROR(encode_tensor_map("k", no_keys ? problem.q : problem.k, kBlockN, &k));
    BSFA_RETURN_IF_ERROR(encode_tensor_map("v", no_keys ? problem.q : problem.v, kBlockN, &v));
    addresses[0] = problem.q.data;
    addresses[1] = problem.k.data;
    addresses[2] = problem.v.data;
    return {};
  }
};

class Sm90Call final : public PlannedCall {
 public:
  explicit Sm90Call(const DeviceFacts& facts) : facts_(facts) {}

  // For the operands as they are planned.
  Status encode(const Problem& problem) {
    return has_tiles(problem) ? maps_.encode(problem) : Status{};
  }

  Status check_pointers(const Problem& problem, const AttentionParams& checked) const override {
    return cuda::check_pointers(problem, checked);
  }

  Status run(const Problem& problem) const override;

 private:
  static bool has_tiles(const Problem& problem) {
    return problem.sequences.num_sequences > 0 && problem.q_blocks > 0;
  }

  const DeviceFacts facts_;
  OperandMaps maps_{};
};

Status Sm90Call::run(const Problem& problem) const {
  const CurrentDevice current(problem.device.index);
  BSFA_RETURN_IF_ERROR(current.status());
  const auto stream = static_cast<cudaStream_t>(problem.stream);
  const Form form = form_of(problem);

  Arguments arguments{};
  arguments.params = kernel_params(problem, facts_);
  BSFA_RETURN_IF_ERROR(prepare(prepare_params(problem, arguments.params), stream));
  if (!has_tiles(problem)) return {};

  arguments.most_tiles = static_cast<int>(most_tiles(problem));
  arguments.tile_count = arguments.params.tile_counter + 1;
  arguments.tiles =
      reinterpret_cast<ListedTile*>(static_cast<char*>(problem.workspace) + kCounterBytes);
  BSFA_RETURN_IF_ERROR(list_tiles(arguments, form, stream));

  OperandMaps moved;
  const OperandMaps* maps = &maps_;
  if (!maps_.are_of(problem)) {
    BSFA_RETURN_IF_ERROR(moved.encode(problem));
    maps = &moved;
  }
  arguments.q = maps->q;
  arguments.k = maps->k;
  arguments.v = maps->v;

  const int multiprocessors = facts_.multiprocessors;
  if (problem.q.dtype == DType::kFloat16) {
    return problem.head_dim == 64
               ? launch_form<__half, 64>(form, arguments, multiprocessors, stream)
               : launch_form<__half, 128>(form, arguments, multiprocessors, stream);
  }
  return problem.head_dim == 64
             ? launch_form<__nv_bfloat16, 64>(form, arguments, multiprocessors, stream)
             : launch_form<__nv_bfloat16, 128>(form, arguments, multiprocessors, stream);
}

Status plan(const Problem& problem, AttentionPlan* plan, std::unique_ptr<PlannedCall>* call) {
  BSFA_RETURN_IF_ERROR(check_features(problem, "cuda-sm90"));
  BSFA_RETURN_IF_ERROR(check_family(problem));
  DeviceFacts facts;
  BSFA_RETURN_IF_ERROR(device_facts(problem.device.index, &facts));
  if (facts.major != 9 || facts.minor != 0) {
    return unsupported("cuda device ", problem.device.index, " has compute capability ",
                       facts.major, ".", facts.minor, "; cuda-sm90 needs 9.0");
  }
  BSFA_RETURN_IF_ERROR(check_operands(problem));
  plan->kernel = kernel_text(problem) + ", TMA and wgmma";
  plan->compute = dtype_name(problem.q.dtype);
  plan->workspace_bytes =
      kCounterBytes + static_cast<std::size_t>(most_tiles(problem)) *
                          (problem.lists ? kSelectedTileBytes : kListedTileBytes);
  if (call == nullptr) return {};
  auto made = std::make_unique<Sm90Call>(facts);
  BSFA_RETURN_IF_ERROR(made->encode(problem));
  *call = std::move(made);
  return {};
}

}  // namespace

const Backend& cuda_sm90_backend() {
  static const Backend backend{"cuda-sm90",
                               DeviceType::kCuda,
                               90,
                               available,
                               describe,
                               plan,
                               cuda::select_thresholds,
                               cuda::sm90::plan_selection,
                               cuda::sm90::select_blocks};
  return backend;
}

}  // namespace bsfa
