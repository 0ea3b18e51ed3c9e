#pragma once

#include <cstdint>

// The largest numbers that a call may hold. Whatever is beyond is refused by name before a backend
// sees it, so that no position, block index, stride or size can wrap in any of them: the CUDA
// kernels count rows, keys and blocks in 32 bits. A backend may accept less and says so.

namespace bsfa {

// Tokens: seqlen_q and seqlen_k of a call, the rows of a packed batch, max_seqlen_q/k, window and
// kv_offset. Positions (q_offset, q_offsets) lie from -kMaxTokens to kMaxTokens.
inline constexpr std::int64_t kMaxTokens = std::int64_t{1} << 29;

inline constexpr std::int64_t kMaxSequences = std::int64_t{1} << 24;  // batch, num_sequences
inline constexpr std::int64_t kMaxHeads = std::int64_t{1} << 16;      // num_heads_q, num_heads_kv
inline constexpr std::int64_t kMaxHeadDim = std::int64_t{1} << 16;    // of q, k and v
inline constexpr std::int64_t kMaxPages = std::int64_t{1} << 31;    // of k and v; tables are int32
inline constexpr std::int64_t kMaxLayers = std::int64_t{1} << 16;   // of a calibration
inline constexpr std::int64_t kMaxBudgets = std::int64_t{1} << 16;  // of a calibration
inline constexpr std::int64_t kMaxWorkers = 4096;  // of an Executor; threads of a ThreadPool

// Elements of one tensor, those counted more than once that a stride of 0 repeats, and query blocks
// of all heads and sequences; bytes from the first to the last element of any view.
inline constexpr std::int64_t kMaxElements = std::int64_t{1} << 47;
inline constexpr std::int64_t kMaxSpanBytes = std::int64_t{1} << 48;

}  // namespace bsfa
