#pragma once

#include <memory>
#include <string>

#include "bsfa/attention.hpp"
#include "bsfa/calibration.hpp"
#include "core/problem.hpp"
#include "core/selection.hpp"

namespace bsfa {

// A call as a backend planned it: what need not be decided, asked or encoded again. Used by several
// threads at a time.
class PlannedCall {
 public:
  PlannedCall() = default;
  virtual ~PlannedCall() = default;
  PlannedCall(const PlannedCall&) = delete;
  PlannedCall& operator=(const PlannedCall&) = delete;

  // Refuses pointers that the device cannot follow, of those of `problem` that `checked` does not
  // have; both are the same call.
  virtual Status check_pointers(const Problem& problem, const AttentionParams& checked) const = 0;

  // `problem` is what was planned, or the same call on other pointers (core/same_call.hpp).
  virtual Status run(const Problem& problem) const = 0;
};

// What a backend hands to the registry. A backend is a layer with a function
// `const Backend& <layer>_backend()`, made known by bsfa_backend(<layer>) in its CMakeLists.txt.
// A layer that holds several kernel families (CUDA) exposes one backend for each.
struct Backend {
  const char* name;
  DeviceType device;
  int priority;         // the highest that serves a call takes it; < 0: only when named
  bool (*available)();  // on this machine
  std::string (*describe)();

  // One selector: refuses (status), or fills kernel, compute and workspace_bytes of `plan` and,
  // where `call` is not null, makes what runs it.
  Status (*plan)(const Problem& problem, AttentionPlan* plan, std::unique_ptr<PlannedCall>* call);

  // Order statistics of block maxima for calibration: a service of the device, the same in all
  // backends of it. Null on the CPU, where the calibration layer has it.
  Status (*select_thresholds)(const SelectThresholdsParams& params);

  // The sampled selector: refuses, or fills kernel and workspace_bytes; and runs what was planned.
  // Both null where it is not served.
  Status (*plan_selection)(const SelectionProblem& problem, SelectionPlan* plan);
  Status (*select_blocks)(const SelectionProblem& problem);
};

}  // namespace bsfa
