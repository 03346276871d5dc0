// What the files of the fake driver share.
#pragma once

#include <functional>
#include <map>
#include <mutex>
#include <string>

namespace fake_cuda {

using Work = std::function<void()>;

extern std::recursive_mutex mutex;

// The status to give instead of working; 0 to work.
int failing(const char* function);
int submit(void* stream, Work work);
// The device of this thread's current context; -1 without one.
int device();
// 90 is 9.0.
int capability(int device);
// Functions for launching kernels, by their names in cuda.h.
const std::map<std::string, void*>& launching();

}  // namespace fake_cuda

#define GUARD(name)                                               \
  if (const int status = fake_cuda::failing(name)) return status; \
  const std::lock_guard lock(fake_cuda::mutex)
