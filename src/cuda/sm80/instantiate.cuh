#pragma once

#include "cuda/common/device.hpp"
#include "cuda/sm80/kernel.cuh"
#include "cuda/sm80/select.hpp"

// The kernels of one dtype and head_dim; each file of instantiations/ asks for one such set.

namespace bsfa::cuda::sm80 {

template <bool kVectors, typename T, typename C>
cudaError_t launch_kernel(const Arguments& args, int num_tiles, cudaStream_t stream) {
  const auto kernel = attention_kernel<kVectors, T, C>;
  const int bytes = shared_bytes<C>(args.stages);
  static SharedMemoryGrant grant;
  const cudaError_t error = grant.ask(reinterpret_cast<const void*>(kernel), bytes);
  if (error != cudaSuccess) return error;
  kernel<<<num_tiles * C::kParts, C::kThreads, bytes, stream>>>(args);
  return cudaGetLastError();
}

template <typename T, int kHeadDim>
cudaError_t launch_form(Form form, bool vectors, const Arguments& args, int num_tiles,
                        cudaStream_t stream) {
  const auto launch = [&]<Form kForm>(Config<kForm, kHeadDim>) {
    using C = Config<kForm, kHeadDim>;
    return vectors ? launch_kernel<true, T, C>(args, num_tiles, stream)
                   : launch_kernel<false, T, C>(args, num_tiles, stream);
  };
  switch (form) {
    case Form::kDense:
      return launch(Config<Form::kDense, kHeadDim>{});
    case Form::kGated:
      return launch(Config<Form::kGated, kHeadDim>{});
    case Form::kCalibrating:
      return launch(Config<Form::kCalibrating, kHeadDim>{});
  }
  return cudaErrorInvalidValue;
}

}  // namespace bsfa::cuda::sm80
