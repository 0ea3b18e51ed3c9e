#pragma once

#include "bsfa/executor.hpp"
#include "bsfa/limits.hpp"
#include "core/status.hpp"

namespace bsfa {

// Refuses an executor that says to have no workers, or more than any machine has.
inline Status check_workers(const Executor& executor) {
  const int workers = executor.max_workers();
  if (workers >= 1 && workers <= kMaxWorkers) return {};
  return invalid_argument("executor has max_workers() ", workers, "; accepted: 1 to ", kMaxWorkers);
}

}  // namespace bsfa
