#pragma once

#include <climits>
#include <cstdint>

#include "core/gate.hpp"
#include "core/geometry.hpp"
#include "core/selection.hpp"
#include "cuda/common/ptx.cuh"
#include "cuda/sm90/selector.hpp"

// From the log-sum-exps of sampled rows to the list of a query block (docs/method.md).

namespace bsfa::cuda::sm90 {

// What is the same for all heads of a query block. Blocks are relative to the first of the lists.
struct Unit {
  int row_begin;  // the first row that is present
  int rows;       // how many are
  int n_begin;    // blocks [n_begin, n_end) are visible
  int n_end;
  int sink_end;     // always kept: the blocks before this
  int local_begin;  // and [local_begin, local_end)
  int local_end;

  __device__ __forceinline__ bool always_kept(int n) const {
    return n < sink_end || (n >= local_begin && n < local_end);
  }
};

// A block number as an int, whatever it is.
__device__ __forceinline__ int bounded(std::int64_t block) {
  return static_cast<int>(max(min(block, std::int64_t{INT_MAX}), std::int64_t{INT_MIN}));
}

__device__ inline Unit unit_at(const SelectorArguments& args, const Sequence& s, int q_block) {
  SequenceLayout layout = args.sequences;
  layout.block = BlockShape{};  // the only one served: shifts in place of divisions
  Unit unit{};
  const std::int64_t i = first_q_block(s, layout.block) + q_block;
  const BlockRange rows = q_block_rows(s, i, layout.block);
  if (rows.size() == 0) return unit;
  const std::int64_t base = layout.kv_offset / layout.block.kv;
  const BlockRange visible = visible_blocks(layout, s, i);
  const BlockRange diagonal = always_kept_range(i, layout.block);
  unit.row_begin = static_cast<int>(rows.begin);
  unit.rows = static_cast<int>(rows.size());
  if (visible.size() > 0) {
    unit.n_begin = static_cast<int>(visible.begin - base);
    unit.n_end = static_cast<int>(visible.end - base);
  }
  unit.sink_end = bounded(args.sink_blocks - base);
  unit.local_begin = bounded(diagonal.begin - args.local_blocks - base);
  unit.local_end = bounded(diagonal.end - base);
  return unit;
}

// For one warpgroup and its units of a tile.
struct Chooser {
  // Beside the mass of a block that is always kept: more than any level.
  static constexpr std::uint32_t kAlways = 1u << 31;

  const SelectorArguments& args;
  const int sequence;
  const int kv_head;
  const float* lse;      // of the tile's rows
  const int first_slot;  // of the warpgroup's units in the CTA's scratch, which counts the tile's
  const int tile_unit;   // the tile's first

  __device__ __forceinline__ std::int64_t slot(int unit) const {
    return blockIdx.x * (kSampledRows >> args.rows_log2) + first_slot + unit;
  }
  __device__ __forceinline__ std::uint32_t* masses(int unit) const {
    return args.masses + slot(unit) * args.kv_blocks;
  }
  __device__ __forceinline__ bool exists(int unit) const {
    return tile_unit + first_slot + unit < args.q_blocks * args.group;
  }
  __device__ __forceinline__ Unit geometry(int unit) const {
    return unit_at(args, sequence_at(args.sequences, sequence),
                   (tile_unit + first_slot + unit) / args.group);
  }

  // Writes the masses of the blocks of each unit, in units of 2^-30. Several warps share a unit, or
  // one has several.
  __device__ __forceinline__ void weigh(int warp, int units) const {
    const int rows = 1 << args.rows_log2;
    const int sharing = max(4 / units, 1);
    for (int unit = warp / sharing; unit < units; unit += 4 / sharing) {
      if (!exists(unit)) return;
      const Unit at = geometry(unit);
      const float* const row_lse = lse + (first_slot + unit) * rows;
      int counted = 0;
      for (int t = 0; t < rows; ++t) counted += row_lse[t] < INFINITY ? 1 : 0;
      const float scale = static_cast<float>(kMassUnits) / static_cast<float>(max(counted, 1));
      const float* const from = args.block_lse + slot(unit) * args.kv_blocks * rows;
      for (int n = at.n_begin + warp % sharing * 32 + threadIdx.x % 32; n < at.n_end;
           n += sharing * 32) {
        const float4* const of_block = reinterpret_cast<const float4*>(from + n * rows);
        float mass = 0;
#pragma unroll 4
        for (int t = 0; t < rows / 4; ++t) {
          const float4 l = of_block[t];
          const float4 all = reinterpret_cast<const float4*>(row_lse)[t];
          mass += exp2_approx(l.x - all.x) + exp2_approx(l.y - all.y) +
                  (exp2_approx(l.z - all.z) + exp2_approx(l.w - all.w));
        }
        masses(unit)[n] = __float2uint_rn(mass * scale) | (at.always_kept(n) ? kAlways : 0u);
      }
    }
  }

