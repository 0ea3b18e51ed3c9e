#pragma once

#include <cstdint>

#include "cuda/scheduler/tile.cuh"
#include "cuda/sm90/arguments.hpp"

// Tile, pipeline depths and the shared-memory plan of the sm90 family.

namespace bsfa::cuda::sm90 {

// A CTA is some streams of tiles that share nothing but the multiprocessor: each has a consumer
// warpgroup, which holds all 128 rows of its tile, and a producer thread of its own. The first
// warpgroup is that of the producers.
inline constexpr int kWarpgroup = 128;
inline constexpr int kConsumerWarps = kWarpgroup / 32;
inline constexpr int kProducerRegisters = 24;

// Block maxima are written so many at a time.
inline constexpr int kMaxima = 16;

template <int kHeadDim>
struct Config {
  static_assert(kHeadDim == 64 || kHeadDim == 128);
  static constexpr int kChunks = kHeadDim / 64;  // 128-byte columns of a row
  // As many as registers allow. At launch all threads have the same number of these; what the
  // producers give up, the consumers take.
  static constexpr int kStreams = kHeadDim == 128 ? 2 : 3;
  static constexpr int kThreads = (kStreams + 1) * kWarpgroup;
  static constexpr int kLaunchRegisters = 65536 / kThreads / 8 * 8;
  static constexpr int kConsumerRegisters =
      (kLaunchRegisters * (kStreams + 1) - kProducerRegisters) / kStreams / 8 * 8;
  static constexpr int kStagesK = kHeadDim == 128 ? 3 : 4;
  static constexpr int kStagesV = kHeadDim == 128 ? 2 : 3;
  static constexpr int kBlockBytes = kBlockN * kHeadDim * 2;
  static constexpr int kQBytes = kBlockM * kHeadDim * 2;
};

// Operand tiles are [64-column chunk][row][128 bytes], swizzled, as the copy engine writes them.
template <int kHeadDim>
struct Stream {
  using C = Config<kHeadDim>;
  alignas(1024) std::uint8_t q[C::kQBytes];
  alignas(1024) std::uint8_t k[C::kStagesK][C::kBlockBytes];
  alignas(1024) std::uint8_t v[C::kStagesV][C::kBlockBytes];
};

template <int kHeadDim>
struct StreamState {
  using C = Config<kHeadDim>;
  Tile tile[2];
  std::uint64_t q_full, q_empty;
  std::uint64_t k_full[C::kStagesK], k_empty[C::kStagesK];
  std::uint64_t v_full[C::kStagesV], v_empty[C::kStagesV];
  std::uint64_t tile_full[2], tile_empty[2];
  alignas(16) int block_max[2][kMaxima][kConsumerWarps];  // of warps' rows, as ordered integers
};

template <int kHeadDim>
struct SharedStorage {
  Stream<kHeadDim> stream[Config<kHeadDim>::kStreams];
  StreamState<kHeadDim> state[Config<kHeadDim>::kStreams];
};

// Where a ring of stages stands: which one is next, and the parity of its barrier's phase.
template <int kStages>
struct RingPosition {
  int stage = 0;
  std::uint32_t phase = 0;
  __device__ __forceinline__ void advance() {
    if (++stage == kStages) {
      stage = 0;
      phase ^= 1;
    }
  }
};

}  // namespace bsfa::cuda::sm90
