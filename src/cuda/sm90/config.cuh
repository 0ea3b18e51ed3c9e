#pragma once

#include <cstdint>

#include "cuda/scheduler/tile.cuh"
#include "cuda/sm90/arguments.hpp"

// Tile, pipeline depths and the shared-memory plan of the sm90 family.

namespace bsfa::cuda::sm90 {

inline constexpr int kWarpgroup = 128;
inline constexpr int kConsumerWarps = 8;
inline constexpr int kConsumerThreads = 2 * kWarpgroup;
inline constexpr int kThreads = kConsumerThreads + kWarpgroup;
// 168 registers a thread at launch, redistributed: 232 * 256 + 40 * 128 = 168 * 384.
inline constexpr int kConsumerRegisters = 232;
inline constexpr int kProducerRegisters = 40;

template <int kHeadDim>
struct Config {
  static_assert(kHeadDim == 64 || kHeadDim == 128);
  static constexpr int kChunks = kHeadDim / 64;             // 128-byte columns of a row
  static constexpr int kStagesK = kHeadDim == 128 ? 2 : 4;  // of pairs
  // Of blocks. At least 4 where gated: a pair in the product and a pair on its way.
  static constexpr int kStagesV = kHeadDim == 128 ? 4 : 6;
  static constexpr int kBlockBytes = kBlockN * kHeadDim * 2;
  static constexpr int kPairBytes = kPairN * kHeadDim * 2;
  static constexpr int kQBytes = kBlockM * kHeadDim * 2;
};

// Named barriers; 0 is __syncthreads. One for each warpgroup from these on.
enum Barrier : int { kBarrierTurn = 1, kBarrierStore = 3 };

// Ballots under way: what each consumer warp has to say about the blocks of a pair, the upper one
// first, read by all who act on it.
inline constexpr int kBallotSlots = 4;

// Operand tiles are [64-column chunk][row][128 bytes], swizzled, as the copy engine writes them.
template <int kHeadDim>
struct SharedStorage {
  using C = Config<kHeadDim>;
  alignas(1024) std::uint8_t q[2][C::kQBytes];
  alignas(1024) std::uint8_t k[C::kStagesK][C::kPairBytes];
  alignas(1024) std::uint8_t v[C::kStagesV][C::kBlockBytes];
  alignas(1024) std::uint8_t out[C::kQBytes];
  Tile tile[2];
  int2 ballot[kBallotSlots][kConsumerWarps];
  std::uint64_t q_full[2], q_empty[2];
  std::uint64_t k_full[C::kStagesK], k_empty[C::kStagesK];
  std::uint64_t v_full[C::kStagesV], v_empty[C::kStagesV];
  std::uint64_t v_landed;  // a last block whose rows past the end are still to be zeroed
  std::uint64_t tile_full[2], tile_empty[2];
  std::uint64_t ballot_full[kBallotSlots], ballot_empty[kBallotSlots];
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
