#pragma once

#include <omp.h>

#include <atomic>
#include <bsfa/executor.hpp>

namespace bsfa::ggml {

// The threads of ggml's own kernels. ggml's OpenMP workers spin for a while when a kernel of theirs
// is done; a pool of other threads would compete with them for the cores at the start of every
// call, while the same OpenMP team simply goes on.
class OpenMpExecutor final : public Executor {
 public:
  explicit OpenMpExecutor(int num_threads) : num_threads_(num_threads) {}

  int max_workers() const override { return num_threads_; }

  void parallel_for(std::int64_t num_tasks, Body body, void* context) override {
    std::atomic<std::int64_t> next{0};
#pragma omp parallel num_threads(num_threads_)
    {
      const int worker = omp_get_thread_num();
      for (std::int64_t task = next.fetch_add(1); task < num_tasks; task = next.fetch_add(1)) {
        body(context, task, worker);
      }
    }
  }

 private:
  int num_threads_;
};

}  // namespace bsfa::ggml