  struct Held {
    std::uint32_t mass = 0;
    std::uint32_t blocks = 0;
  };

  // What the blocks from a level on hold together. For a warp.
  static __device__ __forceinline__ Held held(const std::uint32_t* masses, const Unit& at,
                                              std::uint32_t level) {
    Held mine;
#pragma unroll 4
    for (int n = at.n_begin + threadIdx.x % 32; n < at.n_end; n += 32) {
      const std::uint32_t mass = masses[n];
      if (mass >= level) {
        mine.mass += mass & ~kAlways;
        ++mine.blocks;
      }
    }
    return {__reduce_add_sync(0xffffffffu, mine.mass), __reduce_add_sync(0xffffffffu, mine.blocks)};
  }

  // The level from which on blocks are kept.
  __device__ __forceinline__ std::uint32_t level(const std::uint32_t* masses, const Unit& at,
                                                 std::uint32_t total) const {
    const auto target = static_cast<std::uint32_t>(ceil(args.coverage * total));
    std::uint32_t found = 0;  // the highest that holds the target
    for (std::uint32_t bit = kAlways >> 1; bit != 0; bit >>= 1) {
      if (held(masses, at, found | bit).mass >= target) found |= bit;
    }
    found = min(max(found, 1u), args.floor_units);
    if (held(masses, at, found).blocks <= args.stride) return found;
    std::uint32_t too_many = 0;  // the highest that keeps more than there is room for
    for (std::uint32_t bit = kAlways >> 1; bit != 0; bit >>= 1) {
      if (held(masses, at, too_many | bit).blocks > args.stride) too_many |= bit;
    }
    return too_many + 1;
  }

  // Writes the lists.
  __device__ __forceinline__ void choose(int warp, int units) const {
    for (int unit = warp; unit < units; unit += 4) {
      if (!exists(unit)) return;
      const int index = tile_unit + first_slot + unit;
      const int q_block = index / args.group;
      const int head = kv_head * args.group + index % args.group;
      const Unit at = geometry(unit);
      const std::uint32_t* const of_blocks = masses(unit);
      const std::uint32_t total = held(of_blocks, at, 0).mass;
      std::uint32_t from = level(of_blocks, at, total);
      float left_out = 0;
      if (total > 0) {
        const std::uint32_t kept = held(of_blocks, at, from).mass;
        left_out = static_cast<float>(static_cast<double>(total - kept) / total);
      }
      if (left_out > args.max_left_out) {
        from = 0;
        left_out = 0;
      }
      const std::int64_t list =
          (static_cast<std::int64_t>(sequence) * args.num_heads_kv * args.group + head) *
              args.q_blocks +
          q_block;
      const int count = write_list(of_blocks, at, from, args.indices + list * args.stride);
      if (threadIdx.x % 32 == 0) {
        args.counts[list] = count;
        if (args.left_out != nullptr) {
          args.left_out[sequence * args.left_out_stride[0] + head * args.left_out_stride[1] +
                        q_block * args.left_out_stride[2]] = left_out;
        }
      }
    }
  }

  // Returns how many blocks the list has.
  static __device__ __forceinline__ int write_list(const std::uint32_t* masses, const Unit& at,
                                                   std::uint32_t from, std::int32_t* list) {
    int count = 0;
    const int lane = threadIdx.x % 32;
    for (int begin = at.n_begin; begin < at.n_end; begin += 32) {
      const int n = begin + lane;
      const bool kept = n < at.n_end && masses[n] >= from;
      const unsigned votes = __ballot_sync(0xffffffffu, kept);
      if (kept) list[count + __popc(votes & ((1u << lane) - 1))] = n;
      count += __popc(votes);
    }
    return count;
  }
};

}  // namespace bsfa::cuda::sm90
