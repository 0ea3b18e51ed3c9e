#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

// Warpgroup matrix products, A from registers or, like B, from 128-byte-swizzled shared memory,
// fp32 accumulators: D[64, N] (+)= A[64, 16] B[16, N].
//
// Thread t of the warpgroup holds, of rows t/32*16 + t%32/4 (+ 8): d[4c .. 4c+1] (+ 2), columns
// 8c + t%4*2 .. + 1; a[0 .. 3]: the same rows and the column pairs t%4*2 (a[0], a[1] for row + 8)
// and t%4*2 + 8 (a[2], a[3]).

namespace bsfa::cuda {

// Orders the registers that this warp wrote before the products that follow.
__device__ __forceinline__ void wgmma_fence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

// Closes a group of products; a group may be empty.
__device__ __forceinline__ void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

// Waits until at most kPending of the latest groups are in flight.
template <int kPending>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// Keeps the compiler from moving reads or writes of a product's registers across this point.
template <int kCount>
__device__ __forceinline__ void pin_registers(float (&values)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(values[i])::"memory");
}

// The same value for all threads of a warp, in a form in which the compiler knows that it is.
__device__ __forceinline__ std::uint32_t uniform(std::uint32_t value) {
  return __shfl_sync(0xffffffffu, value, 0);
}

// An operand in shared memory with rows of 128 bytes, swizzled, aligned to 1024, groups of 8 rows
// one after another; at() gives its descriptor, `offset` bytes further on.
//
// `address` is uniform. `repeat`: bytes between repetitions of 64 columns where columns are the
// operand's N; unused where they are its K.
struct Operand {
  std::uint32_t low;

  __device__ __forceinline__ Operand(std::uint32_t address, std::uint32_t repeat)
      : low(((address & 0x3ffff) >> 4) | (repeat >> 4 << 16)) {}

  __device__ __forceinline__ std::uint64_t at(int offset) const {
    constexpr std::uint32_t kSwizzle128 = 1u << 30;
    constexpr std::uint32_t kGroupBytes = 1024;
    return static_cast<std::uint64_t>(kSwizzle128 | kGroupBytes >> 4) << 32 | (low + (offset >> 4));
  }
};

// The accumulators of an instruction, as they stand in its text and among its operands.

#define BSFA_NAMES_32                                                      \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define BSFA_NAMES_64                                                                \
  BSFA_NAMES_32                                                                      \
  ", "                                                                               \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"

#define BSFA_ACCUMULATORS_32(d)                                                                   \
  "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), \
      "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]),    \
      "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]),  \
      "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]),  \
      "+f"(d[29]), "+f"(d[30]), "+f"(d[31])
#define BSFA_ACCUMULATORS_64(d)                                                                  \
  BSFA_ACCUMULATORS_32(d), "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), "+f"(d[36]),      \
      "+f"(d[37]), "+f"(d[38]), "+f"(d[39]), "+f"(d[40]), "+f"(d[41]), "+f"(d[42]), "+f"(d[43]), \
      "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]), "+f"(d[48]), "+f"(d[49]), "+f"(d[50]), \
      "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]), "+f"(d[56]), "+f"(d[57]), \
      "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63])

// D (+)= A B with both operands in shared memory, as [M][K] and [N][K]. kFirst: what D held is not
// added. It is an input all the same, so that what it held may be the probabilities of the last
// block: an operand that is only written gets registers of its own.
#define BSFA_WGMMA(TYPE)                                                             \
  asm volatile(                                                                      \
      "{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"                                   \
      "wgmma.mma_async.sync.aligned.m64n64k16.f32." TYPE "." TYPE " {" BSFA_NAMES_32 \
      "}, %32, %33, p, 1, 1, 0, 0;\n}\n"                                             \
      : BSFA_ACCUMULATORS_32(d)                                                      \
      : "l"(a), "l"(b), "n"(kFirst ? 0 : 1))

template <typename T, bool kFirst>
__device__ __forceinline__ void wgmma_shared(float (&d)[32], std::uint64_t a, std::uint64_t b) {
  if constexpr (std::is_same_v<T, __half>) {
    BSFA_WGMMA("f16");
  } else {
    BSFA_WGMMA("bf16");
  }
}

#undef BSFA_WGMMA

// The same with A from registers, packed pairs.
#define BSFA_WGMMA(TYPE)                                                             \
  asm volatile(                                                                      \
      "{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\n"                                   \
      "wgmma.mma_async.sync.aligned.m64n64k16.f32." TYPE "." TYPE " {" BSFA_NAMES_32 \
      "}, {%32, %33, %34, %35}, %36, p, 1, 1, 0;\n}\n"                              \
      : BSFA_ACCUMULATORS_32(d)                                                      \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(kFirst ? 0 : 1))

template <typename T, bool kFirst>
__device__ __forceinline__ void wgmma_registers(float (&d)[32], const std::uint32_t* a,
                                                std::uint64_t b) {
  if constexpr (std::is_same_v<T, __half>) {
    BSFA_WGMMA("f16");
  } else {
    BSFA_WGMMA("bf16");
  }
}

#undef BSFA_WGMMA

// D += A B with A from registers, packed pairs kept as floats, and B in shared memory as [K][N].
#define BSFA_WGMMA(N, TYPE, ACCUMULATORS, NAMES, A, B)                                           \
  asm volatile("wgmma.mma_async.sync.aligned.m64" N "k16.f32." TYPE "." TYPE " {" NAMES "}, {" A \
               "}, " B ", 1, 1, 1, 1;"                                                           \
               : ACCUMULATORS(d)                                                                 \
               : "r"(__float_as_uint(a[0])), "r"(__float_as_uint(a[1])),                         \
                 "r"(__float_as_uint(a[2])), "r"(__float_as_uint(a[3])), "l"(b))

template <typename T>
__device__ __forceinline__ void wgmma(float (&d)[32], const float* a, std::uint64_t b) {
  if constexpr (std::is_same_v<T, __half>) {
    BSFA_WGMMA("n64", "f16", BSFA_ACCUMULATORS_32, BSFA_NAMES_32, "%32, %33, %34, %35", "%36");
  } else {
    BSFA_WGMMA("n64", "bf16", BSFA_ACCUMULATORS_32, BSFA_NAMES_32, "%32, %33, %34, %35", "%36");
  }
}

template <typename T>
__device__ __forceinline__ void wgmma(float (&d)[64], const float* a, std::uint64_t b) {
  if constexpr (std::is_same_v<T, __half>) {
    BSFA_WGMMA("n128", "f16", BSFA_ACCUMULATORS_64, BSFA_NAMES_64, "%64, %65, %66, %67", "%68");
  } else {
    BSFA_WGMMA("n128", "bf16", BSFA_ACCUMULATORS_64, BSFA_NAMES_64, "%64, %65, %66, %67", "%68");
  }
}

#undef BSFA_WGMMA
#undef BSFA_ACCUMULATORS_64
#undef BSFA_ACCUMULATORS_32
#undef BSFA_NAMES_64
#undef BSFA_NAMES_32

}  // namespace bsfa::cuda
