#pragma once

#include <cuda.h>

#include "cuda/common/params.hpp"

namespace bsfa::cuda::sm90 {

// A tile is one gate query block, a step one gate key/value block: the gate's own shape.
inline constexpr int kBlockM = 128;
inline constexpr int kBlockN = 64;

// A tile in the list of them, see tile_list.cuh.
struct ListedTile;
inline constexpr int kListedTileBytes = 80;
// The same where a tile has a list of blocks.
inline constexpr int kSelectedTileBytes = 112;

// Kernel argument.
struct Arguments {
  CUtensorMap q, k, v;  // [64 columns, row, chunk, head, batch]
  KernelParams params;
  // Workspace: the tiles that exist, in the order in which they are worked on, and how many.
  ListedTile* tiles;
  int* tile_count;
  int most_tiles;  // that there is room for
};

}  // namespace bsfa::cuda::sm90
