#include <unistd.h>

#include <bsfa/limits.hpp>
#include <map>
#include <mutex>
#include <thread>

#include "binding.hpp"

namespace bsfa::python {
namespace {

struct Pools {
  std::mutex mutex;
  std::map<int, std::shared_ptr<ThreadPool>> by_size;
};

// The pools of this process. A forked child has the parent's objects without their threads, so it
// starts with its own; the old ones are left alone, since they cannot be shut down. Their mutex may
// be held by a thread that does not exist any more, hence a new one too.
Pools& pools() {
  static pid_t owner = getpid();
  static Pools* current = new Pools;
  if (getpid() != owner) {
    owner = getpid();
    current = new Pools;
  }
  return *current;
}

int default_num_threads() {
  // Asked once: the C library opens a file for it.
  static const unsigned count = std::thread::hardware_concurrency();
  return count > 0 ? static_cast<int>(count) : 1;
}

}  // namespace

// Called with the GIL held, which also guards the change of process above.
std::shared_ptr<Executor> shared_executor(std::optional<std::int64_t> asked) {
  constexpr std::size_t kMaxPools = 4;
  if (asked && (*asked < 1 || *asked > kMaxWorkers)) {
    refuse("num_threads is " + std::to_string(*asked) + "; accepted: 1 to " +
           std::to_string(kMaxWorkers));
  }
  const int num_threads = asked ? static_cast<int>(*asked) : default_num_threads();
  Pools& shared = pools();
  const std::lock_guard<std::mutex> lock(shared.mutex);
  std::shared_ptr<ThreadPool>& pool = shared.by_size[num_threads];
  if (!pool) {
    try {
      pool = std::make_shared<ThreadPool>(num_threads);
    } catch (...) {
      shared.by_size.erase(num_threads);
      throw;
    }
  }
  std::shared_ptr<ThreadPool> result = pool;
  if (shared.by_size.size() > kMaxPools) {
    for (auto it = shared.by_size.begin(); it != shared.by_size.end();) {
      it = it->first == num_threads ? std::next(it) : shared.by_size.erase(it);
    }
  }
  return result;
}

}  // namespace bsfa::python
