#include "segmenter_trt/core_to_core.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <limits>
#include <optional>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>

#include "segmenter_trt/errors.h"

#if defined(__linux__)
#include <pthread.h>
#include <sched.h>
#endif

namespace segmenter_trt {

#if defined(__linux__)

namespace {

using Clock = std::chrono::steady_clock;

constexpr int kTries = 5;
constexpr int kTrips = 4000;
constexpr int kWarmup = 500;  // the other thread starts meanwhile
constexpr int kGone = -1;     // the other side will not come

// Each on a cache line of its own: 64 bytes, fetched in pairs by some processors.
struct Flags {
  alignas(128) std::atomic<int> there{0};
  alignas(128) std::atomic<int> back{0};
};

cpu_set_t only(int core) {
  cpu_set_t cores;
  CPU_ZERO(&cores);
  CPU_SET(static_cast<unsigned>(core), &cores);
  return cores;
}

void require_usable(int core) {
  cpu_set_t usable;
  CPU_ZERO(&usable);
  if (sched_getaffinity(0, sizeof usable, &usable) != 0) {
    throw Unavailable("core_to_core_ns: the system does not say which cores this process may run on");
  }
  if (core < 0 || core >= CPU_SETSIZE || !CPU_ISSET(static_cast<unsigned>(core), &usable)) {
    throw std::invalid_argument("core " + std::to_string(core) + ": wanted one of those this process may run on");
  }
}

bool run_on(int core) {
  const cpu_set_t cores = only(core);
  return pthread_setaffinity_np(pthread_self(), sizeof cores, &cores) == 0;
}

// Waits until a flag is raised to `trip`; false when the other side is gone.
bool raised(const std::atomic<int>& flag, int trip) {
  for (int seen = 0; seen != trip;) {
    seen = flag.load(std::memory_order_acquire);
    if (seen == kGone) return false;
  }
  return true;
}

// Nothing where a thread could not be held on its core: two that share one would wait for the scheduler.
std::optional<double> round_trip_ns(int first, int second) {
  Flags flags;
  std::optional<double> ns;
  const auto answer = [&flags, second] {
    if (!run_on(second)) {
      flags.back = kGone;
      return;
    }
    for (int trip = 1; trip <= kWarmup + kTrips && raised(flags.there, trip); ++trip) {
      flags.back.store(trip, std::memory_order_release);
    }
  };
  const auto ask = [&flags, &ns, first] {
    if (!run_on(first)) {
      flags.there = kGone;
      return;
    }
    Clock::time_point start;
    for (int trip = 1; trip <= kWarmup + kTrips; ++trip) {
      if (trip == kWarmup + 1) start = Clock::now();
      flags.there.store(trip, std::memory_order_release);
      if (!raised(flags.back, trip)) return;
    }
    ns = std::chrono::duration<double, std::nano>(Clock::now() - start).count() / kTrips;
  };
  std::thread answers;
  try {
    answers = std::thread(answer);
    std::thread(ask).join();  // not the caller's thread, which stays where it may run
  } catch (const std::system_error& error) {
    flags.there = kGone;
    if (answers.joinable()) answers.join();
    throw Unavailable(std::string("core_to_core_ns: no thread to be had: ") + error.what());
  }
  answers.join();
  return ns;
}

}  // namespace

double core_to_core_ns(int first, int second) {
  require_usable(first);
  require_usable(second);
  if (first == second) throw std::invalid_argument("core " + std::to_string(first) + " twice: wanted two cores");
  double least = std::numeric_limits<double>::infinity();
  for (int attempt = 0; attempt < kTries; ++attempt) {
    const std::optional<double> ns = round_trip_ns(first, second);
    if (!ns) throw Unavailable("core_to_core_ns: a thread could not be held on its core");
    least = std::min(least, *ns);
  }
  return least / 2;
}

#else

double core_to_core_ns(int, int) {
  throw Unavailable("core_to_core_ns: wanted Linux, where a thread can be held on a core");
}

#endif

}  // namespace segmenter_trt
