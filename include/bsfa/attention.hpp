#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "bsfa/error.hpp"
#include "bsfa/executor.hpp"
#include "bsfa/export.hpp"
#include "bsfa/limits.hpp"
#include "bsfa/tensor.hpp"

// Attention forward with a block gate. Block Sparse Flash Attention, arXiv 2512.07011, Algorithm 1;
// docs/method.md fixes what the paper leaves open.

namespace bsfa {

// The gate grid: query block floor(p / q) and key/value block floor(position / kv), p absolute.
// It belongs to the method and to a threshold file; it is not a tuning parameter.
struct BlockShape {
  std::int64_t q = 128;
  std::int64_t kv = 64;
  friend bool operator==(const BlockShape&, const BlockShape&) = default;
};

// How the inputs are multiplied. Accumulation, softmax and statistics are fp32 in every case.
enum class ComputeType : int {
  kNative = 0,    // as the inputs are: bf16 as bf16, fp16 as fp16 where the unit has it (else fp32)
  kFloat32 = 1,   // inputs promoted exactly to fp32
  kBFloat16 = 2,  // inputs rounded to bf16
};

enum class PolicyKind : int {
  kDense = 0,
  kThreshold = 1,  // the method: a block is kept iff !(block_max < threshold) or on the diagonal
  kSlidingWindow = 2,  // the paper's baseline: the diagonal and the blocks nearest before it
  kMass = 3,           // a block is kept iff it may hold enough of its rows' mass; no calibration
  kSkipSoftmax = 4,    // baseline: compared with the largest scores so far, in a fixed order
};

// In which order kSkipSoftmax looks at blocks.
enum class SkipOrder : int {
  kAscending = 0,  // from block 0
  kOutwards = 1,   // the diagonal, block 0, those before the diagonal from the nearest on, the rest
};

// The thresholds of one layer at one budget, on the device of the call.
// Query block i uses entry min(i, num_q_blocks - 1).
struct ThresholdView {
  const float* data = nullptr;    // [num_heads_q, num_q_blocks]; the last axis has stride 1
  std::int64_t num_heads = 0;     // must equal num_heads_q
  std::int64_t num_q_blocks = 0;  // 1 to kMaxTokens
  std::int64_t stride_head = 0;   // elements
  std::int64_t stride_batch = 0;  // elements; 0: one table for all sequences
  BlockShape block;  // the grid it was calibrated on; must equal AttentionParams::block
};

struct Policy {
  PolicyKind kind = PolicyKind::kDense;
  ThresholdView thresholds;        // kThreshold
  std::int64_t window_blocks = 0;  // kSlidingWindow: blocks kept before the always-kept ones, >= 0
  float mass_c = 0.1f;             // kMass: the level is min(0.002, c / visible blocks); finite, > 0
  float skip_lambda = 0;           // kSkipSoftmax: above 0, at most 1
  SkipOrder skip_order = SkipOrder::kAscending;

  static Policy dense() { return {}; }
  static Policy threshold(const ThresholdView& table) {
    Policy policy;
    policy.kind = PolicyKind::kThreshold;
    policy.thresholds = table;
    return policy;
  }
  static Policy sliding_window(std::int64_t blocks) {
    Policy policy;
    policy.kind = PolicyKind::kSlidingWindow;
    policy.window_blocks = blocks;
    return policy;
  }
  static Policy mass(float c = 0.1f) {
    Policy policy;
    policy.kind = PolicyKind::kMass;
    policy.mass_c = c;
    return policy;
  }
  static Policy skip_softmax(float lambda, SkipOrder order = SkipOrder::kAscending) {
    Policy policy;
    policy.kind = PolicyKind::kSkipSoftmax;
    policy.skip_lambda = lambda;
    policy.skip_order = order;
    return policy;
  }
};

// The key/value blocks that each query block visits, in the order given. Blocks that are not listed
// cost nothing: neither their scores nor their values are computed or loaded. A policy gates what
// the lists leave; density counts all visible blocks.
//
// A list belongs to a sequence, a head (of the queries, or one for a group that shares keys and
// values) and a query block, in the axes of kept_mask: query block 0 is the gate block of the first
// query, key/value block 0 that of position kv_offset. Blocks that the query block does not see may
// be listed and are passed over. No block may be listed twice.
//
// Either `offsets` says where each list begins in `indices` and the next begins, or each has
// `stride` entries of which the first `counts` are used. All pointers belong to the device of the
// call and are read there: on CUDA nothing of them is checked on the host, a block out of range is
// passed over, and one that is listed twice counts twice.
struct BlockLists {
  const std::int32_t* indices = nullptr;  // [num_indices] key/value blocks
  std::int64_t num_indices = 0;           // entries that may be read
  const std::int64_t* offsets = nullptr;  // [batch * num_heads * q_blocks + 1], ascending
  const std::int32_t* counts = nullptr;   // [batch, num_heads, q_blocks], 0 to stride
  std::int64_t stride = 0;                // with counts: entries of a list
  std::int64_t num_heads = 0;             // num_heads_q or num_heads_kv; 0: no lists
  std::int64_t q_blocks = 0;              // AttentionPlan::q_blocks

