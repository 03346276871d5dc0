// As much of NVIDIA's driver as running a plan asks for, in host memory, for its own Python bindings to load.
//
// Work is done when it is put on a stream, or recorded while that is being captured. `fake_report` counts what lives.
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

namespace {

using Work = std::function<void()>;
using Recorded = std::vector<Work>;

struct Stream {
  bool capturing = false;
  Recorded recorded;
};

enum Code { kSuccess = 0, kInvalidValue = 1, kInvalidContext = 201, kInvalidHandle = 400, kUnsupported = 900 };

std::recursive_mutex lock;
std::map<uintptr_t, size_t> on_device, on_host;
std::set<Stream*> streams;
std::set<void*> events, graphs, executables;
int retained = 0, faults = 0;
thread_local std::vector<void*> contexts;
int primary;

int here() {
  if (!contexts.empty()) return kSuccess;
  ++faults;
  return kInvalidContext;
}

bool holds(const std::map<uintptr_t, size_t>& memory, uintptr_t pointer, size_t bytes) {
  for (const auto& [start, size] : memory) {
    if (start <= pointer && pointer + bytes <= start + size) return true;
  }
  return false;
}

bool anywhere(uintptr_t pointer, size_t bytes) {
  return holds(on_device, pointer, bytes) || holds(on_host, pointer, bytes);
}

int put(void* handle, Work work) {
  auto* stream = static_cast<Stream*>(handle);
  if (handle == reinterpret_cast<void*>(1)) {
    work();
    return kSuccess;
  }
  if (!streams.count(stream)) return ++faults, kInvalidHandle;
  if (stream->capturing) {
    stream->recorded.push_back(std::move(work));
  } else {
    work();
  }
  return kSuccess;
}

int allocate(std::map<uintptr_t, size_t>& memory, uintptr_t* pointer, size_t bytes) {
  if (here()) return kInvalidContext;
  if (bytes == 0) return kInvalidValue;
  void* room = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
  std::memset(room, 0xAB, bytes);
  *pointer = reinterpret_cast<uintptr_t>(room);
  memory[*pointer] = bytes;
  return kSuccess;
}

int give_back(std::map<uintptr_t, size_t>& memory, uintptr_t pointer) {
  if (here()) return kInvalidContext;
  if (!memory.erase(pointer)) return ++faults, kInvalidValue;
  std::free(reinterpret_cast<void*>(pointer));
  return kSuccess;
}

}  // namespace

#define API extern "C" __attribute__((visibility("default"))) int
#define GUARD std::lock_guard<std::recursive_mutex> guard(lock)

