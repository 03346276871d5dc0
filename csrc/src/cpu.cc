#include "cpu.h"

#include <algorithm>
#include <fstream>
#include <limits>
#include <sstream>
#include <string>
#include <thread>

#if defined(__linux__)
#include <sched.h>
#endif
#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace segmenter_trt {
namespace {

namespace fs = std::filesystem;

constexpr int kNoQuota = std::numeric_limits<int>::max();

// Of microseconds of time in each period; what is no pair of positive numbers, as "max" and -1 of no quota, holds none.
int cores_of(std::istream& quota, std::istream& period) {
  long long time = 0, each = 0;
  if (!(quota >> time) || !(period >> each) || time <= 0 || each <= 0) return kNoQuota;
  return static_cast<int>(std::min<long long>((time - 1) / each + 1, kNoQuota));
}

int cores_of_group(const fs::path& folder) {
  std::ifstream both(folder / "cpu.max");
  std::ifstream quota(folder / "cpu.cfs_quota_us"), period(folder / "cpu.cfs_period_us");
  return std::min(cores_of(both, both), cores_of(quota, period));
}

}  // namespace

int scheduled_cores() {
#if defined(__linux__)
  cpu_set_t cores;
  CPU_ZERO(&cores);
  if (sched_getaffinity(0, sizeof cores, &cores) == 0) return std::max(1, CPU_COUNT(&cores));
#endif
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

int cores_of_quota(const fs::path& groups, const fs::path& mounted) {
  int cores = kNoQuota;
  std::ifstream lines(groups);
  for (std::string line; std::getline(lines, line);) {
    // number:controllers:path, of version 2 with no controllers
    const std::size_t first = line.find(':'), second = line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const bool all = second == first + 1;
    bool cpu = false;
    std::istringstream controllers(line.substr(first + 1, second - first - 1));
    for (std::string name; std::getline(controllers, name, ',');) cpu = cpu || name == "cpu";
    if (!all && !cpu) continue;
    const fs::path root = all ? mounted : mounted / "cpu";
    // its groups above hold it too; within a container the path may be the host's, and the root alone is there
    fs::path group = fs::path(line.substr(second + 1)).relative_path();
    for (; !group.empty(); group = group.parent_path()) cores = std::min(cores, cores_of_group(root / group));
    cores = std::min(cores, cores_of_group(root));
  }
  return cores;
}

int usable_cores() {
  static const int quota = cores_of_quota("/proc/self/cgroup", "/sys/fs/cgroup");
  return std::min(scheduled_cores(), quota);
}

bool int8_saturates() {
#if defined(__x86_64__)
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  const unsigned subleaves = a;
  const bool avx2 = (b >> 5 & 1) != 0;
  bool exact = (c >> 11 & 1) != 0 || (d >> 25 & 1) != 0;  // AVX512-VNNI, AMX-INT8
  if (subleaves >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d)) exact = exact || (a >> 4 & 1) != 0;  // AVX-VNNI
  return avx2 && !exact;
#else
  return false;
#endif
}

}  // namespace segmenter_trt
