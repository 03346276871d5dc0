// Cores: a container's quota holds, wherever in the tree of control groups it is written.
#include "cpu.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <limits>
#include <string>

namespace segmenter_trt {
namespace {

TEST(Cpu, QuotasOfControlGroupsAreSeen) {
  const std::filesystem::path folder =
      std::filesystem::path(testing::TempDir()) / ("segmenter_trt_cpu_test_" + std::to_string(getpid()));
  const auto quota = [&](const std::string& groups, const std::string& file, const std::string& text) {
    std::filesystem::remove_all(folder);
    std::filesystem::create_directories((folder / file).parent_path());
    std::ofstream(folder / "self") << groups << '\n';
    std::ofstream(folder / file) << text << '\n';
    std::ofstream((folder / file).parent_path() / "cpu.cfs_period_us") << "100000\n";
    return cores_of_quota(folder / "self", folder);
  };
  constexpr int kNone = std::numeric_limits<int>::max();
  EXPECT_EQ(quota("0::/", "cpu.max", "200000 100000"), 2);
  EXPECT_EQ(quota("0::/", "cpu.max", "200001 100000"), 3);
  EXPECT_EQ(quota("0::/", "cpu.max", "1 100000"), 1);
  EXPECT_EQ(quota("0::/", "cpu.max", "max 100000"), kNone);
  EXPECT_EQ(quota("0::/a/b", "a/cpu.max", "300000 100000"), 3);
  EXPECT_EQ(quota("0::/a/b", "a/b/cpu.max", "300000 100000"), 3);
  EXPECT_EQ(quota("4:memory:/a\n3:cpuacct,cpu:/a\n0::/", "cpu/a/cpu.cfs_quota_us", "250000"), 3);
  EXPECT_EQ(quota("3:cpu:/docker/1", "cpu/cpu.cfs_quota_us", "400000"), 4);
  EXPECT_EQ(quota("3:cpu:/", "cpu/cpu.cfs_quota_us", "-1"), kNone);
  EXPECT_EQ(quota("2:cpuset:/a", "a/cpu.max", "100000 100000"), kNone);
  EXPECT_EQ(quota("no group", "cpu.max", "100000 100000"), kNone);
  std::filesystem::remove_all(folder);
  EXPECT_EQ(cores_of_quota(folder / "self", folder), kNone);
}

}  // namespace
}  // namespace segmenter_trt
