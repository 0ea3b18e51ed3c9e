#include "core/block_lists.hpp"
#include "core/status.hpp"
#include "cuda/common/device.hpp"
#include "cuda/common/prepare.hpp"

namespace bsfa::cuda {
namespace {

constexpr int kThreads = 128;

// The blocks of query block `row` that are computed if nothing is gated, and all that are visible;
// columns of the statistics.
__device__ void ranges(const KernelParams& p, int sequence, int row, BlockRange* computed,
                       BlockRange* visible) {
  const BlockShape block = p.sequences.block;
  const Sequence s = sequence_at(p.sequences, sequence);
  const std::int64_t i = floor_div(s.q_offset, block.q) + row;
  const std::int64_t base = p.sequences.kv_offset / block.kv;
  BlockRange blocks = visible_blocks(p.sequences, s, i);
  *visible = {blocks.begin - base, blocks.end - base};
  if (p.window_blocks >= 0) {
    blocks = intersect(blocks, sliding_window_range(i, p.window_blocks, block));
  }
  *computed = {blocks.begin - base, blocks.end - base};
}

// One warp for each (sequence, head).
__global__ void count_kernel(const __grid_constant__ PrepareParams params) {
  const KernelParams& p = params.kernel;
  const int index = blockIdx.x * (kThreads / 32) + threadIdx.x / 32;
  if (index >= p.sequences.num_sequences * p.num_heads_q) return;
  const int sequence = index / p.num_heads_q;
  const int head = index % p.num_heads_q;
  int kept = 0;
  int seen = 0;
  for (int row = threadIdx.x % 32; row < p.q_blocks; row += 32) {
    BlockRange computed, visible;
    ranges(p, sequence, row, &computed, &visible);
    if (!p.lists) kept += static_cast<int>(computed.size());
    seen += static_cast<int>(visible.size());
  }
  kept = __reduce_add_sync(0xffffffffu, kept);
  seen = __reduce_add_sync(0xffffffffu, seen);
  if (threadIdx.x % 32 != 0) return;
  if (p.kept_blocks != nullptr) {
    p.kept_blocks[sequence * p.kept_stride[0] + head * p.kept_stride[1]] =
        params.form == Form::kGated ? 0 : kept;
  }
  if (params.visible_blocks != nullptr) {
    params.visible_blocks[sequence * params.visible_stride[0] + head * params.visible_stride[1]] =
        seen;
  }
}

// One CUDA block for each (query block, sequence and head).
__global__ void fill_kernel(const __grid_constant__ PrepareParams params) {
  const KernelParams& p = params.kernel;
  const int row = blockIdx.x;
  const int sequence = blockIdx.y / p.num_heads_q;
  const int head = blockIdx.y % p.num_heads_q;
  BlockRange computed, visible;
  ranges(p, sequence, row, &computed, &visible);
  for (int n = threadIdx.x; n < params.kv_blocks; n += kThreads) {
    if (p.kept_mask != nullptr) {
      p.kept_mask[sequence * p.mask_stride[0] + head * p.mask_stride[1] + row * p.mask_stride[2] +
                  n * p.mask_stride[3]] =
          params.form != Form::kGated && !p.lists && computed.contains(n);
    }
    if (p.block_max != nullptr) {
      p.block_max[sequence * p.max_stride[0] + head * p.max_stride[1] + row * p.max_stride[2] +
                  n * p.max_stride[3]] = -INFINITY;
    }
  }
  if (!p.lists || params.form == Form::kGated) return;

  // Of blocks that are listed and visible all are kept.
  __syncthreads();
  const BlockList list = block_list(p.lists, p.num_heads_q, sequence, head, row);
  unsigned long long kept = 0;
  for (std::int64_t i = threadIdx.x; i < list.count; i += kThreads) {
    const std::int64_t n = list.blocks[i];
    if (!visible.contains(n)) continue;
    ++kept;
    if (p.kept_mask != nullptr) {
      p.kept_mask[sequence * p.mask_stride[0] + head * p.mask_stride[1] + row * p.mask_stride[2] +
                  n * p.mask_stride[3]] = 1;
    }
  }
  if (p.kept_blocks != nullptr && kept > 0) {
    atomicAdd(reinterpret_cast<unsigned long long*>(
                  &p.kept_blocks[sequence * p.kept_stride[0] + head * p.kept_stride[1]]),
              kept);
  }
}

constexpr int kTailBlocks = 64;  // tails are short: most of these find nothing to do

// Rows after the last sequence of a packed call. One warp for each (row, head) at a time.
__global__ void clear_tail_kernel(const __grid_constant__ PrepareParams params) {
  const KernelParams& p = params.kernel;
  // Below 0 it is an error of the caller's, but nothing is written outside the tensors.
  const std::int64_t last = p.sequences.cu_seqlens_q[p.sequences.num_sequences];
  const std::int64_t begin = last > 0 ? last : 0;
  const std::int64_t count = (params.packed_rows - begin) * p.num_heads_q;
  for (std::int64_t i = blockIdx.x * (kThreads / 32) + threadIdx.x / 32; i < count;
       i += kTailBlocks * (kThreads / 32)) {
    const std::int64_t row = begin + i / p.num_heads_q;
    const std::int64_t head = i % p.num_heads_q;
    std::uint16_t* const out =
        static_cast<std::uint16_t*>(p.out) + row * p.out_stride[1] + head * p.out_stride[2];
    for (int d = threadIdx.x % 32; d < params.head_dim_v; d += 32) out[d] = 0;
    if (p.lse != nullptr && threadIdx.x % 32 == 0) {
      p.lse[head * p.lse_stride[1] + row * p.lse_stride[2]] = -INFINITY;
    }
  }
}

}  // namespace

Status prepare(const PrepareParams& params, cudaStream_t stream) {
  const KernelParams& p = params.kernel;
  const int heads = static_cast<int>(p.sequences.num_sequences) * p.num_heads_q;
  const int warps = kThreads / 32;
  if (params.packed_rows > 0) {
    clear_tail_kernel<<<kTailBlocks, kThreads, 0, stream>>>(params);
    BSFA_RETURN_IF_ERROR(check(cudaGetLastError(), "launch of the kernel that clears the tail"));
  }
  if (heads == 0) return {};
  if (p.kept_blocks != nullptr || params.visible_blocks != nullptr) {
    count_kernel<<<(heads + warps - 1) / warps, kThreads, 0, stream>>>(params);
    BSFA_RETURN_IF_ERROR(check(cudaGetLastError(), "launch of the counting kernel"));
  }
  const bool count_lists = p.lists && p.kept_blocks != nullptr && params.form != Form::kGated;
  if ((p.kept_mask != nullptr || p.block_max != nullptr || count_lists) && params.kv_blocks > 0 &&
      p.q_blocks > 0) {
    fill_kernel<<<dim3(p.q_blocks, heads), kThreads, 0, stream>>>(params);
    BSFA_RETURN_IF_ERROR(check(cudaGetLastError(), "launch of the filling kernel"));
  }
  return {};
}

}  // namespace bsfa::cuda
