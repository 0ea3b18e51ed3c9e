#include "core/backend.hpp"

#include <memory>
#include <string>

#include "core/status.hpp"
#include "cuda/common/convert.hpp"
#include "cuda/common/device.hpp"
#include "cuda/common/order_statistics.hpp"
#include "cuda/sm80/launch.hpp"
#include "cuda/sm80/select.hpp"

// The backend "cuda-sm80": tensor cores as of compute capability 8.0.

namespace bsfa::cuda::sm80 {
namespace {

constexpr const char* kName = "cuda-sm80";

bool available() { return any_device_from(8, 0); }

std::string describe() {
  const std::string what = "mma.sync and cp.async, compute capability 8.0 and above";
  std::string reason;
  const std::string devices = list_devices(&reason);
  return devices.empty() ? what + "; no CUDA device: " + reason : what + "; here: " + devices;
}

template <int kHeadDim>
Stages stages_of_form(Form form, const DeviceFacts& facts) {
  const int block = facts.shared_bytes;
  const int multiprocessor = facts.shared_bytes_per_multiprocessor;
  switch (form) {
    case Form::kGated:
      return choose_stages<Config<Form::kGated, kHeadDim>>(block, multiprocessor);
    case Form::kCalibrating:
      return choose_stages<Config<Form::kCalibrating, kHeadDim>>(block, multiprocessor);
    case Form::kDense:
      break;
  }
  return choose_stages<Config<Form::kDense, kHeadDim>>(block, multiprocessor);
}

Stages stages_for(const Problem& problem, const DeviceFacts& facts) {
  const Form form = form_of(problem);
  switch (problem.head_dim) {
    case 64:
      return stages_of_form<64>(form, facts);
    case 96:
      return stages_of_form<96>(form, facts);
    case 128:
      return stages_of_form<128>(form, facts);
    default:
      return stages_of_form<256>(form, facts);
  }
}

// Whether every row of a tensor starts on 16 bytes.
template <typename View>
bool rows_start_on_16_bytes(const View& view) {
  if (reinterpret_cast<std::uintptr_t>(view.data) % 16 != 0) return false;
  for (int axis = 0; axis < 3; ++axis) {
    if (view.shape[axis] > 1 && view.stride[axis] * dtype_size(view.dtype) % 16 != 0) return false;
  }
  return true;
}

Operand operand(const TensorView& view) {
  return {view.data, {view.stride[0], view.stride[1], view.stride[2]}};
}

template <typename T>
cudaError_t launch_head_dim(std::int64_t head_dim, Form form, bool vectors, const Arguments& args,
                            int num_tiles, cudaStream_t stream) {
  switch (head_dim) {
    case 64:
      return launch_form<T, 64>(form, vectors, args, num_tiles, stream);
    case 96:
      return launch_form<T, 96>(form, vectors, args, num_tiles, stream);
    case 128:
      return launch_form<T, 128>(form, vectors, args, num_tiles, stream);
    case 256:
      return launch_form<T, 256>(form, vectors, args, num_tiles, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

Status run_planned(const Problem& problem, Stages stages, const DeviceFacts& facts) {
  const CurrentDevice current(problem.device.index);
  BSFA_RETURN_IF_ERROR(current.status());
  Arguments args{operand(problem.q),
                 operand(problem.k),
                 operand(problem.v),
                 rows_start_on_16_bytes(problem.out),
                 false,
                 stages,
                 kernel_params(problem, facts)};
  args.params.tile_counter = nullptr;  // tiles are handed out by the card, as CTAs
  const auto stream = static_cast<cudaStream_t>(problem.stream);
  BSFA_RETURN_IF_ERROR(prepare(prepare_params(problem, args.params), stream));
  const std::int64_t num_sequences = problem.sequences.num_sequences;
  std::int64_t q_blocks = num_sequences * problem.q_blocks;
  const std::int64_t most = most_q_blocks(problem);
  // To find the tiles that exist takes a look at the sequences, and goes without the order that keeps
  // keys in the L2: worth it where the bound of the lengths says little.
  args.few_tiles = q_blocks > 2 * most;
  if (args.few_tiles) q_blocks = most;
  const auto num_tiles = static_cast<int>(q_blocks * problem.num_heads_q);
  if (num_tiles == 0) return {};
  const bool vectors = rows_start_on_16_bytes(problem.q) && rows_start_on_16_bytes(problem.k) &&
                       rows_start_on_16_bytes(problem.v);
  const Form form = form_of(problem);
  const cudaError_t error =
      problem.q.dtype == DType::kFloat16
          ? launch_head_dim<__half>(problem.head_dim, form, vectors, args, num_tiles, stream)
          : launch_head_dim<__nv_bfloat16>(problem.head_dim, form, vectors, args, num_tiles,
                                           stream);
  return check(error, "launch of the attention kernel");
}

class Sm80Call final : public PlannedCall {
 public:
  Sm80Call(Stages stages, const DeviceFacts& facts) : stages_(stages), facts_(facts) {}

  Status check_pointers(const Problem& problem, const AttentionParams& checked) const override {
    return cuda::check_pointers(problem, checked);
  }

  Status run(const Problem& problem) const override {
    return run_planned(problem, stages_, facts_);
  }

 private:
  const Stages stages_;
  const DeviceFacts facts_;
};

Status plan(const Problem& problem, AttentionPlan* plan, std::unique_ptr<PlannedCall>* call) {
  BSFA_RETURN_IF_ERROR(check_features(problem, kName));
  if (problem.lists) return unsupported("lists were given; ", kName, " visits every block");
  if (problem.head_dim != 64 && problem.head_dim != 96 && problem.head_dim != 128 &&
      problem.head_dim != 256) {
    return unsupported("q has head_dim ", problem.head_dim, "; ", kName,
                       " accepts 64, 96, 128 and 256");
  }
  // In scores before the scale; beyond, its reciprocal could leave the range of fp32.
  const float cap = problem.softcap / *problem.softmax_scale;
  if (problem.softcap > 0 && !(cap >= 0x1p-64f && cap <= 0x1p64f)) {
    return unsupported("softcap is ", problem.softcap, " with softmax_scale ",
                       *problem.softmax_scale, "; ", kName,
                       " accepts a softcap / softmax_scale from 2^-64 to 2^64, or 0 (none)");
  }
  DeviceFacts facts;
  BSFA_RETURN_IF_ERROR(device_facts(problem.device.index, &facts));
  if (facts.major < 8) {
    return unsupported("cuda device ", problem.device.index, " has compute capability ",
                       facts.major, ".", facts.minor, "; ", kName, " needs 8.0 or above");
  }
  const Stages stages = stages_for(problem, facts);
  if (stages.k == 0) {
    return unsupported("q has head_dim ", problem.head_dim, " with the threshold policy; device ",
                       problem.device.index, " has ", facts.shared_bytes,
                       " bytes of shared memory a block and ", kName, " needs ",
                       shared_bytes<Config<Form::kGated, 256>>({2, 1}), " for it (dense runs)");
  }
  BSFA_RETURN_IF_ERROR(check_pointers(problem));
  plan->kernel = kernel_text(problem) + ", mma.sync, " + std::to_string(stages.k) + " K and " +
                 std::to_string(stages.v) + " V stages";
  plan->compute = dtype_name(problem.q.dtype);
  plan->workspace_bytes = 0;
  if (call != nullptr) *call = std::make_unique<Sm80Call>(stages, facts);
  return {};
}

}  // namespace

Status run_with_stages(const Problem& problem, Stages stages) {
  DeviceFacts facts;
  BSFA_RETURN_IF_ERROR(device_facts(problem.device.index, &facts));
  return run_planned(problem, stages, facts);
}

}  // namespace bsfa::cuda::sm80

namespace bsfa {

const Backend& cuda_sm80_backend() {
  namespace family = cuda::sm80;
  static const Backend backend{
      "cuda-sm80",  DeviceType::kCuda,      80, family::available, family::describe,
      family::plan, cuda::select_thresholds, nullptr, nullptr};
  return backend;
}

}  // namespace bsfa
