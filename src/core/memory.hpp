#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "bsfa/error.hpp"
#include "bsfa/tensor.hpp"

// What can be said about views without looking at their data: extents and strides that no address
// arithmetic can wrap with, alignment, and which of them share memory.

namespace bsfa {

std::string shape_text(const std::int64_t* shape, int rank);

// The bytes of a strided view of up to four axes. A view without elements, or without data, has
// `data` null and shares memory with nothing.
struct Memory {
  const char* name = "";
  const void* data = nullptr;
  std::int64_t element_bytes = 1;
  int rank = 0;
  std::int64_t shape[4] = {};
  std::int64_t stride[4] = {};  // elements
};

template <typename View>
Memory memory_of(const char* name, const View& view, std::int64_t element_bytes) {
  Memory memory{name, view.data, element_bytes, 0, {}, {}};
  for (const std::int64_t extent : view.shape) {
    memory.stride[memory.rank] = view.stride[memory.rank];
    memory.shape[memory.rank++] = extent;
    if (extent <= 0) memory.data = nullptr;
  }
  return memory;
}

template <typename Pointer>
Memory memory_of(const char* name, const BasicTensorView<Pointer>& view) {
  return memory_of(name, view, dtype_size(view.dtype));
}

template <typename T, int kRank>
Memory memory_of(const char* name, const StridedView<T, kRank>& view) {
  return memory_of(name, view, static_cast<std::int64_t>(sizeof(T)));
}

// `count` elements one after the other.
template <typename T>
Memory memory_of(const char* name, const T* data, std::int64_t count) {
  return {name, count > 0 ? data : nullptr, static_cast<std::int64_t>(sizeof(T)), 1, {count}, {1}};
}

// Refuses data that is not aligned to its element size.
Status check_alignment(const Memory& view);

// Refuses negative extents and strides, more than kMaxElements or kMaxSpanBytes, and what
// check_alignment refuses.
Status check_view(const Memory& view);

// Refuses a view two of whose elements are one in memory: for what is written.
Status check_no_self_overlap(const Memory& view);

// Whether an element of one is, in whole or in part, an element of the other. Exact for views whose
// axes nest (slices, transposed or not, of dense tensors); of others that lie within each other it
// may say yes where the answer is no.
bool share_memory(const Memory& a, const Memory& b);

// Refuses an output that shares memory with an input or with another output. At most eight outputs.
Status check_no_overlap(std::span<const Memory> outputs, std::span<const Memory> inputs);

}  // namespace bsfa
