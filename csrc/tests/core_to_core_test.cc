// How far apart two cores are: a time where there are two, and what is refused.
#include "segmenter_trt/core_to_core.h"

#include <gtest/gtest.h>
#include <sched.h>

#include <stdexcept>
#include <vector>

namespace segmenter_trt {
namespace {

std::vector<int> usable() {
  cpu_set_t cores;
  CPU_ZERO(&cores);
  sched_getaffinity(0, sizeof cores, &cores);
  std::vector<int> found;
  for (unsigned core = 0; core < CPU_SETSIZE; ++core) {
    if (CPU_ISSET(core, &cores)) found.push_back(static_cast<int>(core));
  }
  return found;
}

TEST(CoreToCore, TakesATimeAndLeavesTheThreadWhereItWas) {
  const std::vector<int> cores = usable();
  if (cores.size() < 2) {
    EXPECT_THROW(core_to_core_ns(cores.front(), cores.front() + 1), std::invalid_argument);
  } else {
    EXPECT_GT(core_to_core_ns(cores.front(), cores.back()), 1.0);
  }
  EXPECT_EQ(usable(), cores);
}

TEST(CoreToCore, RefusesWhatAreNotTwoCores) {
  const int core = usable().front();
  EXPECT_THROW(core_to_core_ns(core, core), std::invalid_argument);
  EXPECT_THROW(core_to_core_ns(-1, core), std::invalid_argument);
  EXPECT_THROW(core_to_core_ns(core, 1 << 20), std::invalid_argument);
}

}  // namespace
}  // namespace segmenter_trt
