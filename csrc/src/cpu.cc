#include "cpu.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <memory>
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

constexpr int kNoQuota = std::numeric_limits<int>::max();

// What a file says, nothing where there is none. By C alone: every call of a routine that chooses its threads may come
// here first, in a process that holds other copies of C++'s streams and paths (PyTorch exports its own,
// pytorch/pytorch#133437).
std::string text_of(const std::string& path) {
  std::string text;
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::fopen(path.c_str(), "re"), &std::fclose);
  std::array<char, 4096> read;
  for (std::size_t count; file && (count = std::fread(read.data(), 1, read.size(), file.get())) > 0;) {
    text.append(read.data(), count);
  }
  return text;
}

// Of microseconds of time in each period; what is no pair of positive numbers, as "max" and -1 of no quota, holds none.
int cores_of(long long time, long long each) {
  if (time <= 0 || each <= 0) return kNoQuota;
  return static_cast<int>(std::min<long long>((time - 1) / each + 1, kNoQuota));
}

int cores_of_group(const std::string& folder) {
  const std::string both = text_of(folder + "/cpu.max");
  char* rest = nullptr;
  const long long time = std::strtoll(both.c_str(), &rest, 10);
  const int cores = cores_of(time, std::strtoll(rest, nullptr, 10));
  const std::string quota = text_of(folder + "/cpu.cfs_quota_us"), period = text_of(folder + "/cpu.cfs_period_us");
  return std::min(cores, cores_of(std::strtoll(quota.c_str(), nullptr, 10), std::strtoll(period.c_str(), nullptr, 10)));
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

int cores_of_quota(const std::string& groups, const std::string& mounted) {
  int cores = kNoQuota;
  const std::string lines = text_of(groups);
  for (std::size_t start = 0, end; start < lines.size(); start = end + 1) {
    end = std::min(lines.find('\n', start), lines.size());
    const std::string line = lines.substr(start, end - start);
    // number:controllers:path, of version 2 with no controllers
    const std::size_t first = line.find(':'), second = line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const bool all = second == first + 1;
    std::string controllers(1, ',');
    controllers.append(line, first + 1, second - first - 1).append(1, ',');
    if (!all && controllers.find(",cpu,") == std::string::npos) continue;
    const std::string root = all ? mounted : mounted + "/cpu";
    // its groups above hold it too; within a container the path may be the host's, and the root alone is there
    for (std::string group = line.substr(second + 1);;) {
      cores = std::min(cores, cores_of_group(root + group));
      const std::size_t above = group.rfind('/');
      if (above == std::string::npos) break;
      group.resize(above);
    }
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
