#include "core/status.hpp"
#include "cuda/common/device.hpp"
#include "cuda/sm90/launch.hpp"
#include "cuda/sm90/tile_list.cuh"

namespace bsfa::cuda::sm90 {
namespace {

constexpr int kThreads = 128;

// Counts the tiles that exist, and starts the counter of those handed out. For one block of
// threads. Lengths that do not fit the tensors are an error of the caller's, but nothing is written
// outside the workspace.
__device__ void count_tiles(const Arguments& args) {
  __shared__ int q_blocks;
  if (threadIdx.x == 0) q_blocks = 0;
  __syncthreads();
  for (int i = threadIdx.x; i < args.params.sequences.num_sequences; i += kThreads) {
    atomicAdd(&q_blocks, query_blocks(args.params, i));
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    *args.params.tile_counter = 0;
    *args.tile_count = min(q_blocks * args.params.num_heads_q, args.most_tiles);
  }
}

template <Form kForm, bool kSelected>
__global__ void list_kernel(const __grid_constant__ Arguments args) {
  if (blockIdx.x == 0) count_tiles(args);
  const KernelParams& p = args.params;
  const int index = blockIdx.x * kThreads + threadIdx.x;
  if (index >= total_tiles(p)) return;
  const ListedTile tile = listed_tile<kForm>(p, index);
  if (tile.sequence < 0) return;
  const int place = all_tiles_exist(p.sequences) ? index : tiles_before(p, tile);
  if (place >= args.most_tiles) return;
  if constexpr (kSelected) {
    reinterpret_cast<SelectedTile*>(args.tiles)[place] = selected_tile(p, tile);
  } else {
    args.tiles[place] = tile;
  }
}

template <Form kForm>
void launch_list(const Arguments& arguments, int blocks, cudaStream_t stream) {
  if (arguments.params.lists) {
    list_kernel<kForm, true><<<blocks, kThreads, 0, stream>>>(arguments);
  } else {
    list_kernel<kForm, false><<<blocks, kThreads, 0, stream>>>(arguments);
  }
}

}  // namespace

Status list_tiles(const Arguments& arguments, Form form, cudaStream_t stream) {
  const int blocks = (total_tiles(arguments.params) + kThreads - 1) / kThreads;
  switch (form) {
    case Form::kDense:
      launch_list<Form::kDense>(arguments, blocks, stream);
      break;
    case Form::kGated:
      launch_list<Form::kGated>(arguments, blocks, stream);
      break;
    case Form::kCalibrating:
      launch_list<Form::kCalibrating>(arguments, blocks, stream);
      break;
  }
  return check(cudaGetLastError(), "launch of the kernel that lists tiles");
}

}  // namespace bsfa::cuda::sm90
