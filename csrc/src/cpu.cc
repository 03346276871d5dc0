#include "cpu.h"

#include <algorithm>
#include <thread>

#if defined(__linux__)
#include <sched.h>
#endif
#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace segmenter_trt {

int usable_cores() {
#if defined(__linux__)
  cpu_set_t cores;
  CPU_ZERO(&cores);
  if (sched_getaffinity(0, sizeof cores, &cores) == 0) return std::max(1, CPU_COUNT(&cores));
#endif
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
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
