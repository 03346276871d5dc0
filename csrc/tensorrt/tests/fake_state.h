// What the files of the fake driver share.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <mutex>
#include <string>

#include "fake_cuda.h"

namespace fake_cuda {

using Work = std::function<void()>;
using Address = unsigned long long;

constexpr int kInvalidValue = 1, kOutOfMemory = 2, kInvalidContext = 201;

extern std::recursive_mutex mutex;
extern FakeCudaCounts counts;

// The status to give instead of working; 0 to work.
int failing(const char* function);
int submit(void* stream, Work work);
// The device of this thread's current context; -1 without one.
int device();
// 90 is 9.0.
int capability(int device);

// Functions by their names in cuda.h; each file has its own.
using Functions = std::map<std::string, void*>;
const Functions& of_memory();
const Functions& of_streams();
const Functions& launching();

}  // namespace fake_cuda

#define GUARD(name)                                               \
  if (const int status = fake_cuda::failing(name)) return status; \
  const std::lock_guard lock(fake_cuda::mutex)

#define NAMED(name) \
  { "cu" #name, reinterpret_cast<void*>(&name) }

#define EXPORTED extern "C" __attribute__((visibility("default")))
