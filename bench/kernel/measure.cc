#include "kernel/measure.hpp"

#include <bsfa/error.hpp>
#include <cstdio>

namespace bsfa::bench {

KernelReport measure(const KernelShape& shape, const std::vector<double>& densities, int rounds,
                     const std::function<void()>& progress) {
  KernelContestants contestants(shape, densities);
  KernelReport report{contestants.kernel(), measure_peak(), {}};
  for (const Contestant& contestant : contestants.all()) {
    contestant.run();  // warm-up, and what is checked
    const double error = contestant.error();
    if (!(error <= kLargestError)) {
      char text[32];
      std::snprintf(text, sizeof text, "%.3g", error);
      throw Error(ErrorCode::kRuntime, contestant.name + ": relative error " + text +
                                           " against the oracle; nothing was timed");
    }
    Measurement row;
    row.name = contestant.name;
    row.relative_error = error;
    row.density = contestant.density();
    row.gated = contestant.gated;
    report.contestants.push_back(row);
    progress();
  }
  const std::size_t count = report.contestants.size();
  std::vector<std::vector<double>> seconds(count), gains(count);
  for (int round = 0; round < rounds; ++round) {
    for (std::size_t i = 0; i < count; ++i) {
      seconds[i].push_back(seconds_of(contestants.all()[i].run));
      gains[i].push_back(seconds[0].back() / seconds[i].back());
      progress();
    }
  }
  const double peak = report.kernel == "avx512_bf16" ? report.peak.bf16 : report.peak.fp32;
  for (std::size_t i = 0; i < count; ++i) {
    Measurement& row = report.contestants[i];
    row.seconds = spread_of(seconds[i]);
    row.gflops = contestants.flops() / row.seconds.median * 1e-9;
    row.share_of_peak = peak > 0 ? row.gflops / peak / shape.threads : 0;
    if (!row.gated) continue;
    row.gain = spread_of(gains[i]);
    row.of_limit = row.gain.median / (2 / (1 + row.density));
  }
  return report;
}

}  // namespace bsfa::bench
