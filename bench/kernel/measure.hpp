#pragma once

#include <functional>
#include <string>
#include <vector>

#include "kernel/contestants.hpp"
#include "kernel/peak.hpp"
#include "kernel/timing.hpp"

namespace bsfa::bench {

struct Measurement {
  std::string name;
  Spread seconds;
  double gflops = 0;  // 2 N^2 d H: the visible half, skipped or not
  double share_of_peak =
      0;  // of the instruction that the kernel uses, over all threads; 0: unknown
  double relative_error = 0;
  double density = 1;
  bool gated = false;
  Spread gain;          // gated: dense time over this time, round by round
  double of_limit = 0;  // gain.median over 2 / (1 + density)
};

struct KernelReport {
  std::string kernel;
  Peak peak;
  std::vector<Measurement> contestants;
};

// Checks every contestant against the oracle, then times all in turn for `rounds` rounds. Throws
// Error (kRuntime) if a result is wrong: then nothing is timed. `progress` is called
// contestants x (1 + rounds) times.
KernelReport measure(const KernelShape& shape, const std::vector<double>& densities, int rounds,
                     const std::function<void()>& progress);

}  // namespace bsfa::bench
