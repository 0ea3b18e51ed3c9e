#pragma once

#include <cstdint>

#include "bsfa/attention.hpp"
#include "core/host_device.hpp"

// Where the list of a query block stands.

namespace bsfa {

struct BlockList {
  const std::int32_t* blocks = nullptr;
  std::int64_t count = 0;
};

// The list of query block `row` (a row of kept_mask). Offsets and counts that were not checked give
// a list inside `indices` all the same.
BSFA_HOST_DEVICE constexpr BlockList block_list(const BlockLists& lists, std::int64_t num_heads_q,
                                                std::int64_t sequence, std::int64_t head,
                                                std::int64_t row) {
  const std::int64_t list_head = head / (num_heads_q / lists.num_heads);
  const std::int64_t index = (sequence * lists.num_heads + list_head) * lists.q_blocks + row;
  std::int64_t begin = 0;
  std::int64_t end = 0;
  if (lists.offsets != nullptr) {
    begin = lists.offsets[index];
    end = lists.offsets[index + 1];
  } else {
    const std::int64_t count = lists.counts[index];
    begin = index * lists.stride;
    end = begin + (count < lists.stride ? count : lists.stride);
  }
  if (end > lists.num_indices) end = lists.num_indices;
  if (begin < 0 || end <= begin) return {};
  return {lists.indices + begin, end - begin};
}

// Whether key/value block `column` is visited: listed, or nothing is.
BSFA_HOST_DEVICE constexpr bool is_listed(const BlockLists& lists, std::int64_t num_heads_q,
                                          std::int64_t sequence, std::int64_t head,
                                          std::int64_t row, std::int64_t column) {
  if (!lists) return true;
  const BlockList list = block_list(lists, num_heads_q, sequence, head, row);
  for (std::int64_t i = 0; i < list.count; ++i) {
    if (list.blocks[i] == column) return true;
  }
  return false;
}

struct Problem;

std::int64_t number_of_lists(const Problem& problem);

// What can be said of Problem::lists without reading them.
Status check_lists(const Problem& problem);

// The same of what they hold, where it can be read: entries in range, none twice.
Status check_list_entries(const Problem& problem);

}  // namespace bsfa
