#pragma once

#include <algorithm>

#include "core/status.hpp"
#include "cuda/common/device.hpp"
#include "cuda/sm90/kernel.cuh"
#include "cuda/sm90/launch.hpp"

namespace bsfa::cuda::sm90 {

template <typename T, Form kForm, int kHeadDim, bool kSelected>
Status launch_attention(const Arguments& arguments, int multiprocessors, cudaStream_t stream) {
  using C = Config<kForm, kHeadDim, kSelected>;
  constexpr int kBytes = sizeof(SharedStorage<C>) + 1024;  // to align the start
  const auto kernel = attention_kernel<T, C>;
  static SharedMemoryGrant grant;
  BSFA_RETURN_IF_ERROR(check(grant.ask(reinterpret_cast<const void*>(kernel), kBytes),
                             "shared memory of the sm90 kernel"));
  const int tiles = total_tiles(arguments.params);
  const int blocks = std::min((tiles + C::kStreams - 1) / C::kStreams, multiprocessors);
  kernel<<<blocks, C::kThreads, kBytes, stream>>>(arguments);
  return check(cudaGetLastError(), "launch of the sm90 kernel");
}

}  // namespace bsfa::cuda::sm90
