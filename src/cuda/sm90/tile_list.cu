#include "core/status.hpp"
#include "cuda/common/device.hpp"
#include "cuda/sm90/launch.hpp"
#include "cuda/sm90/tile_list.cuh"

namespace bsfa::cuda::sm90 {
namespace {

constexpr int kThreads = 128;

template <Form kForm>
__global__ void list_kernel(const __grid_constant__ Arguments args) {
  const int index = blockIdx.x * kThreads + threadIdx.x;
  if (index < total_tiles(args.params)) args.tiles[index] = listed_tile<kForm>(args.params, index);
}

}  // namespace

Status list_tiles(const Arguments& arguments, Form form, cudaStream_t stream) {
  const int blocks = (total_tiles(arguments.params) + kThreads - 1) / kThreads;
  switch (form) {
    case Form::kDense:
      list_kernel<Form::kDense><<<blocks, kThreads, 0, stream>>>(arguments);
      break;
    case Form::kGated:
      list_kernel<Form::kGated><<<blocks, kThreads, 0, stream>>>(arguments);
      break;
    case Form::kCalibrating:
      list_kernel<Form::kCalibrating><<<blocks, kThreads, 0, stream>>>(arguments);
      break;
  }
  return check(cudaGetLastError(), "launch of the kernel that lists tiles");
}

}  // namespace bsfa::cuda::sm90