API cuInit(unsigned) { return kSuccess; }
API cuDriverGetVersion(int* version) { return *version = 13000, kSuccess; }
API cuDeviceGet(int* device, int ordinal) { return *device = ordinal, ordinal ? 101 : kSuccess; }
API cuDeviceGetCount(int* count) { return *count = 1, kSuccess; }
API cuDeviceGetName(char* name, int length, int) { return std::strncpy(name, "Fake H100", length), kSuccess; }
API cuDeviceGetAttribute(int* value, int attribute, int) { return *value = attribute == 75 ? 9 : 0, kSuccess; }
API cuDevicePrimaryCtxRetain(void** context, int) { return ++retained, *context = &primary, kSuccess; }
API cuDevicePrimaryCtxRelease_v2(int) { return --retained, kSuccess; }
API cuCtxGetCurrent(void** context) {
  return *context = contexts.empty() ? nullptr : contexts.back(), kSuccess;
}
API cuCtxPushCurrent_v2(void* context) { return contexts.push_back(context), kSuccess; }
API cuCtxPopCurrent_v2(void** context) {
  if (here()) return kInvalidContext;
  *context = contexts.back();
  contexts.pop_back();
  return kSuccess;
}
API cuCtxGetDevice(int* device) { return *device = 0, here(); }
API cuMemGetInfo_v2(size_t* free, size_t* total) { return *free = 1 << 20, *total = 1 << 30, here(); }
API cuPointerGetAttribute(void* data, int attribute, uintptr_t pointer) {
  GUARD;
  if (!anywhere(pointer, 1)) return kInvalidValue;
  *static_cast<unsigned*>(data) = attribute == 2 ? (holds(on_device, pointer, 1) ? 2 : 1) : 0;
  return kSuccess;
}
API cuMemAlloc_v2(uintptr_t* pointer, size_t bytes) {
  GUARD;
  return allocate(on_device, pointer, bytes);
}
API cuMemFree_v2(uintptr_t pointer) {
  GUARD;
  return give_back(on_device, pointer);
}
API cuMemHostAlloc(void** pointer, size_t bytes, unsigned) {
  GUARD;
  return allocate(on_host, reinterpret_cast<uintptr_t*>(pointer), bytes);
}
API cuMemFreeHost(void* pointer) {
  GUARD;
  return give_back(on_host, reinterpret_cast<uintptr_t>(pointer));
}
API cuMemcpyAsync(uintptr_t target, uintptr_t source, size_t bytes, void* stream) {
  GUARD;
  if (here()) return kInvalidContext;
  return put(stream, [=] {
    if (!anywhere(target, bytes) || !anywhere(source, bytes)) {
      ++faults;
      return;
    }
    std::memmove(reinterpret_cast<void*>(target), reinterpret_cast<void*>(source), bytes);
  });
}
API cuStreamCreate(void** stream, unsigned) {
  GUARD;
  if (here()) return kInvalidContext;
  return *stream = *streams.insert(new Stream).first, kSuccess;
}
API cuStreamDestroy_v2(void* stream) {
  GUARD;
  if (!streams.erase(static_cast<Stream*>(stream))) return ++faults, kInvalidHandle;
  delete static_cast<Stream*>(stream);
  return here();
}
API cuStreamSynchronize(void* handle) {
  GUARD;
  auto* stream = static_cast<Stream*>(handle);
  if (!streams.count(stream)) return ++faults, kInvalidHandle;
  return stream->capturing ? kUnsupported : here();
}
API cuStreamWaitEvent(void* stream, void* event, unsigned) {
  GUARD;
  if (!events.count(event)) return ++faults, kInvalidHandle;
  return put(stream, [] {});
}
API cuEventCreate(void** event, unsigned) {
  GUARD;
  return *event = *events.insert(new int).first, here();
}
API cuEventRecord(void* event, void* stream) {
  GUARD;
  if (!events.count(event)) return ++faults, kInvalidHandle;
  return put(stream, [] {});
}
API cuEventQuery(void* event) {
  GUARD;
  return events.count(event) ? kSuccess : (++faults, kInvalidHandle);
}
API cuEventSynchronize(void* event) {
  GUARD;
  return events.count(event) ? here() : (++faults, kInvalidHandle);
}
API cuEventDestroy_v2(void* event) {
  GUARD;
  if (!events.erase(event)) return ++faults, kInvalidHandle;
  delete static_cast<int*>(event);
  return here();
}
API cuStreamBeginCapture_v2(void* handle, int) {
  GUARD;
  auto* stream = static_cast<Stream*>(handle);
  if (!streams.count(stream) || stream->capturing) return ++faults, kInvalidHandle;
  return stream->capturing = true, here();
}
API cuStreamIsCapturing(void* stream, int* status) {
  GUARD;
  return *status = streams.count(static_cast<Stream*>(stream)) && static_cast<Stream*>(stream)->capturing, kSuccess;
}
API cuStreamEndCapture(void* handle, void** graph) {
  GUARD;
  auto* stream = static_cast<Stream*>(handle);
  if (!streams.count(stream) || !stream->capturing) return ++faults, kInvalidHandle;
  *graph = *graphs.insert(new Recorded(std::move(stream->recorded))).first;
  *stream = Stream();
  return here();
}
API cuGraphInstantiateWithFlags(void** executable, void* graph, unsigned long long) {
  GUARD;
  if (!graphs.count(graph)) return ++faults, kInvalidHandle;
  return *executable = *executables.insert(new Recorded(*static_cast<Recorded*>(graph))).first, here();
}
API cuGraphLaunch(void* executable, void* stream) {
  GUARD;
  if (!executables.count(executable)) return ++faults, kInvalidHandle;
  for (const auto& work : *static_cast<Recorded*>(executable)) put(stream, work);
  return here();
}
API cuGraphExecDestroy(void* executable) {
  GUARD;
  if (!executables.erase(executable)) return ++faults, kInvalidHandle;
  delete static_cast<Recorded*>(executable);
  return here();
}
API cuGraphDestroy(void* graph) {
  GUARD;
  if (!graphs.erase(graph)) return ++faults, kInvalidHandle;
  delete static_cast<Recorded*>(graph);
  return kSuccess;
}
API cuLaunchHostFunc(void* stream, void (*function)(void*), void* data) {
  GUARD;
  return put(stream, [=] { function(data); });
}
API cuGetErrorString(int code, const char** text) {
  return *text = code == kUnsupported ? "operation not permitted when stream is capturing" : "a fault", kSuccess;
}
API cuGetErrorName(int, const char** text) { return *text = "CUDA_ERROR", kSuccess; }

