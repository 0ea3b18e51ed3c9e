#include "core/block_lists.hpp"

#include <vector>

#include "core/problem.hpp"
#include "core/status.hpp"

namespace bsfa {

std::int64_t number_of_lists(const Problem& problem) {
  return problem.sequences.num_sequences * problem.lists.num_heads * problem.q_blocks;
}

Status check_lists(const Problem& problem) {
  const BlockLists& lists = problem.lists;
  if (!lists) {
    // Lists whose heads were forgotten would else be no lists, without a word.
    if (lists.indices == nullptr && lists.offsets == nullptr && lists.counts == nullptr &&
        lists.num_indices == 0 && lists.stride == 0 && lists.q_blocks == 0) {
      return {};
    }
    return invalid_argument("lists.num_heads is 0 where other fields of lists are set; accepted: ",
                            problem.num_heads_q, " (of q) or ", problem.num_heads_kv, " (of k)");
  }
  if (lists.num_heads != problem.num_heads_q && lists.num_heads != problem.num_heads_kv) {
    return invalid_argument("lists.num_heads is ", lists.num_heads,
                            "; accepted: ", problem.num_heads_q, " (of q) or ",
                            problem.num_heads_kv, " (of k)");
  }
  if (lists.q_blocks != problem.q_blocks) {
    return invalid_argument("lists.q_blocks is ", lists.q_blocks, "; the call has ",
                            problem.q_blocks);
  }
  if ((lists.offsets == nullptr) == (lists.counts == nullptr)) {
    return invalid_argument(
        "lists has ",
        lists.offsets == nullptr ? "neither offsets nor counts" : "both offsets and counts",
        "; accepted: one of them");
  }
  if (lists.num_indices < 0) {
    return invalid_argument("lists.num_indices is ", lists.num_indices, "; accepted: 0 or more");
  }
  if (lists.num_indices > 0 && lists.indices == nullptr) {
    return invalid_argument("lists.indices is null; lists.num_indices is ", lists.num_indices);
  }
  if (lists.counts != nullptr) {
    const std::int64_t count = number_of_lists(problem);
    if (lists.stride < 0 || (count > 0 && lists.stride > lists.num_indices / count)) {
      return invalid_argument("lists.stride is ", lists.stride, " for ", count,
                              " lists; lists.num_indices is ", lists.num_indices);
    }
  } else if (lists.stride != 0) {
    return invalid_argument("lists.stride is ", lists.stride, "; it belongs to lists.counts");
  }
  const char* refused = nullptr;
  switch (problem.policy.kind) {
    case PolicyKind::kDense:
    case PolicyKind::kThreshold:
    case PolicyKind::kMass:
      return {};
    case PolicyKind::kSlidingWindow:
      refused = "sliding_window";
      break;
    case PolicyKind::kSkipSoftmax:
      refused = "skip_softmax";
      break;
  }
  return invalid_argument("lists were given with the ", refused,
                          " policy; accepted with them: dense (0), threshold (1), mass (3)");
}

Status check_list_entries(const Problem& problem) {
  const BlockLists& lists = problem.lists;
  if (!lists) return {};
  const std::int64_t count = number_of_lists(problem);
  std::vector<std::int64_t> seen(static_cast<std::size_t>(problem.kv_blocks), -1);
  for (std::int64_t index = 0; index < count; ++index) {
    const std::int64_t row = index % lists.q_blocks;
    const std::int64_t list_head = index / lists.q_blocks % lists.num_heads;
    const std::int64_t sequence = index / lists.q_blocks / lists.num_heads;
    const auto where = [&] {
      return text(" of sequence ", sequence, ", head ", list_head, ", query block ", row);
    };
    if (lists.offsets != nullptr) {
      const std::int64_t begin = lists.offsets[index];
      const std::int64_t end = lists.offsets[index + 1];
      if (begin < 0 || end < begin || end > lists.num_indices) {
        return invalid_argument("lists.offsets has [", begin, ", ", end, ") for the list", where(),
                                "; expected ascending offsets up to lists.num_indices, ",
                                lists.num_indices);
      }
    } else if (lists.counts[index] < 0 || lists.counts[index] > lists.stride) {
      return invalid_argument("lists.counts is ", lists.counts[index], " for the list", where(),
                              "; accepted: 0 to lists.stride, ", lists.stride);
    }
    const std::int64_t head = list_head * (problem.num_heads_q / lists.num_heads);
    const BlockList list = block_list(lists, problem.num_heads_q, sequence, head, row);
    for (std::int64_t i = 0; i < list.count; ++i) {
      const std::int64_t block = list.blocks[i];
      if (block < 0 || block >= problem.kv_blocks) {
        return invalid_argument("lists.indices has the block ", block, " in the list", where(),
                                "; accepted: 0 to ", problem.kv_blocks - 1);
      }
      if (seen[static_cast<std::size_t>(block)] == index) {
        return invalid_argument("lists.indices has the block ", block, " twice in the list",
                                where(), "; expected each block once");
      }
      seen[static_cast<std::size_t>(block)] = index;
    }
  }
  return {};
}

}  // namespace bsfa
