#pragma once

#include "cuda/common/ptx.cuh"
#include "cuda/sm90/config.cuh"
#include "cuda/sm90/consumer.cuh"
#include "cuda/sm90/producer.cuh"

// The sm90 kernel: set-up of the barriers and the split into roles.

namespace bsfa::cuda::sm90 {

template <typename T, Form kForm, int kHeadDim>
__global__ void __launch_bounds__(kThreads, 1)
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
    for (int i = 0; i < 2; ++i) {
      mbarrier_init(&shared.q_full[i], 1);
      mbarrier_init(&shared.q_empty[i], kConsumerWarps);
    }
    for (int i = 0; i < C::kStagesK; ++i) {
      mbarrier_init(&shared.k_full[i], 1);
      mbarrier_init(&shared.k_empty[i], kConsumerWarps);
    }
    for (int i = 0; i < C::kStagesV; ++i) {
      mbarrier_init(&shared.v_full[i], 1);
      mbarrier_init(&shared.v_empty[i], kConsumerWarps);
    }
    mbarrier_init(&shared.v_landed, 1);
    // Tiles are read by the consumers, the V warp and, where there is one, the warp of maxima.
    constexpr int kReaders = kConsumerWarps + 1 + (kForm == Form::kCalibrating ? 1 : 0);
    for (int i = 0; i < 2; ++i) {
      mbarrier_init(&shared.tile_full[i], 1);
      mbarrier_init(&shared.tile_empty[i], kReaders);
    }
    // Ballots are read by the V warp and the consumers, or by the warp of maxima.
    for (int i = 0; i < kBallotSlots; ++i) {
      mbarrier_init(&shared.ballot_full[i], kConsumerWarps);
      mbarrier_init(&shared.ballot_empty[i], kForm == Form::kGated ? kConsumerWarps + 1 : 1);
    }
    fence_mbarrier_init();
  }
  __syncthreads();

  if (warp < 4) {
    release_registers<kProducerRegisters>();
    if (warp == 0) {
      if (threadIdx.x == 0) load_queries_and_keys<kForm>(args, shared);
    } else if (warp == 1) {
      load_values<kForm>(args, shared);
    } else if (warp == 2 && kForm == Form::kCalibrating) {
      write_block_maxima(args, shared);
    }
  } else {
    acquire_registers<kConsumerRegisters>();
    Consumer<T, kForm, kHeadDim> consumer{args, shared, warp / 4 - 1};
    consumer.run();
  }
}

}  // namespace bsfa::cuda::sm90
