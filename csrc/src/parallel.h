// Work shared between threads: no pool, because a call is worth a few threads' start or it runs alone.
#pragma once

#include <algorithm>
#include <cstdint>
#include <exception>
#include <mutex>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

namespace segmenter_trt {

// Threads for `tasks` pieces of work: as many as asked for, or with 0 one for every `pixels_per_thread`, at most the
// machine's.
inline int choose_threads(int wanted, std::int64_t tasks, std::int64_t pixels, std::int64_t pixels_per_thread) {
  if (wanted < 0) throw std::invalid_argument("threads " + std::to_string(wanted) + ": wanted 0 (automatic) or more");
  std::int64_t most = wanted;
  if (wanted == 0) {
    const std::int64_t machine = std::max(1u, std::thread::hardware_concurrency());
    most = std::min(machine, (pixels + pixels_per_thread - 1) / pixels_per_thread);
  }
  return static_cast<int>(std::max<std::int64_t>(1, std::min(most, tasks)));
}

// Calls work() on `threads` threads, the caller's among them, until each returns; rethrows the first exception.
template <class Work>
void run_on_threads(int threads, const Work& work) {
  std::exception_ptr failure;
  std::mutex failure_lock;
  const auto guarded = [&] {
    try {
      work();
    } catch (...) {
      const std::lock_guard<std::mutex> lock(failure_lock);
      if (!failure) failure = std::current_exception();
    }
  };
  std::vector<std::thread> others;
  others.reserve(static_cast<std::size_t>(threads - 1));
  try {
    while (static_cast<int>(others.size()) < threads - 1) others.emplace_back(guarded);
  } catch (const std::system_error&) {
    // the system has no more threads to give: those that run share the work
  }
  guarded();
  for (std::thread& other : others) other.join();
  if (failure) std::rethrow_exception(failure);
}

}  // namespace segmenter_trt
