// Threads that are kept: every share of the work is done once, errors arrive, nothing hangs.
#include "workers.h"

#include <gtest/gtest.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <numeric>
#include <stdexcept>
#include <vector>

#include "cpu.h"

namespace segmenter_trt {
namespace {

TEST(Workers, DoEveryTaskOnceWhateverTheirNumber) {
  Workers workers;
  for (const int threads : {1, 3, 8, 2, 1, 5}) {
    for (int round = 0; round < 50; ++round) {
      std::vector<int> done(100);
      std::atomic<std::size_t> next = 0;
      workers.run(threads, [&](int) {
        for (std::size_t task; (task = next++) < done.size();) ++done[task];
      });
      EXPECT_EQ(std::accumulate(done.begin(), done.end(), 0), 100);
      EXPECT_EQ(*std::max_element(done.begin(), done.end()), 1);
    }
  }
}

TEST(Workers, GiveEachThreadAnIndexOfItsOwn) {
  Workers workers;
  std::vector<std::atomic<int>> called(6);
  workers.run(6, [&](int index) { ++called[static_cast<std::size_t>(index)]; });
  for (const std::atomic<int>& times : called) EXPECT_EQ(times, 1);
}

TEST(Workers, PassOnAnErrorAndWorkOn) {
  Workers workers;
  for (const int thrower : {0, 2}) {
    const auto failing = [&](int index) {
      if (index == thrower) throw std::runtime_error("told");
    };
    EXPECT_THROW(workers.run(3, failing), std::runtime_error);
    std::atomic<int> calls = 0;
    workers.run(3, [&](int) { ++calls; });
    EXPECT_EQ(calls, 3);
  }
}

TEST(Workers, AreAsManyAsTheWorkIsWorth) {
  EXPECT_EQ(choose_threads(4, 100, 1, 1), 4);
  EXPECT_EQ(choose_threads(4, 2, 1, 1), 2);
  EXPECT_EQ(choose_threads(4, 0, 0, 1), 1);
  EXPECT_EQ(choose_threads(0, 100, 10, 100), 1);
  EXPECT_THROW(choose_threads(-1, 1, 1, 1), std::invalid_argument);
}

TEST(Workers, AreNoMoreThanTheCoresThisProcessMayUse) {
  cpu_set_t before, one;
  ASSERT_EQ(sched_getaffinity(0, sizeof before, &before), 0);
  int core = 0;
  while (!CPU_ISSET(core, &before)) ++core;
  CPU_ZERO(&one);
  CPU_SET(core, &one);
  ASSERT_EQ(sched_setaffinity(0, sizeof one, &one), 0);
  EXPECT_EQ(choose_threads(0, 100, 100, 1), 1);
  ASSERT_EQ(sched_setaffinity(0, sizeof before, &before), 0);
  EXPECT_EQ(choose_threads(0, 1000, 1000, 1), usable_cores());
}

}  // namespace
}  // namespace segmenter_trt
