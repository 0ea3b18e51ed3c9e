#pragma once

#include <cstdint>

#include "cuda/sm80/config.cuh"
#include "cuda/sm80/mma.cuh"

// Tiles of rows between global and shared memory.
//
// In shared memory chunk c (16 bytes) of row r lies at chunk c ^ (r % 8) of the row. Rows start on
// 128 bytes, so that the eight rows that a matrix load reads at one chunk fall into all 32 banks.

namespace bsfa::cuda::sm80 {

template <typename C>
__device__ __forceinline__ std::uint32_t swizzled(int row, int chunk) {
  return row * C::kRowBytes + ((chunk ^ (row & 7)) << 4);
}

// Rows [0, kRows) of `operand` from element `offset` on; those outside [begin, end) become zero.
// kVectors: every row starts on 16 bytes, and they arrive with the copies that are committed next;
// else element by element, at once.
template <bool kVectors, typename C, int kRows>
__device__ __forceinline__ void load_rows(std::uint32_t tile, const Operand& operand,
                                          std::int64_t offset, int begin, int end) {
  constexpr int kLanes = C::kRowBytes / 16;  // threads beside each other in a row
  constexpr int kStep = C::kThreads / kLanes;
  static_assert(kStep % 4 == 0 && kRows % kStep == 0);
  const int thread = thread_index();
  const int row = thread / kLanes;
  const int chunk = thread % kLanes;
  if (C::kChunks != kLanes && chunk >= C::kChunks) return;
  const std::int64_t stride = operand.stride[1];
  const std::uint16_t* source =
      static_cast<const std::uint16_t*>(operand.data) + offset + row * stride + chunk * 8;
  // Rows that are kStep apart differ in at most one bit of the swizzle.
  const std::uint32_t first = tile + swizzled<C>(row, chunk);
  const auto destination = [&](int i) {
    return (first ^ ((i * kStep & 7) << 4)) + i * kStep * C::kRowBytes;
  };
  if constexpr (kVectors) {
#pragma unroll
    for (int i = 0; i < kRows / kStep; ++i) {
      const int r = row + i * kStep;
      copy_async(destination(i), source + i * kStep * stride, r >= begin && r < end);
    }
  } else {
#pragma unroll 1
    for (int i = 0; i < kRows / kStep; ++i) {
      const int r = row + i * kStep;
      const bool present = r >= begin && r < end;
#pragma unroll 1
      for (int e = 0; e < 8; ++e) {
        const std::uint16_t value = present ? source[i * kStep * stride + e] : std::uint16_t{0};
        asm volatile("st.shared.u16 [%0], %1;" ::"r"(destination(i) + 2 * e), "h"(value)
                     : "memory");
      }
    }
  }
}

// The rows of one warp, [begin, end) of them, from shared memory to tensor row `offset`.
template <typename C, int kRows>
__device__ __forceinline__ void store_rows(std::uint16_t* destination, std::int64_t stride,
                                           bool vectors, std::uint32_t tile, int begin, int end) {
  const int lane = threadIdx.x % 32;
#pragma unroll 1
  for (int i = lane; i < kRows * C::kChunks; i += 32) {
    const int row = i / C::kChunks;
    const int chunk = i % C::kChunks;
    if (row < begin || row >= end) continue;
    uint4 value;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
                 : "r"(tile + swizzled<C>(row, chunk))
                 : "memory");
    std::uint16_t* target = destination + row * stride + chunk * 8;
    if (vectors) {
      *reinterpret_cast<uint4*>(target) = value;
    } else {
      const std::uint32_t words[4] = {value.x, value.y, value.z, value.w};
#pragma unroll
      for (int e = 0; e < 8; ++e) {
        target[e] = static_cast<std::uint16_t>(words[e / 2] >> (16 * (e % 2)));
      }
    }
  }
}

}  // namespace bsfa::cuda::sm80
