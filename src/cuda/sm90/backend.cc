#include "core/backend.hpp"

#include <algorithm>
#include <cstdint>

#include "core/status.hpp"
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

constexpr std::size_t kWorkspaceBytes = 256;  // the tile counter, on a line of its own

Form form_of(const Problem& problem) {
  if (problem.block_max) return Form::kCalibrating;
  return problem.policy.kind == PolicyKind::kThreshold ? Form::kGated : Form::kDense;
}

bool available() { return any_device(9, 0); }

std::string describe() {
  std::string reason;
  const std::string devices = list_devices(&reason);
  if (devices.empty()) return "TMA and wgmma, compute capability 9.0; no CUDA device: " + reason;
  return "TMA and wgmma, compute capability 9.0; here: " + devices;
}

// What the family computes, whatever the device.
Status check_features(const Problem& problem) {
  const BlockShape block = problem.sequences.block;
  if (block.q != kBlockM || block.kv != kBlockN) {
    return unsupported("block is ", block.q, "x", block.kv, "; cuda-sm90 gates on ", kBlockM, "x",
                       kBlockN);
  }
  if (problem.q.dtype == DType::kFloat32 || problem.q.dtype != problem.k.dtype) {
    return unsupported("q and k have dtypes ", dtype_name(problem.q.dtype), " and ",
                       dtype_name(problem.k.dtype),
                       "; cuda-sm90 accepts float16 for both or bfloat16 for both");
  }
  if (multiply_dtype(problem, true) != problem.q.dtype) {
    return unsupported("compute_type asks for ", dtype_name(multiply_dtype(problem, true)),
                       "; cuda-sm90 multiplies ", dtype_name(problem.q.dtype), " inputs as such");
  }
  if (problem.head_dim != 64 && problem.head_dim != 128) {
    return unsupported("q has head_dim ", problem.head_dim, "; cuda-sm90 accepts 64 and 128");
  }
  if (problem.head_dim_v != problem.head_dim) {
    return unsupported("v has head_dim ", problem.head_dim_v, "; cuda-sm90 accepts that of q, ",
                       problem.head_dim);
  }
  if (problem.softcap > 0) {
    return unsupported("softcap is ", problem.softcap, "; cuda-sm90 accepts 0 (none)");
  }
  if (problem.page_table != nullptr) {
    return unsupported("page_table was given; cuda-sm90 takes k and v that are not paged");
  }
  if (problem.block_max && problem.policy.kind != PolicyKind::kDense) {
    return unsupported("block_max was asked for with a policy; cuda-sm90 writes it with dense");
  }
  const std::int64_t heads = problem.sequences.num_sequences * problem.num_heads_q;
  if (heads > 65535 || heads * std::max<std::int64_t>(problem.q_blocks, 1) > INT32_MAX) {
    return unsupported("the call has ", heads, " (sequence, head) pairs of ", problem.q_blocks,
                       " query blocks; cuda-sm90 accepts 65535 pairs and 2^31 blocks in all");
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
  const Device device = problem.device;
  const struct {
    const char* name;
    const void* pointer;
  } pointers[] = {{"q", problem.q.data},
                  {"k", problem.k.data},
                  {"v", problem.v.data},
                  {"out", problem.out.data},
                  {"policy.thresholds", problem.policy.thresholds.data},
                  {"sinks", problem.sinks},
                  {"cu_seqlens_q", problem.sequences.cu_seqlens_q},
                  {"cu_seqlens_k", problem.sequences.cu_seqlens_k},
                  {"seqused_k", problem.sequences.seqused_k},
                  {"leftpad_k", problem.sequences.leftpad_k},
                  {"q_offsets", problem.sequences.q_offsets},
                  {"lse", problem.lse.data},
                  {"kept_blocks", problem.kept_blocks.data},
                  {"visible_blocks", problem.visible_blocks.data},
                  {"kept_mask", problem.kept_mask.data},
                  {"block_max", problem.block_max.data}};
  for (const auto& item : pointers) {
    BSFA_RETURN_IF_ERROR(check_pointer(item.name, item.pointer, device));
  }
  return {};
}

Status plan(const Problem& problem, AttentionPlan* plan) {
  BSFA_RETURN_IF_ERROR(check_features(problem));
  DeviceFacts facts;
  BSFA_RETURN_IF_ERROR(device_facts(problem.device.index, &facts));
  if (facts.major != 9 || facts.minor != 0) {
    return unsupported("cuda device ", problem.device.index, " has compute capability ",
                       facts.major, ".", facts.minor, "; cuda-sm90 needs 9.0");
  }
  BSFA_RETURN_IF_ERROR(check_operands(problem));
  const char* forms[] = {"dense", "gated", "calibrating"};
  plan->kernel = text(forms[static_cast<int>(form_of(problem))], " ", kBlockM, "x", kPairN, "x",
                      problem.head_dim, ", TMA and wgmma");
  plan->compute = dtype_name(problem.q.dtype);
  plan->workspace_bytes = kWorkspaceBytes;
  return {};
}

template <int kRank>
void copy_strides(const std::int64_t (&from)[kRank], std::int64_t (&to)[kRank]) {
  std::copy(from, from + kRank, to);
}

KernelParams kernel_params(const Problem& problem, const DeviceFacts& facts) {
  const SequenceLayout& layout = problem.sequences;
  KernelParams p{};
  p.sequences = layout;
  p.window_blocks =
      problem.policy.kind == PolicyKind::kSlidingWindow ? problem.policy.window_blocks : -1;
  p.num_heads_q = static_cast<int>(problem.num_heads_q);
  p.group = static_cast<int>(problem.group);
  p.q_blocks = static_cast<int>(problem.q_blocks);
  // Half of the L2 for the keys and values of the heads under way; the rest is for what passes.
  const std::int64_t head_bytes =
      std::max<std::int64_t>(2 * 2 * layout.max_seqlen_k * problem.head_dim, 1);
  const std::int64_t kv_heads = layout.num_sequences * problem.num_heads_kv;
  p.section_kv_heads =
      static_cast<int>(std::clamp<std::int64_t>(facts.l2_bytes / 2 / head_bytes, 1, kv_heads));
  p.softmax_scale = problem.softmax_scale;
  p.scale_log2 = problem.softmax_scale * 1.44269504088896340736f;
  p.zero_value_tail = layout.packed || layout.seqused_k != nullptr || layout.leftpad_k != nullptr;
  p.sinks = problem.sinks;
  p.out = problem.out.data;
  std::copy(problem.out.stride, problem.out.stride + 3, p.out_stride);
  p.lse = problem.lse.data;
  copy_strides(problem.lse.stride, p.lse_stride);
  const ThresholdView& table = problem.policy.thresholds;
  p.thresholds = table.data;
  p.threshold_stride[0] = table.stride_batch;
  p.threshold_stride[1] = table.stride_head;
  p.threshold_blocks = static_cast<int>(std::min<std::int64_t>(table.num_q_blocks, INT32_MAX));
  p.kept_blocks = problem.kept_blocks.data;
  copy_strides(problem.kept_blocks.stride, p.kept_stride);
  p.kept_mask = problem.kept_mask.data;
  copy_strides(problem.kept_mask.stride, p.mask_stride);
  p.block_max = problem.block_max.data;
  copy_strides(problem.block_max.stride, p.max_stride);
  p.tile_counter = static_cast<int*>(problem.workspace);
  return p;
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
  PrepareParams preparation{};
  preparation.kernel = arguments.params;
  preparation.form = form;
  preparation.kv_blocks = static_cast<int>(problem.kv_blocks);
  preparation.visible_blocks = problem.visible_blocks.data;
  copy_strides(problem.visible_blocks.stride, preparation.visible_stride);
  BSFA_RETURN_IF_ERROR(prepare(preparation, stream));
  if (problem.q_blocks == 0) return {};

  // Without keys nothing is ever copied, but a map must describe something.
  const bool no_keys = problem.k.data == nullptr || problem.k.shape[1] == 0;
  BSFA_RETURN_IF_ERROR(encode_tensor_map("q", problem.q, kBlockM, &arguments.q));
  BSFA_RETURN_IF_ERROR(
      encode_tensor_map("k", no_keys ? problem.q : problem.k, kPairN, &arguments.k));
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
