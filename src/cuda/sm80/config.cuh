#pragma once

#include <cstdint>

#include "cuda/common/params.hpp"

// Tile, warps and the shared-memory plan of the sm80 family.

namespace bsfa::cuda::sm80 {

// The keys of a step are one gate block, so that a decision is about exactly what one step
// computes.
inline constexpr int kGateRows = 128;
inline constexpr int kBlockN = 64;

// Up to head_dim 128: 128 rows, 4 warps of 32. Each fragment of K and V is then read from shared
// memory once for two tiles of 16 rows; with 16 rows a warp (8 warps) the reads, 256 bytes for
// every 4096 multiply-adds, would need more than the 128 bytes a cycle that shared memory gives.
// Two CTAs fit a multiprocessor (255 registers a thread), and one computes scores while the other
// takes exponentials.
//
// head_dim 256: 32 rows of output do not fit in a thread's registers, so warps of 16 rows. Gated: 8
// of them, the rows that vote together, one CTA a multiprocessor. Else 4, so that there are two
// CTAs.
template <Form kFormOf, int kHeadDimOf>
struct Config {
  static constexpr Form kForm = kFormOf;
  static constexpr int kHeadDim = kHeadDimOf;
  static_assert(kHeadDim == 64 || kHeadDim == 96 || kHeadDim == 128 || kHeadDim == 256);
  static constexpr int kBlockM = kHeadDim == 256 && kForm != Form::kGated ? 64 : kGateRows;
  static constexpr int kParts = kGateRows / kBlockM;      // CTAs a gate block of rows
  static constexpr int kTiles = kHeadDim == 256 ? 1 : 2;  // of 16 rows, per warp
  static constexpr int kWarps = kBlockM / (16 * kTiles);
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kMinBlocks = kWarps == 4 ? 2 : 1;
  // Steps of 16 columns of Q that stay in registers: each saves a third (head_dim 256: a fifth) of
  // what a step of scores reads from shared memory. Where registers are short they are loaded
  // again after a kept block, and only runs of blocks that are not kept save anything.
  static constexpr bool kReloadsQ = kHeadDim == 128 && kForm == Form::kGated;
  static constexpr int kHeld = kHeadDim == 64    ? 4
                               : kHeadDim == 96  ? 4
                               : kHeadDim == 256 ? 8
                               : kReloadsQ       ? 2
                                                 : 0;
  // Rows of shared memory are padded to a power of two, in units of 16 bytes.
  static constexpr int kChunks = kHeadDim / 8;
  static constexpr int kRowBytes = kHeadDim == 64 ? 128 : kHeadDim <= 128 ? 256 : 512;
  static constexpr int kQBytes = kBlockM * kRowBytes;
  static constexpr int kBlockBytes = kBlockN * kRowBytes;
};

// Depth of the pipeline, chosen at run time by what shared memory the card has.
struct Stages {
  int k;  // 1 or 2
  int v;  // 1 or 2

  friend constexpr bool operator==(const Stages&, const Stages&) = default;
};

// Dynamic shared memory: Q, the K stages, the V stages.
template <typename C>
constexpr int shared_bytes(Stages stages) {
  return C::kQBytes + (stages.k + stages.v) * C::kBlockBytes;
}

// What a CTA has besides: `Work`, and what the system keeps.
inline constexpr int kStaticSharedBytes = 256;
inline constexpr int kReservedSharedBytes = 1024;

// The deepest pipeline with which as many CTAs fit a multiprocessor as the registers allow; else
// the deepest that fits at all; {0, 0} if none does.
template <typename C>
constexpr Stages choose_stages(int bytes_per_block, int bytes_per_multiprocessor) {
  constexpr Stages kGatedChoices[] = {{2, 1}};
  constexpr Stages kOtherChoices[] = {{2, 2}, {2, 1}, {1, 1}};
  const auto try_all = [&](const auto& choices) {
    for (int blocks = C::kMinBlocks; blocks >= 1; --blocks) {
      for (const Stages stages : choices) {
        const int bytes = shared_bytes<C>(stages) + kStaticSharedBytes;
        if (bytes <= bytes_per_block &&
            blocks * (bytes + kReservedSharedBytes) <= bytes_per_multiprocessor) {
          return stages;
        }
      }
    }
    return Stages{0, 0};
  };
  return C::kForm == Form::kGated ? try_all(kGatedChoices) : try_all(kOtherChoices);
}

// A strided operand [batch, row, head, head_dim].
struct Operand {
  const void* data;
  std::int64_t stride[3];  // elements: batch, row, head
};

// Kernel argument.
struct Arguments {
  Operand q, k, v;
  bool out_vectors;
  bool few_tiles;  // CTAs are for tiles that exist, see existing_place(); else for all of tile_place
  Stages stages;
  KernelParams params;
};

}  // namespace bsfa::cuda::sm80
