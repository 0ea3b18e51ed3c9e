#include "core/same_call.hpp"

#include <algorithm>
#include <optional>
#include <sstream>
#include <type_traits>
#include <utility>

#include "bsfa/text.hpp"
#include "core/status.hpp"

namespace bsfa {
namespace {

template <typename T>
void print(std::ostream& stream, const T& value) {
  if constexpr (std::is_enum_v<T>) {
    stream << static_cast<int>(value);
  } else {
    stream << value;
  }
}

void print(std::ostream& stream, const BlockShape& block) { stream << block.q << 'x' << block.kv; }

void print(std::ostream& stream, const Device& device) {
  stream << (device.type == DeviceType::kCpu ? "cpu:" : "cuda:") << device.index;
}

void print(std::ostream& stream, const std::string& value) { stream << quote(value); }

template <typename T>
void print(std::ostream& stream, const std::optional<T>& value) {
  if (value) {
    print(stream, *value);
  } else {
    stream << "not given";
  }
}

template <typename T, std::size_t kCount>
void print(std::ostream& stream, const T (&values)[kCount]) {
  for (std::size_t i = 0; i < kCount; ++i) {
    stream << (i == 0 ? "[" : ", ") << values[i];
  }
  stream << ']';
}

template <typename T>
std::string shown(const T& value) {
  std::ostringstream stream;
  stream << std::boolalpha;
  print(stream, value);
  return stream.str();
}

template <typename T>
bool equal(const T& a, const T& b) {
  if constexpr (std::is_array_v<T>) {
    return std::equal(std::begin(a), std::end(a), std::begin(b));
  } else {
    return a == b;
  }
}

// f(name, planned, now) for everything of a call that is no place, while f returns true.
template <typename F>
bool all_of_call(const AttentionParams& a, const AttentionParams& b, F&& f) {
  // A member that is added to AttentionParams does not compile here until somebody has decided what
  // it is: one of these, a pointer of for_each_pointer, or a thing of the run.
  [[maybe_unused]] const auto& [q, k, v, out, softmax_scale, causal, q_offset, kv_offset, window,
                                softcap, sinks, policy, lists, block, compute_type, cu_seqlens_q,
                                cu_seqlens_k, seqused_k, leftpad_k, q_offsets, num_sequences,
                                max_seqlen_q, max_seqlen_k, page_table, page_size,
                                page_table_stride, lse, kept_blocks, visible_blocks, kept_mask,
                                block_max, device, backend, stream, executor, workspace,
                                workspace_bytes] = a;
  const auto operand = [&](const char* const(&names)[3], const auto& x, const auto& y) {
    return f(names[0], x.shape, y.shape) && f(names[1], x.stride, y.stride) &&
           f(names[2], x.dtype, y.dtype);
  };
  const auto statistic = [&](const char* const(&names)[2], const auto& x, const auto& y) {
    return f(names[0], x.shape, y.shape) && f(names[1], x.stride, y.stride);
  };
  [[maybe_unused]] const auto& [kind, thresholds, window_blocks, mass_c, skip_lambda, skip_order] =
      a.policy;  // likewise
  const ThresholdView& table_a = a.policy.thresholds;
  const ThresholdView& table_b = b.policy.thresholds;
  return operand({"q.shape", "q.stride", "q.dtype"}, a.q, b.q) &&
         operand({"k.shape", "k.stride", "k.dtype"}, a.k, b.k) &&
         operand({"v.shape", "v.stride", "v.dtype"}, a.v, b.v) &&
         operand({"out.shape", "out.stride", "out.dtype"}, a.out, b.out) &&
         f("softmax_scale", a.softmax_scale, b.softmax_scale) && f("causal", a.causal, b.causal) &&
         f("q_offset", a.q_offset, b.q_offset) && f("kv_offset", a.kv_offset, b.kv_offset) &&
         f("window", a.window, b.window) && f("softcap", a.softcap, b.softcap) &&
         f("policy.kind", a.policy.kind, b.policy.kind) &&
         f("policy.thresholds.num_heads", table_a.num_heads, table_b.num_heads) &&
         f("policy.thresholds.num_q_blocks", table_a.num_q_blocks, table_b.num_q_blocks) &&
         f("policy.thresholds.stride_head", table_a.stride_head, table_b.stride_head) &&
         f("policy.thresholds.stride_batch", table_a.stride_batch, table_b.stride_batch) &&
         f("policy.thresholds.block", table_a.block, table_b.block) &&
         f("policy.window_blocks", a.policy.window_blocks, b.policy.window_blocks) &&
         f("policy.mass_c", a.policy.mass_c, b.policy.mass_c) &&
         f("policy.skip_lambda", a.policy.skip_lambda, b.policy.skip_lambda) &&
         f("policy.skip_order", a.policy.skip_order, b.policy.skip_order) &&
         f("lists.num_indices", a.lists.num_indices, b.lists.num_indices) &&
         f("lists.stride", a.lists.stride, b.lists.stride) &&
         f("lists.num_heads", a.lists.num_heads, b.lists.num_heads) &&
         f("lists.q_blocks", a.lists.q_blocks, b.lists.q_blocks) && f("block", a.block, b.block) &&
         f("compute_type", a.compute_type, b.compute_type) &&
         f("num_sequences", a.num_sequences, b.num_sequences) &&
         f("max_seqlen_q", a.max_seqlen_q, b.max_seqlen_q) &&
         f("max_seqlen_k", a.max_seqlen_k, b.max_seqlen_k) &&
         f("page_size", a.page_size, b.page_size) &&
         f("page_table_stride", a.page_table_stride, b.page_table_stride) &&
         statistic({"lse.shape", "lse.stride"}, a.lse, b.lse) &&
         statistic({"kept_blocks.shape", "kept_blocks.stride"}, a.kept_blocks, b.kept_blocks) &&
         statistic({"visible_blocks.shape", "visible_blocks.stride"}, a.visible_blocks,
                   b.visible_blocks) &&
         statistic({"kept_mask.shape", "kept_mask.stride"}, a.kept_mask, b.kept_mask) &&
         statistic({"block_max.shape", "block_max.stride"}, a.block_max, b.block_max) &&
         f("device", a.device, b.device) && f("backend", a.backend, b.backend);
}

constexpr std::uintptr_t kOperandAlignment = 16;

std::uintptr_t address(const void* pointer) { return reinterpret_cast<std::uintptr_t>(pointer); }

// The largest power of two that an operand's address is a multiple of, up to 16.
std::uintptr_t alignment_of(const void* operand) {
  const std::uintptr_t bits = address(operand) | kOperandAlignment;
  return bits & (~bits + 1);
}

// f(name, what is wrong with the pointer of `now`) while f returns true.
template <typename F>
bool all_places(const AttentionParams& planned, const AttentionParams& now, F&& f) {
  bool fine = true;
  const auto wrong = [&](const char* name, const auto&... what) {
    fine = fine && f(name, what...);
  };
  for_each_pointer(planned, now, [&](const char* name, const auto* before, const auto* pointer) {
    using T = std::remove_pointer_t<decltype(pointer)>;
    if (pointer == before) return;
    if constexpr (std::is_void_v<T>) {
      if (pointer == nullptr) return wrong(name, "is null; the call was planned with a pointer");
      if (alignment_of(pointer) < alignment_of(before)) {
        wrong(name, "is aligned to ", alignment_of(pointer), " bytes; the call was planned for ",
              alignment_of(before));
      }
    } else if ((pointer == nullptr) != (before == nullptr)) {
      wrong(name, pointer == nullptr ? "is null; the call was planned with it"
                                     : "was given; the call was planned without it");
    } else if (address(pointer) % alignof(T) != 0) {
      wrong(name, "is not aligned to its element size (", alignof(T), " bytes)");
    }
  });
  return fine;
}

}  // namespace

bool same_call(const AttentionParams& planned, const AttentionParams& now) {
  return all_of_call(planned, now,
                     [](const char*, const auto& a, const auto& b) { return equal(a, b); }) &&
         all_places(planned, now, [](const auto&...) { return false; });
}

Status check_same_call(const AttentionParams& planned, const AttentionParams& now) {
  Status status;
  all_of_call(planned, now, [&](const char* name, const auto& a, const auto& b) {
    if (equal(a, b)) return true;
    status = invalid_argument(name, " is ", shown(b), "; the call was planned with ", shown(a));
    return false;
  });
  if (!status.ok()) return status;
  all_places(planned, now, [&](const char* name, const auto&... what) {
    status = invalid_argument(name, " ", what...);
    return false;
  });
  return status;
}

}  // namespace bsfa