  constexpr explicit operator bool() const { return num_heads != 0; }
};

// One attention call. All pointers belong to `device` and are aligned to what they point to;
// nothing is retained after the call (on CUDA: after the stream has passed it). Members left at
// their defaults are not used. Numbers are within bsfa/limits.hpp. What is written (out, the
// results on request, the workspace) overlaps neither itself nor anything else that the call
// touches.
struct AttentionParams {
  // Operands. head_dim has stride 1 everywhere. Packed batches (cu_seqlens_*) have shape[0] == 1
  // and shape[1] = the total number of tokens.
  TensorView q;    // [batch, seqlen_q, num_heads_q, head_dim]
  TensorView k;    // [batch, seqlen_k, num_heads_kv, head_dim]; num_heads_q % num_heads_kv == 0
  TensorView v;    // [batch, seqlen_k, num_heads_kv, head_dim_v], dtype of k
  OutputView out;  // [batch, seqlen_q, num_heads_q, head_dim_v], dtype of q

  // What is computed.
  std::optional<float> softmax_scale;    // finite, > 0; default 1/sqrt(head_dim)
  bool causal = false;                   // visible iff kv_offset + c <= q_offset + r
  std::optional<std::int64_t> q_offset;  // default: causal ? seqlen_k - seqlen_q : 0
  std::int64_t kv_offset = 0;            // position of key 0; a multiple of 64, >= 0
  std::optional<std::int64_t> window;    // the model's own, tokens >= 1: p - window < position <= p
  float softcap = 0;                     // > 0: scores become softcap * tanh(s / softcap)
  const float* sinks = nullptr;          // [num_heads_q] learned sink logits
  Policy policy;
  BlockLists lists;  // none: every block is visited
  BlockShape block;
  ComputeType compute_type = ComputeType::kNative;

  // Batches of different lengths, int32 on the device of the call. Either packed: cu_seqlens_q and
  // cu_seqlens_k; or padded: seqused_k and/or leftpad_k. Positions count from the first real token.
  const std::int32_t* cu_seqlens_q = nullptr;  // [batch + 1], from 0, ascending
  const std::int32_t* cu_seqlens_k = nullptr;  // [batch + 1]
  const std::int32_t* seqused_k = nullptr;     // [batch] real keys after the left padding
  const std::int32_t* leftpad_k = nullptr;     // [batch] padding keys before the first real one
  const std::int32_t* q_offsets = nullptr;     // [batch], replaces q_offset sequence by sequence
  std::int64_t num_sequences = 0;              // batch of a packed call
  std::int64_t max_seqlen_q = 0;               // packed: the longest sequence, or a bound
  std::int64_t max_seqlen_k = 0;               // packed or paged: likewise of the keys

  // Paged keys and values: k and v are [pages, page_size, num_heads_kv, head_dim] with any strides,
  // shape[0] being the pages of the cache. Key c of sequence b is row c % page_size of page
  // page_table[b, c / page_size]. How many keys a sequence has is in seqused_k (required); entries
  // of the table beyond them are not looked at, and a page may stand in several rows. Queries are
  // padded ([batch, seqlen_q, ...]) or packed (cu_seqlens_q without cu_seqlens_k). No backend of
  // this version serves paged calls; each says so by name.
  const std::int32_t* page_table = nullptr;  // [batch, >= max_seqlen_k / page_size, rounded up]
  std::int64_t page_size = 0;                // tokens; a multiple of 16
  std::int64_t page_table_stride = 0;        // elements from row to row; 0: one row for all

