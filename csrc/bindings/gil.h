// Letting go of Python's lock (the GIL) and taking it again, also while Python ends.
#pragma once

#include <pybind11/pybind11.h>
#include <unistd.h>

namespace segmenter_trt::bindings {

// Calls `take`, which takes the GIL. Once Python ends, releases before 3.14 end a thread that asks for it, by
// unwinding: that would take objects of Python's apart without the GIL, and abort at the first destructor it meets. As
// from 3.14 on, the thread waits for the process to end instead.
template <class Take>
void take_gil(const Take& take) noexcept {
  try {
    take();
  } catch (...) {
    for (;;) pause();
  }
}

// Without the GIL, for as long as it is there.
class WithoutGil {
 public:
  WithoutGil() : thread_(PyEval_SaveThread()) {}
  WithoutGil(const WithoutGil&) = delete;
  WithoutGil& operator=(const WithoutGil&) = delete;
  ~WithoutGil() {
    take_gil([this] { PyEval_RestoreThread(thread_); });
  }

 private:
  PyThreadState* thread_;
};

}  // namespace segmenter_trt::bindings
