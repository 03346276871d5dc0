// One call of a session at a time, for callers who cannot be trusted with that.
#pragma once

#include <atomic>

#include "segmenter_trt/errors.h"

namespace segmenter_trt::bindings {

class Exclusive {
 public:
  // Throws RunError when the flag is held already: by another thread, or by a signal handler's victim.
  explicit Exclusive(std::atomic_flag& held) : held_(held) {
    if (held_.test_and_set(std::memory_order_acquire)) {
      throw RunError("session: in use by another call; one session serves one thread, make another of the same engine");
    }
  }
  Exclusive(const Exclusive&) = delete;
  Exclusive& operator=(const Exclusive&) = delete;
  ~Exclusive() { held_.clear(std::memory_order_release); }

 private:
  std::atomic_flag& held_;
};

}  // namespace segmenter_trt::bindings
