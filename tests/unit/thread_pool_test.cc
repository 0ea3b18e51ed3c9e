#include <gtest/gtest.h>

#include <atomic>
#include <thread>
#include <vector>

#include "bsfa/error.hpp"
#include "bsfa/executor.hpp"

namespace bsfa {
namespace {

TEST(ThreadPool, RunsEveryTaskOnceWithWorkersInRange) {
  for (const int threads : {1, 2, 5}) {
    ThreadPool pool(threads);
    EXPECT_EQ(pool.max_workers(), threads);
    for (int round = 0; round < 50; ++round) {
      std::vector<std::atomic<int>> hits(37);
      std::vector<std::atomic<int>> busy(static_cast<std::size_t>(threads));
      pool.for_each(37, [&](std::int64_t task, int worker) {
        EXPECT_EQ(busy[static_cast<std::size_t>(worker)].fetch_add(1), 0);
        hits[static_cast<std::size_t>(task)].fetch_add(1);
        busy[static_cast<std::size_t>(worker)].fetch_sub(1);
      });
      for (const auto& hit : hits) EXPECT_EQ(hit.load(), 1);
    }
    pool.for_each(0, [](std::int64_t, int) { FAIL(); });
  }
}

TEST(ThreadPool, ServesCallersOneAfterTheOther) {
  ThreadPool pool(2);
  std::atomic<std::int64_t> sum{0};
  const auto call = [&] {
    for (int round = 0; round < 100; ++round) {
      pool.for_each(10, [&](std::int64_t task, int) { sum += task; });
    }
  };
  std::thread other(call);
  call();
  other.join();
  EXPECT_EQ(sum.load(), 2 * 100 * 45);
}

TEST(ThreadPool, RefusesNoThreads) {
  try {
    ThreadPool pool(0);
    FAIL();
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "num_threads is 0; accepted: 1 or more");
  }
}

}  // namespace
}  // namespace bsfa
