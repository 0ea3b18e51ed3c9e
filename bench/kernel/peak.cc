#include "kernel/peak.hpp"

#include <algorithm>
#include <cmath>

#include "kernel/timing.hpp"

namespace bsfa::bench {

namespace {

#if defined(__x86_64__)
// Twelve independent chains, so that latency does not count. Inline assembly: a compiler would
// find out that nothing depends on the result.
#define BSFA_CHAINS(instruction, reg)                                                        \
  instruction " %%" reg "30, %%" reg "31, %%" reg "0\n\t" instruction " %%" reg "30, %%" reg \
              "31, %%" reg "1\n\t" instruction " %%" reg "30, %%" reg "31, %%" reg           \
              "2\n\t" instruction " %%" reg "30, %%" reg "31, %%" reg "3\n\t" instruction    \
              " %%" reg "30, %%" reg "31, %%" reg "4\n\t" instruction " %%" reg "30, %%" reg \
              "31, %%" reg "5\n\t" instruction " %%" reg "30, %%" reg "31, %%" reg           \
              "6\n\t" instruction " %%" reg "30, %%" reg "31, %%" reg "7\n\t" instruction    \
              " %%" reg "30, %%" reg "31, %%" reg "8\n\t" instruction " %%" reg "30, %%" reg \
              "31, %%" reg "9\n\t" instruction " %%" reg "30, %%" reg "31, %%" reg           \
              "10\n\t" instruction " %%" reg "30, %%" reg "31, %%" reg "11\n\t"
#define BSFA_ZMM_CLOBBERS                                                                  \
  "zmm0", "zmm1", "zmm2", "zmm3", "zmm4", "zmm5", "zmm6", "zmm7", "zmm8", "zmm9", "zmm10", \
      "zmm11", "zmm30", "zmm31"

constexpr long kLoops = 400000;

__attribute__((target("avx512f"))) void fp32_chains() {
  asm volatile("vpxorq %%zmm30, %%zmm30, %%zmm30\n\tvpxorq %%zmm31, %%zmm31, %%zmm31" ::
                   : "zmm30", "zmm31");
  for (long i = 0; i < kLoops; ++i) {
    asm volatile(BSFA_CHAINS("vfmadd231ps", "zmm")::: BSFA_ZMM_CLOBBERS);
  }
}

__attribute__((target("avx512f,avx512bf16"))) void bf16_chains() {
  asm volatile("vpxorq %%zmm30, %%zmm30, %%zmm30\n\tvpxorq %%zmm31, %%zmm31, %%zmm31" ::
                   : "zmm30", "zmm31");
  for (long i = 0; i < kLoops; ++i) {
    asm volatile(BSFA_CHAINS("vdpbf16ps", "zmm")::: BSFA_ZMM_CLOBBERS);
  }
}

__attribute__((target("avx2,fma"))) void avx2_chains() {
  for (long i = 0; i < kLoops; ++i) {
    asm volatile(
        "vfmadd231ps %%ymm14, %%ymm15, %%ymm0\n\tvfmadd231ps %%ymm14, %%ymm15, %%ymm1\n\t"
        "vfmadd231ps %%ymm14, %%ymm15, %%ymm2\n\tvfmadd231ps %%ymm14, %%ymm15, %%ymm3\n\t"
        "vfmadd231ps %%ymm14, %%ymm15, %%ymm4\n\tvfmadd231ps %%ymm14, %%ymm15, %%ymm5\n\t"
        "vfmadd231ps %%ymm14, %%ymm15, %%ymm6\n\tvfmadd231ps %%ymm14, %%ymm15, %%ymm7\n\t"
        "vfmadd231ps %%ymm14, %%ymm15, %%ymm8\n\tvfmadd231ps %%ymm14, %%ymm15, %%ymm9\n\t"
        "vfmadd231ps %%ymm14, %%ymm15, %%ymm10\n\tvfmadd231ps %%ymm14, %%ymm15, %%ymm11\n\t" ::
            : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9",
              "xmm10", "xmm11");
  }
}
#endif

}  // namespace

Peak measure_peak() {
  Peak peak;
#if defined(__x86_64__)
  const auto best = [](void (*chains)(), double flops_per_instruction) {
    double seconds = HUGE_VAL;
    for (int i = 0; i < 15; ++i) seconds = std::min(seconds, seconds_of(chains));
    return static_cast<double>(kLoops) * 12 * flops_per_instruction / seconds * 1e-9;
  };
  if (__builtin_cpu_supports("avx512f")) {
    peak.fp32 = best(fp32_chains, 32);
  } else if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    peak.fp32 = best(avx2_chains, 16);
  }
  if (__builtin_cpu_supports("avx512bf16")) peak.bf16 = best(bf16_chains, 64);
#endif
  return peak;
}

}  // namespace bsfa::bench
