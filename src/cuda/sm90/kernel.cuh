#pragma once

#include "cuda/common/ptx.cuh"
#include "cuda/sm90/config.cuh"
#include "cuda/sm90/consumer.cuh"
#include "cuda/sm90/producer.cuh"

// The sm90 kernel: set-up of the barriers and the split into roles.

namespace bsfa::cuda::sm90 {

template <int kHeadDim>
__device__ __forceinline__ void init_barriers(StreamState<kHeadDim>& state) {
  using C = Config<kHeadDim>;
  mbarrier_init(&state.q_full, 1);
  mbarrier_init(&state.q_empty, kConsumerWarps);
  for (int i = 0; i < C::kStagesK; ++i) {
    mbarrier_init(&state.k_full[i], 1);
    mbarrier_init(&state.k_empty[i], kConsumerWarps);
  }
  for (int i = 0; i < C::kStagesV; ++i) {
    mbarrier_init(&state.v_full[i], 1);
    mbarrier_init(&state.v_empty[i], kConsumerWarps);
  }
  for (int i = 0; i < 2; ++i) {
    mbarrier_init(&state.tile_full[i], 1);
    mbarrier_init(&state.tile_empty[i], kConsumerWarps);
  }
}

template <typename T, Form kForm, int kHeadDim>
__global__ void __launch_bounds__(Config<kHeadDim>::kThreads, 1)
    attention_kernel(const __grid_constant__ Arguments args) {
  using C = Config<kHeadDim>;
  extern __shared__ std::uint8_t raw[];
  auto& shared =
      *reinterpret_cast<SharedStorage<kHeadDim>*>(raw + (1024 - shared_address(raw) % 1024) % 1024);
  const int warp = threadIdx.x / 32;

  if (threadIdx.x == 0) {
    prefetch_tensor_map(&args.q);
    prefetch_tensor_map(&args.k);
    prefetch_tensor_map(&args.v);
    for (int i = 0; i < C::kStreams; ++i) init_barriers(shared.state[i]);
    fence_mbarrier_init();
  }
  __syncthreads();

  if (warp < kWarpgroup / 32) {
    release_registers<kProducerRegisters>();
    if (threadIdx.x % 32 == 0 && warp < C::kStreams) {
      produce<kForm>(args, shared.stream[warp], shared.state[warp], warp);
    }
  } else {
    acquire_registers<C::kConsumerRegisters>();
    const int stream = static_cast<int>(uniform(warp / (kWarpgroup / 32) - 1));
    Consumer<T, kForm, kHeadDim> consumer{args, shared.stream[stream], shared.state[stream],
                                          stream};
    consumer.run();
  }
}

}  // namespace bsfa::cuda::sm90
