#include <algorithm>
#include <cmath>

#include "core/gate.hpp"
#include "core/status.hpp"
#include "cuda/common/device.hpp"
#include "cuda/common/order_statistics.hpp"

// One CUDA block for each row of maxima: the row is sorted in shared memory, and every budget reads
// its two neighbours.
//
// A bitonic sort. Thread t works on the pairs t, t + blockDim, ...: while pairs are at most 32
// apart a warp has 64 values for itself, and needs nobody else.

namespace bsfa::cuda {
namespace {

constexpr int kMaxThreads = 256;
constexpr int kMaxBudgets = 64;
constexpr int kMaxColumns = 32768;  // 128 KB of shared memory; two million tokens

struct OrderParams {
  const float* block_max;
  std::int64_t from_stride[3];
  float* thresholds;
  std::int64_t to_stride[3];
  std::int64_t first_q_block;
  std::int64_t first_kv_block;
  BlockShape block;
  int columns;
  int num_budgets;
  std::int64_t budgets[kMaxBudgets];
};

// Sorts `count` (a power of two) values, largest first.
__device__ void sort_descending(float* values, int count) {
  __syncthreads();
  for (int size = 2; size <= count; size *= 2) {
    for (int stride = size / 2; stride > 0; stride /= 2) {
      for (int pair = threadIdx.x; pair < count / 2; pair += blockDim.x) {
        const int low = (pair & -stride) * 2 + (pair & (stride - 1));
        const float a = values[low];
        const float b = values[low + stride];
        const bool descending = (low & size) == 0;
        if ((a < b) == descending) {
          values[low] = b;
          values[low + stride] = a;
        }
      }
      // The next step's pairs are half as far apart, or as far as they get in the next size.
      const int next = stride > 1 ? stride / 2 : size;
      if (stride > 32 || next > 32) {
        __syncthreads();
      } else {
        __syncwarp();
      }
    }
  }
  __syncthreads();
}

__global__ void __launch_bounds__(kMaxThreads)
    order_kernel(const __grid_constant__ OrderParams params) {
  extern __shared__ float values[];
  __shared__ int first, last, candidates;
  const int head = blockIdx.y;
  const int row = gridDim.x - 1 - blockIdx.x;  // the longest rows first
  const float* from = params.block_max + head * params.from_stride[0] + row * params.from_stride[1];
  if (threadIdx.x == 0) {
    first = params.columns;
    last = -1;
    candidates = 0;
  }
  __syncthreads();
  int low = params.columns;
  int high = -1;
  for (int c = threadIdx.x; c < params.columns; c += blockDim.x) {
    const float value = from[c * params.from_stride[2]];
    values[c] = value;
    if (value != -INFINITY) {
      low = min(low, c);
      high = c;
    }
  }
  low = __reduce_min_sync(0xffffffffu, low);
  high = __reduce_max_sync(0xffffffffu, high);
  if (threadIdx.x % 32 == 0) {
    atomicMin(&first, low);
    atomicMax(&last, high);
  }
  __syncthreads();
  // Candidates to the front of the order; what is outside or always kept becomes -inf.
  const BlockRange diagonal = always_kept_range(params.first_q_block + row, params.block);
  const int count = max(last - first + 1, 0);
  int padded = 1;
  while (padded < count) padded *= 2;
  bool finite = true;
  int mine = 0;
  for (int c = threadIdx.x; c < params.columns; c += blockDim.x) {
    if (c < first || c > last) continue;
    finite = finite && isfinite(values[c]);
    if (diagonal.contains(params.first_kv_block + c)) {
      values[c] = -INFINITY;
    } else {
      ++mine;
    }
  }
  mine = __reduce_add_sync(0xffffffffu, mine);
  if (threadIdx.x % 32 == 0) atomicAdd(&candidates, mine);
  finite = __syncthreads_and(finite);
  if (finite) {
    // The row starts at column `first`; what lies past its end must not come in.
    const int shift = first < params.columns ? first : 0;
    if (shift > 0) {  // a model's window: move the row to the front, a stretch at a time
      for (int begin = 0; begin < count; begin += blockDim.x) {
        const int c = begin + threadIdx.x;
        const float value = c < count ? values[shift + c] : 0;
        __syncthreads();
        if (c < count) values[c] = value;
        __syncthreads();
      }
    }
    for (int c = count + threadIdx.x; c < padded; c += blockDim.x) values[c] = -INFINITY;
    sort_descending(values, padded);
  }
  for (int n = threadIdx.x; n < params.num_budgets; n += blockDim.x) {
    const std::int64_t budget = params.budgets[n];
    float threshold = -INFINITY;
    if (!finite) {
      threshold = NAN;
    } else if (candidates > budget) {
      threshold = static_cast<float>(
          (static_cast<double>(values[budget - 1]) + static_cast<double>(values[budget])) / 2);
    }
    params.thresholds[n * params.to_stride[0] + head * params.to_stride[1] +
                      row * params.to_stride[2]] = threshold;
  }
}

}  // namespace

Status select_thresholds(const SelectThresholdsParams& params) {
  const std::int64_t* shape = params.block_max.shape;
  if (params.num_budgets > kMaxBudgets) {
    return unsupported("budgets has ", params.num_budgets, " entries; cuda accepts up to ",
                       kMaxBudgets);
  }
  if (shape[2] > kMaxColumns || shape[0] > 65535) {
    return unsupported("block_max has ", shape[0], " heads of ", shape[2],
                       " key/value blocks; cuda accepts up to 65535 and ", kMaxColumns);
  }
  DeviceFacts facts;
  BSFA_RETURN_IF_ERROR(device_facts(params.device.index, &facts));
  BSFA_RETURN_IF_ERROR(check_pointer("block_max", params.block_max.data, params.device));
  BSFA_RETURN_IF_ERROR(check_pointer("thresholds", params.thresholds.data, params.device));
  if (shape[0] == 0 || shape[1] == 0) return {};
  OrderParams p{};
  p.block_max = params.block_max.data;
  p.thresholds = params.thresholds.data;
  std::copy(params.block_max.stride, params.block_max.stride + 3, p.from_stride);
  std::copy(params.thresholds.stride, params.thresholds.stride + 3, p.to_stride);
  p.first_q_block = params.first_q_block;
  p.first_kv_block = params.first_kv_block;
  p.block = params.block;
  p.columns = static_cast<int>(shape[2]);
  p.num_budgets = static_cast<int>(params.num_budgets);
  std::copy(params.budgets, params.budgets + params.num_budgets, p.budgets);

  const CurrentDevice current(params.device.index);
  BSFA_RETURN_IF_ERROR(current.status());
  int padded = 1;
  while (padded < p.columns) padded *= 2;
  const int bytes = padded * static_cast<int>(sizeof(float));
  if (bytes > facts.shared_bytes) {
    return unsupported("block_max has ", shape[2], " key/value blocks; cuda device ",
                       params.device.index, " accepts up to ", facts.shared_bytes / 4);
  }
  BSFA_RETURN_IF_ERROR(
      check(cudaFuncSetAttribute(order_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
            "shared memory of the order statistics"));
  const dim3 grid(static_cast<unsigned>(shape[1]), static_cast<unsigned>(shape[0]));
  const int threads = std::clamp(padded / 2, 32, kMaxThreads);
  order_kernel<<<grid, threads, bytes, static_cast<cudaStream_t>(params.stream)>>>(p);
  return check(cudaGetLastError(), "launch of the order statistics");
}

}  // namespace bsfa::cuda
