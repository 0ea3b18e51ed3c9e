#pragma once

#include "cuda/common/ptx.cuh"
#include "cuda/sm90/config.cuh"
#include "cuda/sm90/consumer.cuh"
#include "cuda/sm90/producer.cuh"

// The sm90 kernel: set-up of the barriers and the split into streams.

namespace bsfa::cuda::sm90 {

template <typename C>
__device__ __forceinline__ void init_barriers(StreamState<C>& state) {
  mbarrier_init(&state.q_full, 1);
  mbarrier_init(&state.q_empty, C::kStreamWarps);
  mbarrier_init(&state.turn, 1);
  for (int i = 0; i < C::kStagesK; ++i) {
    mbarrier_init(&state.k_full[i], 1);
    mbarrier_init(&state.k_empty[i], C::kStreamWarps);
  }
  for (int i = 0; i < C::kStagesV; ++i) {
    mbarrier_init(&state.v_full[i], 1);
    mbarrier_init(&state.v_empty[i], C::kStreamWarps);
  }
  for (int i = 0; i < 2; ++i) {
    mbarrier_init(&state.tile_full[i], 1);
    mbarrier_init(&state.tile_empty[i], C::kStreamWarps);
  }
}

template <typename T, typename C>
__global__ void __launch_bounds__(C::kThreads, 1)
    attention_kernel(const __grid_constant__ Arguments args) {
  extern __shared__ std::uint8_t raw[];
  auto& shared =
      *reinterpret_cast<SharedStorage<C>*>(raw + (1024 - shared_address(raw) % 1024) % 1024);

  if (threadIdx.x == 0) {
    prefetch_tensor_map(&args.q);
    prefetch_tensor_map(&args.k);
    prefetch_tensor_map(&args.v);
    // Unrolled, ptxas serialises the products of gated forms (C7511), however little there is to
    // it.
#pragma unroll 1
    for (int i = 0; i < C::kStreams; ++i) {
      init_barriers(shared.state[i]);
      shared.state[i].tile_count = *args.tile_count;
    }
    fence_mbarrier_init();
  }
  __syncthreads();

  const int stream = static_cast<int>(uniform(threadIdx.x / C::kStreamThreads));
  if constexpr (C::kProducers) {
    if (stream == C::kStreams) {
      release_registers<kProducerRegisters>();
      const int served = static_cast<int>(uniform(threadIdx.x % kWarpgroup / 32));
      if (served < C::kStreams) {
        Producer<C>{{args, shared.stream[served], shared.state[served]}}.run(blockIdx.x +
                                                                             served * gridDim.x);
      }
      return;
    }
    acquire_registers<C::kRegisters>();
  }
  Consumer<T, C>{{args, shared.stream[stream], shared.state[stream]}, stream}.run();
}

}  // namespace bsfa::cuda::sm90
