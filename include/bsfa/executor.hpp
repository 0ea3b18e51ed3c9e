#pragma once

#include <cstdint>
#include <memory>
#include <type_traits>

#include "bsfa/export.hpp"

namespace bsfa {

// Where a CPU call gets its threads from. A host that has a thread pool implements this on it; a
// host that has none uses ThreadPool. Calls must not be nested.
class BSFA_API Executor {
 public:
  using Body = void (*)(void* context, std::int64_t task, int worker);

  virtual ~Executor() = default;

  // The largest number of bodies that run at the same time, 1 to kMaxWorkers (bsfa/limits.hpp);
  // `worker` stays below it.
  virtual int max_workers() const = 0;

  // Calls body(context, task, worker) once for each task in [0, num_tasks) and returns when all
  // have returned. Tasks are handed out in ascending order (the first are the longest); two bodies
  // that run at the same time have different workers. `body` does not throw.
  virtual void parallel_for(std::int64_t num_tasks, Body body, void* context) = 0;

  // The same for a callable `void(std::int64_t task, int worker)`.
  template <typename F>
  void for_each(std::int64_t num_tasks, F&& f) {
    using Callable = std::remove_reference_t<F>;
    parallel_for(
        num_tasks,
        [](void* context, std::int64_t task, int worker) {
          (*static_cast<Callable*>(context))(task, worker);
        },
        const_cast<void*>(static_cast<const void*>(&f)));
  }
};

// A pool of num_threads workers, the calling thread being one of them. Not reentrant; one caller
// at a time (a second one waits). Throws Error if num_threads is not 1 to kMaxWorkers, or if the
// system does not give so many threads.
class BSFA_API ThreadPool final : public Executor {
 public:
  explicit ThreadPool(int num_threads);
  ~ThreadPool() override;
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int max_workers() const override;
  void parallel_for(std::int64_t num_tasks, Body body, void* context) override;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace bsfa
