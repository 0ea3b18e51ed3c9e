#include <gtest/gtest.h>
#include <sys/resource.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <string>
#include <thread>
#include <vector>

#include "bsfa/error.hpp"
#include "bsfa/executor.hpp"
#include "support/sanitized.hpp"

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

TEST(ThreadPool, RefusesNoThreadsAndMoreThanAnyMachineHas) {
  for (const int threads : {0, -1, 4097, 1000000, std::numeric_limits<int>::min()}) {
    try {
      ThreadPool pool(threads);
      FAIL() << threads;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument);
      EXPECT_EQ(std::string(error.what()),
                "num_threads is " + std::to_string(threads) + "; accepted: 1 to 4096");
    }
  }
}

// What the system refuses is an error of the library's, not one of the standard library's. The
// limit holds for the processes of a user, so the test runs in a child and only where it binds.
TEST(ThreadPool, ThreadsThatTheSystemRefusesAreAnError) {
  if (testing::kSanitized) GTEST_SKIP() << "a sanitizer needs more addresses than that";
  EXPECT_EXIT(
      {
        rlimit stack{};
        getrlimit(RLIMIT_AS, &stack);
        stack.rlim_cur = std::size_t{1} << 30;  // not enough for the stacks of 4096 threads
        setrlimit(RLIMIT_AS, &stack);
        try {
          ThreadPool pool(4096);
        } catch (const Error& error) {
          std::fputs(error.what(), stderr);
          std::_Exit(error.code() == ErrorCode::kRuntime ? 3 : 4);
        }
        std::_Exit(5);
      },
      ::testing::ExitedWithCode(3),
      "num_threads is 4096; the system gave [0-9]+ and refused another");
}

}  // namespace
}  // namespace bsfa
