#include <cstdint>
#include <cstdio>
#include <cstdlib>

#include "read_anything.hpp"

// libFuzzer entry. A seed corpus helps it past the first eight bytes: any threshold file will do,
//   mkdir corpus && cp FILE.safetensors corpus/ && fuzz_threshold_file corpus

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const bsfa::test::ReadOutcome outcome = bsfa::test::read_anything(data, size);
  if (!outcome.complaint.empty()) {
    std::fprintf(stderr, "%s\n", outcome.complaint.c_str());
    std::abort();
  }
  return 0;
}
