#include "workers.h"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <system_error>
#include <utility>

#include "cpu.h"

namespace segmenter_trt {

int choose_threads(int wanted, std::int64_t tasks, std::int64_t pixels, std::int64_t pixels_per_thread) {
  if (wanted < 0) throw std::invalid_argument("threads " + std::to_string(wanted) + ": wanted 0 (automatic) or more");
  std::int64_t most = wanted;
  if (wanted == 0) {
    most = std::min<std::int64_t>(usable_cores(), (pixels + pixels_per_thread - 1) / pixels_per_thread);
  }
  return static_cast<int>(std::max<std::int64_t>(1, std::min(most, tasks)));
}

Workers::~Workers() {
  {
    const std::lock_guard<std::mutex> held(lock_);
    closing_ = true;
  }
  begun_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void Workers::run(int threads, Call call, const void* context) {
  try {
    threads_.reserve(static_cast<std::size_t>(threads - 1));
    while (static_cast<int>(threads_.size()) < threads - 1) {
      const int index = static_cast<int>(threads_.size()) + 1;
      threads_.emplace_back([this, index] { serve(index); });
    }
  } catch (const std::system_error&) {
    // the system has no more threads to give: those that run share the work
  }
  const int others = std::min(threads - 1, static_cast<int>(threads_.size()));
  if (others > 0) {
    {
      const std::lock_guard<std::mutex> held(lock_);
      call_ = call;
      context_ = context;
      wanted_ = pending_ = others;
      ++round_;
    }
    begun_.notify_all();
  }
  guarded(call, context, 0);
  if (others > 0) {
    std::unique_lock<std::mutex> held(lock_);
    ended_.wait(held, [this] { return pending_ == 0; });
  }
  if (failure_) std::rethrow_exception(std::exchange(failure_, nullptr));
}

void Workers::serve(int index) {
  std::uint64_t seen = 0;
  std::unique_lock<std::mutex> held(lock_);
  for (;;) {
    begun_.wait(held, [&] { return closing_ || (round_ != seen && index <= wanted_); });
    if (closing_) return;
    seen = round_;
    const Call call = call_;
    const void* const context = context_;
    held.unlock();
    guarded(call, context, index);
    held.lock();
    if (--pending_ == 0) ended_.notify_one();
  }
}

void Workers::guarded(Call call, const void* context, int index) noexcept {
  try {
    call(context, index);
  } catch (...) {
    const std::lock_guard<std::mutex> held(lock_);
    if (!failure_) failure_ = std::current_exception();
  }
}

}  // namespace segmenter_trt
