#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cstdint>

#include "bsfa/error.hpp"
#include "core/geometry.hpp"
#include "core/tiles.hpp"
#include "cuda/sm90/arguments.hpp"

// The sampled selector (bsfa/selection.hpp, docs/method.md): what its kernel is launched with.

namespace bsfa::cuda::sm90 {

// Sampled rows that a CTA works on at a time, and of these a warpgroup.
inline constexpr int kSampledRows = 256;
inline constexpr int kWarpgroupRows = 64;

// The sampled rows of a query block of one head are a unit. The units of a key/value head are
// counted query block by query block, and in each head by head of the group; so many neighbours as
// have kSampledRows rows together are a tile, whose keys are loaded once for all of them.
struct SelectorArguments {
  CUtensorMap k;  // as Arguments::k
  SequenceLayout sequences;
  const void* q;             // [batch, row, head, head_dim]
  std::int64_t q_stride[3];  // elements: batch, row, head
  int num_heads_kv;
  int group;      // query heads of one key/value head
  int q_blocks;   // of the lists
  int kv_blocks;  // most that a sequence has
  TileOrder order;

  int rows_log2;  // log2 of the rows sampled of a query block
  float scale_log2;
  float slack;  // as in KernelParams
  float far;
  std::int64_t sink_blocks;
  std::int64_t local_blocks;
  std::uint32_t floor_units;
  double coverage;
  float max_left_out;

  int* ticket;            // workspace; tiles drawn past the first of each CTA, 0 at launch
  float* block_lse;       // workspace; [CTA, unit of a tile, kv_blocks, rows], base 2
  std::uint32_t* masses;  // workspace; [CTA, unit of a tile, kv_blocks]

  std::int32_t* indices;  // [sequence, head, q_blocks, stride]
  std::int32_t* counts;   // [sequence, head, q_blocks]
  std::int64_t stride;
  float* left_out;                  // [sequence, head, q_blocks] or null
  std::int64_t left_out_stride[3];  // elements
};

// Tiles of a key/value head.
constexpr int selector_tiles(int q_blocks, int group, int rows_log2) {
  const int units = kSampledRows >> rows_log2;
  return (q_blocks * group + units - 1) / units;
}

// Enqueues the kernel on `ctas` CTAs; defined for each type and head_dim in instantiations/.
template <typename T, int kHeadDim>
Status launch_selector(const SelectorArguments& arguments, int ctas, cudaStream_t stream);

}  // namespace bsfa::cuda::sm90