  // Results on request. Sequences and heads as in the call.
  StridedView<float, 3> lse;                 // [batch, num_heads_q, seqlen_q], natural logarithm;
                                             // packed: [1, num_heads_q, total_q]
  StridedView<std::int64_t, 2> kept_blocks;  // [batch, num_heads_q]
  StridedView<std::int64_t, 2> visible_blocks;  // [batch, num_heads_q]; density = kept / visible
  StridedView<std::uint8_t, 4> kept_mask;  // [batch, num_heads_q, q blocks, kv blocks], 0 or 1;
                                           // row 0: gate block of the first query,
                                           // column 0: gate block of position kv_offset
  StridedView<float, 4> block_max;         // the same axes; scaled; -inf where invisible or not
                                           // listed. With the dense policy: the calibration pass

  // Where it runs.
  Device device;
  std::string backend;           // empty: the best that serves the call; else a name of backends()
  void* stream = nullptr;        // cudaStream_t
  Executor* executor = nullptr;  // CPU; none: the calling thread alone; 1 to kMaxWorkers workers
  void* workspace = nullptr;     // aligned to 256 bytes
  std::size_t workspace_bytes = 0;  // at least plan_attention(params).workspace_bytes
};

// What attention_forward would do with these parameters. Looks at shapes, dtypes, alignment and the
// presence of pointers, never at data (on the CPU at the per-sequence arrays and the page table, if
// there are any); workspace and its size are not looked at, nor what overlaps what.
struct AttentionPlan {
  Status status;                    // ok, or why no backend serves the call
  std::string backend;              // "cpu", "cuda-sm90", "reference", ...
  std::string kernel;               // e.g. the instruction set or the tile
  std::string compute;              // what is multiplied: "float32", "bfloat16", "float16"
  std::size_t workspace_bytes = 0;  // linear in the sequence lengths
  std::int64_t q_blocks = 0;        // extent of kept_mask and block_max for these shapes
  std::int64_t kv_blocks = 0;
};

// Never throws for what is not supported: see AttentionPlan::status.
BSFA_API AttentionPlan plan_attention(const AttentionParams& params);

// plan_attention(params).workspace_bytes; throws Error as attention_forward would.
BSFA_API std::size_t workspace_size(const AttentionParams& params);

// Runs the call: on the CPU to its end, on CUDA by enqueueing on `stream` (no allocation, no
// synchronisation, can be captured in a graph). Throws Error before anything is written.
BSFA_API void attention_forward(const AttentionParams& params);

// A call that is planned once and run many times: the arguments are checked, a kernel is chosen and
// what it needs to know of the device and of the operands is asked and encoded when it is made, and
// not again. Made for the layers of a model, which differ in nothing but where their data lies.
// Several threads may run one at a time.
class BSFA_API PreparedAttention {
 public:
  // Throws Error as attention_forward would. Workspace, executor and stream may be given later.
  explicit PreparedAttention(const AttentionParams& params);
  ~PreparedAttention();
  PreparedAttention(PreparedAttention&&) noexcept;
  PreparedAttention& operator=(PreparedAttention&&) noexcept;

  const AttentionPlan& plan() const;
  const AttentionParams& params() const;

  // Whether run(params) would be the call that was prepared: everything equal but pointers, and
  // those present (null or not) and aligned as before, operands up to 16 bytes; an executor with no
  // more workers (none counts as one). Stream and workspace are not looked at.
  bool serves(const AttentionParams& params) const;

  // The call on the pointers, stream, executor and workspace of `params`. What is checked is that
  // it is the call that was prepared (see `serves`), and what depends on pointers: the memory that
  // they point to, what overlaps, on the CPU the per-sequence arrays, the workspace. Throws Error
  // before anything is written.
  void run(const AttentionParams& params) const;

  // On the pointers, stream, executor and workspace that it was prepared with: of these only the
  // workspace is still to be checked, and on the CPU the per-sequence arrays.
  void run() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace bsfa
