#pragma once

#include <string>

#include "bsfa/attention.hpp"
#include "bsfa/calibration.hpp"
#include "core/problem.hpp"

namespace bsfa {

// What a backend hands to the registry. A backend is a layer with a function
// `const Backend& <layer>_backend()`, made known by bsfa_backend(<layer>) in its CMakeLists.txt.
// A layer that holds several kernel families (CUDA) exposes one backend for each.
struct Backend {
  const char* name;
  DeviceType device;
  int priority;         // the highest that serves a call takes it; < 0: only when named
  bool (*available)();  // on this machine
  std::string (*describe)();

  // One selector: refuses (status), or fills kernel, compute and workspace_bytes. `run` is called
  // only for problems that `plan` accepted.
  Status (*plan)(const Problem& problem, AttentionPlan* plan);
  Status (*run)(const Problem& problem);

  // Order statistics of block maxima for calibration; null where the backend has none.
  Status (*select_thresholds)(const SelectThresholdsParams& params);
};

}  // namespace bsfa
