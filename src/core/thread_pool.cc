#include <atomic>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#include "bsfa/error.hpp"
#include "bsfa/executor.hpp"
#include "bsfa/limits.hpp"
#include "core/status.hpp"

namespace bsfa {

struct ThreadPool::Impl {
  std::mutex caller;  // one parallel_for at a time
  std::mutex mutex;
  std::condition_variable work;
  std::condition_variable done;
  std::vector<std::thread> threads;
  std::atomic<std::int64_t> next{0};
  std::int64_t num_tasks = 0;
  Body body = nullptr;
  void* context = nullptr;
  std::uint64_t generation = 0;
  int running = 0;
  bool stop = false;

  void drain(int worker) {
    for (std::int64_t task = next.fetch_add(1); task < num_tasks; task = next.fetch_add(1)) {
      body(context, task, worker);
    }
  }

  void serve(int worker) {
    std::uint64_t seen = 0;
    std::unique_lock lock(mutex);
    for (;;) {
      work.wait(lock, [&] { return stop || generation != seen; });
      if (stop) return;
      seen = generation;
      lock.unlock();
      drain(worker);
      lock.lock();
      if (--running == 0) done.notify_one();
    }
  }

  void join() {
    {
      const std::lock_guard lock(mutex);
      stop = true;
    }
    work.notify_all();
    for (std::thread& thread : threads) thread.join();
  }
};

ThreadPool::ThreadPool(int num_threads) : impl_(std::make_unique<Impl>()) {
  if (num_threads < 1 || num_threads > kMaxWorkers) {
    throw Error(invalid_argument("num_threads is ", num_threads, "; accepted: 1 to ", kMaxWorkers));
  }
  try {
    for (int worker = 1; worker < num_threads; ++worker) {
      impl_->threads.emplace_back([this, worker] { impl_->serve(worker); });
    }
  } catch (const std::system_error& error) {
    const std::size_t made = impl_->threads.size() + 1;
    impl_->join();
    throw Error(ErrorCode::kRuntime, text("num_threads is ", num_threads, "; the system gave ",
                                          made, " and refused another: ", error.code().message()));
  } catch (...) {
    impl_->join();
    throw;
  }
}

ThreadPool::~ThreadPool() { impl_->join(); }

int ThreadPool::max_workers() const { return static_cast<int>(impl_->threads.size()) + 1; }

void ThreadPool::parallel_for(std::int64_t num_tasks, Body body, void* context) {
  if (num_tasks <= 0) return;
  const std::lock_guard one_caller(impl_->caller);
  {
    const std::lock_guard lock(impl_->mutex);
    impl_->body = body;
    impl_->context = context;
    impl_->num_tasks = num_tasks;
    impl_->next = 0;
    impl_->running = static_cast<int>(impl_->threads.size());
    ++impl_->generation;
  }
  impl_->work.notify_all();
  impl_->drain(0);
  std::unique_lock lock(impl_->mutex);
  impl_->done.wait(lock, [&] { return impl_->running == 0; });
}

}  // namespace bsfa
