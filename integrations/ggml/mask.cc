#include "mask.hpp"

#include <algorithm>
#include <atomic>

namespace bsfa::ggml {
namespace {

constexpr std::uint16_t kVisible = 0x0000;  // fp16 0
constexpr std::uint16_t kHidden = 0xFC00;   // fp16 -inf

// Branch-free, so that the compiler makes wide instructions of it: masks are megabytes.
bool all_equal(const std::uint16_t* data, std::int64_t count, std::uint16_t value) {
  std::uint16_t differs = 0;
  for (std::int64_t i = 0; i < count; ++i) differs |= static_cast<std::uint16_t>(data[i] ^ value);
  return differs == 0;
}

struct Range {
  std::int64_t first;  // visible keys [first, last]
  std::int64_t last;
};

Range visible_range(const CausalMask& mask, std::int64_t row) {
  const std::int64_t last = mask.first_key + mask.q_offset + row;
  const std::int64_t first = mask.window ? last - *mask.window + 1 : mask.first_key;
  return {std::max(first, mask.first_key), last};
}

// The first and the last visible key of a row.
std::optional<Range> row_ends(const MaskView& mask, std::int64_t row) {
  const std::uint16_t* begin = mask.data + row * mask.stride_row;
  const std::uint16_t* end = begin + mask.num_keys;
  const std::uint16_t* first = std::find(begin, end, kVisible);
  if (first == end) return std::nullopt;
  const std::uint16_t* last = end - 1;
  while (*last != kVisible) --last;
  return Range{first - begin, last - begin};
}

}  // namespace

std::optional<CausalMask> read_mask(const MaskView& mask, Executor& executor) {
  if (mask.num_rows < 1) return std::nullopt;
  const std::optional<Range> top = row_ends(mask, 0);
  const std::optional<Range> bottom = row_ends(mask, mask.num_rows - 1);
  if (!top || !bottom) return std::nullopt;

  // A guess from the first and the last row, which every row must then confirm.
  CausalMask guess;
  if (bottom->first != top->first) {
    // A window that moves. Where row 0 already had keys left out, nothing shows how many: the keys
    // before its first one are invisible to every row, so the sequence may as well begin there.
    guess.window = bottom->last - bottom->first + 1;
  }
  guess.first_key = top->first;
  guess.q_offset = top->last - top->first;
  guess.seqlen_k = guess.q_offset + mask.num_rows;
  if (guess.first_key + guess.seqlen_k > mask.num_keys) return std::nullopt;
  if (guess.window && guess.first_key > 0) {
    // The gate grid counts from the first token, so a window needs its true position; only a cache
    // whose cells stand at their positions shows it.
    guess.q_offset = top->last;
    guess.seqlen_k = guess.q_offset + mask.num_rows;
    guess.first_key = 0;
  }

  constexpr std::int64_t kRowsPerTask = 32;
  std::atomic<bool> confirmed{true};
  executor.for_each((mask.num_rows + kRowsPerTask - 1) / kRowsPerTask, [&](std::int64_t task, int) {
    const std::int64_t end = std::min(mask.num_rows, (task + 1) * kRowsPerTask);
    for (std::int64_t row = task * kRowsPerTask; row < end; ++row) {
      const std::uint16_t* data = mask.data + row * mask.stride_row;
      const Range visible = visible_range(guess, row);
      if (!all_equal(data, visible.first, kHidden) ||
          !all_equal(data + visible.first, visible.last + 1 - visible.first, kVisible) ||
          !all_equal(data + visible.last + 1, mask.num_keys - visible.last - 1, kHidden)) {
        confirmed = false;
        return;
      }
    }
  });
  return confirmed ? std::optional<CausalMask>(guess) : std::nullopt;
}

bool mask_ends_match(const MaskView& mask, const CausalMask& expected) {
  if (expected.first_key + expected.q_offset + mask.num_rows > mask.num_keys) return false;
  for (std::int64_t row = 0; row < mask.num_rows; ++row) {
    const std::uint16_t* data = mask.data + row * mask.stride_row;
    const Range visible = visible_range(expected, row);
    if (data[visible.first] != kVisible || data[visible.last] != kVisible) return false;
    if (visible.first > 0 && data[visible.first - 1] != kHidden) return false;
    if (visible.last + 1 < mask.num_keys && data[visible.last + 1] != kHidden) return false;
  }
  return true;
}

}  // namespace bsfa::ggml
