#pragma once

#include <cstdint>
#include <type_traits>

#include "cuda/sm90/arguments.hpp"
#include "cuda/sm90/tile_list.cuh"

// Tile, pipeline depths and the shared-memory plan of the sm90 family.

namespace bsfa::cuda::sm90 {

inline constexpr int kWarpgroup = 128;
inline constexpr int kProducerRegisters = 24;

// A CTA is some streams of tiles that share nothing but the multiprocessor. The 128 rows of a tile
// are in one warpgroup, as two halves of 64, or in two, with one half each:
//
// - Where nothing is voted on, two: four of them, each at its own place of the chain of products
//   and exponentials, keep the tensor cores busy. The first warp of a stream loads besides; a warp
//   of its own for that would take registers from all others.
// - Where every block is voted on, one: two that meet at each vote would be at the same place. The
//   others of the warpgroup would wait for a warp that loads, so each stream has a producer.
// - At head_dim 64 one, too: there are registers for a third stream.
template <Form form, int head_dim, bool selected>
struct Config {
  static_assert(head_dim == 64 || head_dim == 128);
  static constexpr Form kForm = form;
  static constexpr bool kGated = kForm == Form::kGated;
  // Whether each tile visits the blocks of a list.
  static constexpr bool kSelected = selected;
  using Tile = std::conditional_t<kSelected, SelectedTile, ListedTile>;
  static constexpr int kHeadDim = head_dim;
  static constexpr int kWarpgroups = kHeadDim == 128 && !kGated ? 2 : 1;  // of a stream
  static constexpr int kHalves = 2 / kWarpgroups;                         // of a warpgroup
  static constexpr int kStreams = kHeadDim == 128 ? 2 : 3;
  static constexpr int kStreamThreads = kWarpgroups * kWarpgroup;
  static constexpr int kStreamWarps = kStreamThreads / 32;
  static constexpr bool kProducers = kWarpgroups == 1;  // in a warpgroup after those of the streams
  static constexpr int kThreads = kStreams * kStreamThreads + (kProducers ? kWarpgroup : 0);
  // At launch all threads have the same number of registers; what the producers give up, the others
  // take.
  static constexpr int kLaunchRegisters = 65536 / kThreads / 8 * 8;
  static constexpr int kRegisters =
      (kLaunchRegisters * (kStreams + 1) - kProducerRegisters) / kStreams / 8 * 8;

  static constexpr int kChunks = kHeadDim / 64;  // 128-byte columns of a row
  // Whether streams take turns with the products of blocks that are kept. Two whose products run at
  // the same time slow each other down, and then both have exponentials at the same time.
  static constexpr bool kTurns = kGated && kStreams == 2;
  // Values of a block that is gated are asked for when all are done with the last.
  static constexpr int kStagesV = kGated ? 1 : kHeadDim == 128 ? 2 : 3;
  static constexpr int kStagesK = (kHeadDim == 128 ? 5 : 7) - kStagesV;
  static constexpr int kBlockBytes = kBlockN * kHeadDim * 2;
  static constexpr int kQBytes = kBlockM * kHeadDim * 2;
};

// Operand tiles are [64-column chunk][row][128 bytes], swizzled, as the copy engine writes them.
template <typename C>
struct Stream {
  alignas(1024) std::uint8_t q[C::kQBytes];
  alignas(1024) std::uint8_t k[C::kStagesK][C::kBlockBytes];
  alignas(1024) std::uint8_t v[C::kStagesV][C::kBlockBytes];
};

// Whether the tile after the one worked on is drawn, and what of it is asked for already.
struct alignas(16) NextTile {
  int drawn = 0;
  int queries = 0;
  int keys = 0;
  int values = 0;
};

template <typename C>
struct StreamState {
  typename C::Tile tile[2];                   // the one worked on, and the next
  int block[C::kSelected ? C::kStagesK : 1];  // kSelected: whose keys are in each stage
  int tile_count;                             // how many the list has
  NextTile next;                              // where there are no producers
  // A block's k_empty says that all warps have its scores, and so are done with the values of the
  // one before. The other *_empty are for producers.
  std::uint64_t q_full, q_empty;
  std::uint64_t k_full[C::kStagesK], k_empty[C::kStagesK];
  std::uint64_t v_full[C::kStagesV], v_empty[C::kStagesV];
  std::uint64_t tile_full[2], tile_empty[2];
  std::uint64_t turn;  // kTurns; in an odd phase while this stream has it
};

template <typename C>
struct SharedStorage {
  Stream<C> stream[C::kStreams];
  StreamState<C> state[C::kStreams];
};

// Where a ring of stages stands: which one is next, and the parity of its barrier's phase.
template <int kStages>
struct RingPosition {
  int stage = 0;
  std::uint32_t phase = 0;
  // The stage before this one.
  __device__ __forceinline__ int before() const { return stage == 0 ? kStages - 1 : stage - 1; }
  __device__ __forceinline__ std::uint32_t phase_before() const {
    return stage == 0 ? phase ^ 1 : phase;
  }
  __device__ __forceinline__ void advance() {
    if (++stage == kStages) {
      stage = 0;
      phase ^= 1;
    }
  }
};

}  // namespace bsfa::cuda::sm90
