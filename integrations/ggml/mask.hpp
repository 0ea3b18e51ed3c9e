#pragma once

#include <bsfa/executor.hpp>
#include <cstdint>
#include <optional>

namespace bsfa::ggml {

// What a mask of llama.cpp's says, if it is one that the library computes itself: the keys
// [first_key, first_key + seqlen_k) are visible causally, query row 0 standing at q_offset among
// them; all other keys (other sequences' cells, padding) are invisible.
struct CausalMask {
  std::int64_t first_key = 0;
  std::int64_t seqlen_k = 0;           // up to the last row's last visible key
  std::int64_t q_offset = 0;           // position of row 0, counted from first_key
  std::optional<std::int64_t> window;  // visible iff p - window < position <= p
};

// One mask: fp16 [num_rows, num_keys], 0 where visible and -inf where not.
struct MaskView {
  const std::uint16_t* data = nullptr;
  std::int64_t num_rows = 0;
  std::int64_t num_keys = 0;
  std::int64_t stride_row = 0;  // elements
};

// Reads the whole mask; nullopt if it is anything else than a causal or windowed one.
std::optional<CausalMask> read_mask(const MaskView& mask, Executor& executor);

// Whether `mask` still shows `expected` at every row's ends; for a mask that was read before.
bool mask_ends_match(const MaskView& mask, const CausalMask& expected);

}  // namespace bsfa::ggml
