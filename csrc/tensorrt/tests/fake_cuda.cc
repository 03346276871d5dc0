// A CUDA driver without a GPU, as libcuda.so.1: device memory is the host's, streams work at once, and graphs keep what
// was captured, addresses and all, to do it again.
#include "fake_cuda.h"

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

namespace {

using Work = std::function<void()>;
using Address = unsigned long long;

constexpr int kInvalidValue = 1, kInvalidContext = 201;

struct Graph {
  std::vector<Work> works;
};

struct Stream {
  std::unique_ptr<Graph> capturing;
  bool broken = false;  // a capture that met what it cannot hold
};

std::recursive_mutex mutex;
FakeCudaCounts counts;
std::map<std::string, std::pair<int, int>> failures;  // function -> status, times
std::map<std::uintptr_t, std::size_t> device_blocks, pinned_blocks;
int capability[2] = {9, 0}, devices = 1;
thread_local int depth = 0;

bool inside(const std::map<std::uintptr_t, std::size_t>& blocks, const void* address, std::size_t bytes) {
  const auto at = reinterpret_cast<std::uintptr_t>(address);
  auto next = blocks.upper_bound(at);
  if (next == blocks.begin()) return false;
  --next;
  return at + bytes <= next->first + next->second;
}

// The status to give instead of working; 0 to work.
int failing(const char* function) {
  const std::lock_guard lock(mutex);
  const auto found = failures.find(function);
  if (found == failures.end() || found->second.second < 1) return 0;
  --found->second.second;
  return found->second.first;
}

int submit(void* stream, Work work) {
  const std::lock_guard lock(mutex);
  auto* const there = static_cast<Stream*>(stream);
  if (there != nullptr && there->capturing) {
    there->capturing->works.push_back(std::move(work));
  } else {
    work();
  }
  return 0;
}

#define GUARD(name)                                    \
  if (const int status = failing(name)) return status; \
  const std::lock_guard lock(mutex)

int Init(unsigned) {
  GUARD("Init");
  return 0;
}
int GetErrorString(int status, const char** text) {
  *text = status == kInvalidContext ? "invalid device context" : "a fake error";
  return 0;
}
int DeviceGetCount(int* count) {
  GUARD("DeviceGetCount");
  *count = devices;
  return 0;
}
int DeviceGet(int* device, int ordinal) {
  GUARD("DeviceGet");
  *device = ordinal;
  return 0;
}
int DeviceGetName(char* name, int length, int) {
  GUARD("DeviceGetName");
  std::strncpy(name, "Fake GPU", static_cast<std::size_t>(length));
  return 0;
}
int DeviceGetAttribute(int* value, int attribute, int) {
  GUARD("DeviceGetAttribute");
  if (attribute != 75 && attribute != 76) return kInvalidValue;
  *value = capability[attribute - 75];
  return 0;
}
int DevicePrimaryCtxRetain(void** context, int) {
  GUARD("DevicePrimaryCtxRetain");
  ++counts.contexts;
  *context = &counts;
  return 0;
}
int DevicePrimaryCtxRelease(int) {
  GUARD("DevicePrimaryCtxRelease");
  --counts.contexts;
  return 0;
}
int CtxPushCurrent(void*) {
  GUARD("CtxPushCurrent");
  ++depth;
  return 0;
}
int CtxPopCurrent(void**) {
  GUARD("CtxPopCurrent");
  --depth;
  return 0;
}
int MemAlloc(Address* address, std::size_t bytes) {
  GUARD("MemAlloc");
  if (depth < 1) return kInvalidContext;
  if (bytes == 0) return kInvalidValue;
  void* const memory = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
  std::memset(memory, 0xEE, bytes);
  device_blocks[reinterpret_cast<std::uintptr_t>(memory)] = bytes;
  ++counts.device_memory;
  *address = reinterpret_cast<std::uintptr_t>(memory);
  return 0;
}
int MemFree(Address address) {
  GUARD("MemFree");
  if (depth < 1) return kInvalidContext;
  if (device_blocks.erase(address) == 0) return kInvalidValue;
  --counts.device_memory;
  std::free(reinterpret_cast<void*>(address));
  return 0;
}
int MemHostAlloc(void** memory, std::size_t bytes, unsigned) {
  GUARD("MemHostAlloc");
  if (depth < 1) return kInvalidContext;
  *memory = std::malloc(bytes);
  std::memset(*memory, 0xDD, bytes);
  pinned_blocks[reinterpret_cast<std::uintptr_t>(*memory)] = bytes;
  ++counts.pinned_memory;
  return 0;
}
int MemFreeHost(void* memory) {
  GUARD("MemFreeHost");
  if (depth < 1) return kInvalidContext;
  if (pinned_blocks.erase(reinterpret_cast<std::uintptr_t>(memory)) == 0) return kInvalidValue;
  --counts.pinned_memory;
  std::free(memory);
  return 0;
}
int copy(void* to, const void* from, std::size_t bytes, void* stream) {
  return submit(stream, [=] { std::memcpy(to, from, bytes); });
}
int MemcpyHtoDAsync(Address to, const void* from, std::size_t bytes, void* stream) {
  GUARD("MemcpyHtoDAsync");
  if (!inside(device_blocks, reinterpret_cast<void*>(to), bytes) || !inside(pinned_blocks, from, bytes))
    return kInvalidValue;
  return copy(reinterpret_cast<void*>(to), from, bytes, stream);
}
int MemcpyDtoHAsync(void* to, Address from, std::size_t bytes, void* stream) {
  GUARD("MemcpyDtoHAsync");
  if (!inside(device_blocks, reinterpret_cast<void*>(from), bytes) || !inside(pinned_blocks, to, bytes))
    return kInvalidValue;
  return copy(to, reinterpret_cast<void*>(from), bytes, stream);
}
int StreamCreate(void** stream, unsigned) {
  GUARD("StreamCreate");
  *stream = new Stream;
  ++counts.streams;
  return 0;
}
int StreamDestroy(void* stream) {
  GUARD("StreamDestroy");
  if (depth < 1) return kInvalidContext;
  delete static_cast<Stream*>(stream);
  --counts.streams;
  return 0;
}
int StreamSynchronize(void* stream) {
  GUARD("StreamSynchronize");
  return static_cast<Stream*>(stream)->capturing ? kInvalidValue : 0;
}
int StreamWaitEvent(void*, void* event, unsigned) {
  GUARD("StreamWaitEvent");
  return event == nullptr ? kInvalidValue : 0;
}
int StreamBeginCapture(void* stream, int) {
  GUARD("StreamBeginCapture");
  static_cast<Stream*>(stream)->capturing = std::make_unique<Graph>();
  ++counts.captures;
  return 0;
}
int StreamEndCapture(void* stream, void** graph) {
  auto* const there = static_cast<Stream*>(stream);
  const int status = failing("StreamEndCapture");
  const std::lock_guard lock(mutex);
  if (status != 0 || there->broken) {
    there->capturing.reset();
    there->broken = false;
    *graph = nullptr;
    return status != 0 ? status : kInvalidValue;
  }
  *graph = there->capturing.release();
  ++counts.graphs;
  return 0;
}
int EventCreate(void** event, unsigned) {
  GUARD("EventCreate");
  *event = new int;
  ++counts.events;
  return 0;
}
int EventRecord(void* event, void*) {
  GUARD("EventRecord");
  return event == nullptr ? kInvalidValue : 0;
}
int EventSynchronize(void* event) {
  GUARD("EventSynchronize");
  return event == nullptr ? kInvalidValue : 0;
}
int EventDestroy(void* event) {
  GUARD("EventDestroy");
  if (depth < 1) return kInvalidContext;
  delete static_cast<int*>(event);
  --counts.events;
  return 0;
}
int GraphInstantiateWithFlags(void** exec, void* graph, unsigned long long) {
  GUARD("GraphInstantiateWithFlags");
  *exec = new Graph(*static_cast<Graph*>(graph));
  ++counts.execs;
  return 0;
}
int GraphLaunch(void* exec, void* stream) {
  GUARD("GraphLaunch");
  ++counts.launches;
  for (const Work& work : static_cast<Graph*>(exec)->works) submit(stream, work);
  return 0;
}
int GraphExecDestroy(void* exec) {
  GUARD("GraphExecDestroy");
  if (depth < 1) return kInvalidContext;
  delete static_cast<Graph*>(exec);
  --counts.execs;
  return 0;
}
int GraphDestroy(void* graph) {
  GUARD("GraphDestroy");
  delete static_cast<Graph*>(graph);
  --counts.graphs;
  return 0;
}

const std::map<std::string, void*>& functions() {
#define NAMED(name) \
  { "cu" #name, reinterpret_cast<void*>(&name) }
  static const std::map<std::string, void*> found = {NAMED(Init),
                                                     NAMED(GetErrorString),
                                                     NAMED(DeviceGetCount),
                                                     NAMED(DeviceGet),
                                                     NAMED(DeviceGetName),
                                                     NAMED(DeviceGetAttribute),
                                                     NAMED(DevicePrimaryCtxRetain),
                                                     NAMED(DevicePrimaryCtxRelease),
                                                     NAMED(CtxPushCurrent),
                                                     NAMED(CtxPopCurrent),
                                                     NAMED(MemAlloc),
                                                     NAMED(MemFree),
                                                     NAMED(MemHostAlloc),
                                                     NAMED(MemFreeHost),
                                                     NAMED(MemcpyHtoDAsync),
                                                     NAMED(MemcpyDtoHAsync),
                                                     NAMED(StreamCreate),
                                                     NAMED(StreamDestroy),
                                                     NAMED(StreamSynchronize),
                                                     NAMED(StreamWaitEvent),
                                                     NAMED(StreamBeginCapture),
                                                     NAMED(StreamEndCapture),
                                                     NAMED(EventCreate),
                                                     NAMED(EventRecord),
                                                     NAMED(EventSynchronize),
                                                     NAMED(EventDestroy),
                                                     NAMED(GraphInstantiateWithFlags),
                                                     NAMED(GraphLaunch),
                                                     NAMED(GraphExecDestroy),
                                                     NAMED(GraphDestroy)};
#undef NAMED
  return found;
}

}  // namespace

#define EXPORTED extern "C" __attribute__((visibility("default")))

EXPORTED int cuGetProcAddress_v2(const char* name, void** function, int, std::uint64_t, int*) {
  const auto found = functions().find(name);
  if (found == functions().end()) return kInvalidValue;
  *function = found->second;
  return 0;
}

EXPORTED FakeCudaCounts fake_cuda_counts() {
  const std::lock_guard lock(mutex);
  FakeCudaCounts now = counts;
  now.pushed = depth;
  return now;
}

EXPORTED void fake_cuda_fail(const char* function, int status, int times) {
  const std::lock_guard lock(mutex);
  failures[function] = {status, times};
}

EXPORTED void fake_cuda_set_device(int major, int minor, int count) {
  const std::lock_guard lock(mutex);
  capability[0] = major, capability[1] = minor, devices = count;
}

EXPORTED int fake_cuda_submit(void* stream, void (*work)(void*), void* data, void (*drop)(void*)) {
  const std::shared_ptr<void> held(data, drop);
  if (const int status = failing("submit")) {
    const std::lock_guard lock(mutex);
    if (auto* const there = static_cast<Stream*>(stream); there != nullptr && there->capturing) there->broken = true;
    return status;
  }
  return submit(stream, [=] { work(held.get()); });
}

EXPORTED int fake_cuda_on_device(const void* address, std::size_t bytes) {
  const std::lock_guard lock(mutex);
  return inside(device_blocks, address, bytes);
}

EXPORTED int fake_cuda_capturing(void* stream) {
  const std::lock_guard lock(mutex);
  const auto* const there = static_cast<const Stream*>(stream);
  return there != nullptr && there->capturing != nullptr;
}