API fake_holds(uintptr_t pointer, size_t bytes) {
  GUARD;
  return anywhere(pointer, bytes);
}
API fake_report(int* counts) {
  GUARD;
  const size_t found[] = {on_device.size(), on_host.size(),      streams.size(), events.size(),
                          graphs.size(),    executables.size(), size_t(retained), size_t(faults), contexts.size()};
  for (size_t value : found) *counts++ = static_cast<int>(value);
  return kSuccess;
}

#define ROW(name) {#name, reinterpret_cast<void*>(name)}
#define ROW2(name) {#name, reinterpret_cast<void*>(name##_v2)}
API cuGetProcAddress_v2(const char* name, void** function, int, uint64_t, int* status) {
  static const std::map<std::string, void*> known = {
      ROW(cuInit), ROW(cuDriverGetVersion), ROW(cuDeviceGet), ROW(cuDeviceGetCount), ROW(cuDeviceGetName),
      ROW(cuDeviceGetAttribute), ROW(cuDevicePrimaryCtxRetain), ROW2(cuDevicePrimaryCtxRelease), ROW(cuCtxGetCurrent),
      ROW2(cuCtxPushCurrent), ROW2(cuCtxPopCurrent), ROW(cuCtxGetDevice), ROW2(cuMemGetInfo),
      ROW(cuPointerGetAttribute), ROW2(cuMemAlloc), ROW2(cuMemFree), ROW(cuMemHostAlloc), ROW(cuMemFreeHost),
      ROW(cuMemcpyAsync), ROW(cuStreamCreate), ROW2(cuStreamDestroy), ROW(cuStreamSynchronize), ROW(cuStreamWaitEvent),
      ROW(cuEventCreate), ROW(cuEventRecord), ROW(cuEventQuery), ROW(cuEventSynchronize), ROW2(cuEventDestroy),
      ROW2(cuStreamBeginCapture), ROW(cuStreamEndCapture), ROW(cuStreamIsCapturing), ROW(cuGraphInstantiateWithFlags),
      ROW(cuGraphLaunch), ROW(cuGraphExecDestroy), ROW(cuGraphDestroy), ROW(cuGetErrorString), ROW(cuGetErrorName)};
  // names come with and without the version they end in
  std::string base(name);
  if (!known.count(base) && base.size() > 3 && base.compare(base.size() - 3, 3, "_v2") == 0) base.resize(base.size() - 3);
  const auto row = known.find(base);
  *function = row == known.end() ? nullptr : row->second;
  if (status) *status = row == known.end();
  return row == known.end() ? 500 : kSuccess;
}
API cuGetProcAddress(const char* name, void** function, int version, uint64_t flags) {
  return cuGetProcAddress_v2(name, function, version, flags, nullptr);
}
