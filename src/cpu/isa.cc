#include "cpu/isa.hpp"

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "bsfa/text.hpp"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace bsfa::cpu {
namespace {

constexpr Isa kAllIsas[] = {Isa::kBaseline, Isa::kAvx2, Isa::kAvx512, Isa::kAvx512Bf16};

struct Machine {
  std::vector<Isa> isas{Isa::kBaseline};
  // Whether one bf16 dot product instruction is as quick as one fp32 multiply-add.
  bool fast_bf16_dot = false;
};

#if defined(__x86_64__)
constexpr bool bit(std::uint32_t word, int index) { return ((word >> index) & 1u) != 0; }

// The register state that the operating system saves.
std::uint64_t enabled_state() {
  std::uint32_t low = 0;
  std::uint32_t high = 0;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (static_cast<std::uint64_t>(high) << 32) | low;
}

Machine inspect() {
  Machine machine;
  std::uint32_t a = 0, b = 0, c = 0, d = 0;
  char vendor[13] = {};
  if (__get_cpuid(0, &a, &b, &c, &d) == 0) return machine;
  std::memcpy(vendor, &b, 4);
  std::memcpy(vendor + 4, &d, 4);
  std::memcpy(vendor + 8, &c, 4);
  if (__get_cpuid(1, &a, &b, &c, &d) == 0) return machine;
  const bool saves_state = bit(c, 27);
  const bool fma = bit(c, 12);
  const bool f16c = bit(c, 29);
  const std::uint64_t state = saves_state ? enabled_state() : 0;
  const bool saves_ymm = (state & 0x06) == 0x06;
  const bool saves_zmm = (state & 0xe6) == 0xe6;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0) return machine;
  if (!(saves_ymm && fma && f16c && bit(b, 5))) return machine;
  machine.isas.push_back(Isa::kAvx2);
  if (!(saves_zmm && bit(b, 16) && bit(b, 17) && bit(b, 30) && bit(b, 31))) return machine;
  machine.isas.push_back(Isa::kAvx512);
  if (__get_cpuid_count(7, 1, &a, &b, &c, &d) == 0 || !bit(a, 5)) return machine;
  machine.isas.push_back(Isa::kAvx512Bf16);
  // Intel's cores without tile registers in use take two cycles for what AMD's start every cycle
  // at the width of their multiply-add: docs/cpu.md has the measurement.
  machine.fast_bf16_dot = std::strcmp(vendor, "AuthenticAMD") == 0;
  return machine;
}
#else
Machine inspect() { return {}; }
#endif

const Machine& machine() {
  static const Machine result = inspect();
  return result;
}

std::string names(const std::vector<Isa>& isas) {
  std::string result;
  for (const Isa isa : isas) result += (result.empty() ? "" : ", ") + std::string(isa_name(isa));
  return result;
}

}  // namespace

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::kBaseline:
      return "baseline";
    case Isa::kAvx2:
      return "avx2";
    case Isa::kAvx512:
      return "avx512";
    case Isa::kAvx512Bf16:
      return "avx512_bf16";
  }
  return "";
}

const std::vector<Isa>& available_isas() { return machine().isas; }

Status choose_isa(bool bfloat16, Isa* isa) {
  const std::vector<Isa>& here = available_isas();
  const char* forced = std::getenv("BSFA_CPU_ISA");
  if (forced == nullptr || *forced == '\0') {
    *isa = here.back();
    if (*isa == Isa::kAvx512Bf16 && !(bfloat16 && machine().fast_bf16_dot)) *isa = Isa::kAvx512;
    return {};
  }
  for (const Isa known : kAllIsas) {
    if (std::strcmp(forced, isa_name(known)) != 0) continue;
    if (std::find(here.begin(), here.end(), known) == here.end()) {
      return unsupported("BSFA_CPU_ISA is ", quote(forced),
                         ", which this machine does not have; it has ", names(here));
    }
    *isa = known;
    return {};
  }
  return invalid_argument("BSFA_CPU_ISA is ", quote(forced), "; accepted here: ", names(here));
}

const KernelSet& kernels_of(Isa isa, bool bfloat16) {
#if defined(__x86_64__)
  switch (isa) {
    case Isa::kBaseline:
      break;
    case Isa::kAvx2:
      return avx2::kFloat32Kernels;
    case Isa::kAvx512:
      return avx512::kFloat32Kernels;
    case Isa::kAvx512Bf16:
      return bfloat16 ? avx512_bf16::kBFloat16Kernels : avx512::kFloat32Kernels;
  }
#endif
  return baseline::kFloat32Kernels;
}

}  // namespace bsfa::cpu
