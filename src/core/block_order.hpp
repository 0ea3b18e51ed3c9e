#pragma once

#include <cstdint>
#include <initializer_list>

#include "bsfa/attention.hpp"
#include "core/gate.hpp"
#include "core/host_device.hpp"

// In which order a policy looks at the blocks that a query block sees.

namespace bsfa {

// Blocks `first`, `first + step`, ..., `count` of them.
struct BlockRun {
  std::int64_t first = 0;
  std::int64_t count = 0;
  std::int64_t step = 1;

  BSFA_HOST_DEVICE constexpr std::int64_t at(std::int64_t n) const { return first + n * step; }
};

struct BlockOrder {
  static constexpr int kRuns = 4;
  BlockRun runs[kRuns];
  // Those of the first `reference_runs` are looked at in this order before any other: what is
  // decided of the others is relative to them. A list changes nothing in it.
  int reference_runs = 0;
};

BSFA_HOST_DEVICE constexpr BlockRun ascending_run(BlockRange blocks) {
  return {blocks.begin, blocks.size(), 1};
}

// Block 0 if it is visible and not in `near`, then the rest of `visible` around `near`.
struct BlocksAround {
  BlockRange near, sink, before, after;
};

BSFA_HOST_DEVICE constexpr BlocksAround blocks_around(BlockRange near, BlockRange visible) {
  BlocksAround blocks;
  blocks.near = intersect(near, visible);
  blocks.before = intersect({visible.begin, near.begin}, visible);
  blocks.after = intersect({near.end, visible.end}, visible);
  // Whichever side it is on (after `near` where the rows stand before position 0), it is the first.
  for (BlockRange* side : {&blocks.before, &blocks.after}) {
    if (!side->contains(kSinkBlock)) continue;
    blocks.sink = {kSinkBlock, kSinkBlock + 1};
    side->begin = kSinkBlock + 1;
  }
  return blocks;
}

BSFA_HOST_DEVICE constexpr BlockOrder block_order(const Policy& policy, std::int64_t i,
                                                  BlockRange visible, BlockShape block) {
  BlockOrder order;
  order.runs[0] = ascending_run(visible);
  switch (policy.kind) {
    case PolicyKind::kDense:
    case PolicyKind::kThreshold:
    case PolicyKind::kSlidingWindow:
      break;
    case PolicyKind::kMass: {
      const BlocksAround blocks =
          blocks_around(sliding_window_range(i, kMassLocalBlocks, block), visible);
      order.runs[0] = ascending_run(blocks.sink);
      order.runs[1] = ascending_run(blocks.near);
      order.runs[2] = ascending_run(blocks.before);
      order.runs[3] = ascending_run(blocks.after);
      order.reference_runs = 2;
      break;
    }
    case PolicyKind::kSkipSoftmax: {
      if (policy.skip_order == SkipOrder::kAscending) break;
      const BlocksAround blocks = blocks_around(always_kept_range(i, block), visible);
      order.runs[0] = ascending_run(blocks.near);
      order.runs[1] = ascending_run(blocks.sink);
      order.runs[2] = {blocks.before.end - 1, blocks.before.size(), -1};
      order.runs[3] = ascending_run(blocks.after);
      break;
    }
  }
  return order;
}

}  // namespace bsfa
