// A CUDA driver without a GPU, as libcuda.so.1: device memory is the host's, streams work at once or when they are
// waited for, and graphs keep what was captured, addresses and all, to do it again.
#include "fake_cuda.h"

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "fake_state.h"

using fake_cuda::mutex;
using fake_cuda::Work;

namespace {

using Address = unsigned long long;

constexpr int kInvalidValue = 1, kInvalidContext = 201;

FakeCudaCounts counts;

struct Graph {
  std::vector<Work> works;
};

struct Stream {
  std::unique_ptr<Graph> capturing;
  bool broken = false;  // a capture that met what it cannot hold
  std::vector<Work> waiting;

  void drain() {
    counts.waiting -= static_cast<int>(waiting.size());
    for (const Work& work : std::exchange(waiting, {})) work();
  }
};

struct Failing {
  int status, times, good;
};

std::map<std::string, Failing> failures;  // by function
std::map<std::uintptr_t, std::size_t> device_blocks, pinned_blocks;
int of_gpus[2] = {9, 0}, devices = 1;
constexpr int kOld[2] = {7, 5};
int contexts[2];  // one a GPU
bool deferred = false;
thread_local std::vector<int> current;  // GPUs whose contexts were pushed

bool inside(const std::map<std::uintptr_t, std::size_t>& blocks, const void* address, std::size_t bytes) {
  const auto at = reinterpret_cast<std::uintptr_t>(address);
  auto next = blocks.upper_bound(at);
  if (next == blocks.begin()) return false;
  --next;
  return at + bytes <= next->first + next->second;
}

bool has_context() { return !current.empty(); }

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
int DeviceGetAttribute(int* value, int attribute, int device) {
  GUARD("DeviceGetAttribute");
  if (attribute != 75 && attribute != 76) return kInvalidValue;
  *value = (device == 1 ? kOld : of_gpus)[attribute - 75];
  return 0;
}
int DevicePrimaryCtxRetain(void** context, int device) {
  GUARD("DevicePrimaryCtxRetain");
  ++counts.contexts;
  *context = &contexts[device];
  return 0;
}
int DevicePrimaryCtxRelease(int) {
  GUARD("DevicePrimaryCtxRelease");
  --counts.contexts;
  return 0;
}
int CtxPushCurrent(void* context) {
  GUARD("CtxPushCurrent");
  current.push_back(static_cast<int>(static_cast<int*>(context) - contexts));
  return 0;
}
int CtxPopCurrent(void**) {
  GUARD("CtxPopCurrent");
  current.pop_back();
  return 0;
}
int MemAlloc(Address* address, std::size_t bytes) {
  GUARD("MemAlloc");
  if (!has_context()) return kInvalidContext;
  if (bytes == 0) return kInvalidValue;
  void* const memory = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
  std::memset(memory, 0xEE, bytes);
  device_blocks[reinterpret_cast<std::uintptr_t>(memory)] = bytes;
  ++counts.device_memory, ++counts.allocations;
  *address = reinterpret_cast<std::uintptr_t>(memory);
  return 0;
}
int MemFree(Address address) {
  GUARD("MemFree");
  if (!has_context()) return kInvalidContext;
  if (device_blocks.erase(address) == 0) return kInvalidValue;
  --counts.device_memory;
  std::free(reinterpret_cast<void*>(address));
  return 0;
}
int MemHostAlloc(void** memory, std::size_t bytes, unsigned) {
  GUARD("MemHostAlloc");
  if (!has_context()) return kInvalidContext;
  *memory = std::malloc(bytes);
  std::memset(*memory, 0xDD, bytes);
  pinned_blocks[reinterpret_cast<std::uintptr_t>(*memory)] = bytes;
  ++counts.pinned_memory, ++counts.allocations;
  return 0;
}
int MemFreeHost(void* memory) {
  GUARD("MemFreeHost");
  if (!has_context()) return kInvalidContext;
  if (pinned_blocks.erase(reinterpret_cast<std::uintptr_t>(memory)) == 0) return kInvalidValue;
  --counts.pinned_memory;
  std::free(memory);
  return 0;
}
int copy(void* to, const void* from, std::size_t bytes, void* stream) {
  return fake_cuda::submit(stream, [=] { std::memcpy(to, from, bytes); });
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
int MemcpyDtoDAsync(Address to, Address from, std::size_t bytes, void* stream) {
  GUARD("MemcpyDtoDAsync");
  if (!inside(device_blocks, reinterpret_cast<void*>(from), bytes) ||
      !inside(device_blocks, reinterpret_cast<void*>(to), bytes))
    return kInvalidValue;
  return copy(reinterpret_cast<void*>(to), reinterpret_cast<void*>(from), bytes, stream);
}
// Of CUDA_MEMCPY3D, 200 bytes that cuda/driver.h declares too: written here as cuda.h has it.
struct Side {
  std::size_t x, y, z, level;
  unsigned memory;
  const void* host;
  Address device;
  void *array, *reserved;
  std::size_t pitch, height;
};
struct Box {
  Side from, to;
  std::size_t width, height, depth;
};
int Memcpy3DAsync(const Box* given, void* stream) {
  GUARD("Memcpy3DAsync");
  const Box box = *given;
  const auto place = [](const Side& side, std::size_t y, std::size_t z) {
    return side.device + ((side.z + z) * side.height + side.y + y) * side.pitch + side.x;
  };
  for (const Side* const side : {&box.from, &box.to}) {
    const std::size_t bytes = place(*side, box.height - 1, box.depth - 1) + box.width - side->device;
    if (side->memory != 2 || side->x + box.width > side->pitch || side->y + box.height > side->height ||
        !inside(device_blocks, reinterpret_cast<void*>(side->device), bytes))
      return kInvalidValue;
  }
  return fake_cuda::submit(stream, [=] {
    for (std::size_t z = 0; z < box.depth; ++z) {
      for (std::size_t y = 0; y < box.height; ++y) {
        std::memcpy(reinterpret_cast<void*>(place(box.to, y, z)), reinterpret_cast<void*>(place(box.from, y, z)),
                    box.width);
      }
    }
  });
}
int StreamCreate(void** stream, unsigned) {
  GUARD("StreamCreate");
  *stream = new Stream;
  ++counts.streams;
  return 0;
}
int StreamDestroy(void* stream) {
  GUARD("StreamDestroy");
  if (!has_context()) return kInvalidContext;
  static_cast<Stream*>(stream)->drain();
  delete static_cast<Stream*>(stream);
  --counts.streams;
  return 0;
}
int StreamSynchronize(void* stream) {
  GUARD("StreamSynchronize");
  static_cast<Stream*>(stream)->drain();
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
  const int status = fake_cuda::failing("StreamEndCapture");
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
  if (!has_context()) return kInvalidContext;
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
  for (const Work& work : static_cast<Graph*>(exec)->works) fake_cuda::submit(stream, work);
  return 0;
}
int GraphExecDestroy(void* exec) {
  GUARD("GraphExecDestroy");
  if (!has_context()) return kInvalidContext;
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
                                                     NAMED(MemcpyDtoDAsync),
                                                     NAMED(Memcpy3DAsync),
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

namespace fake_cuda {

std::recursive_mutex mutex;

int failing(const char* function) {
  const std::lock_guard lock(mutex);
  const auto found = failures.find(function);
  if (found == failures.end()) return 0;
  Failing& one = found->second;
  if (one.good > 0) return --one.good, 0;
  if (one.times < 1) return 0;
  --one.times;
  return one.status;
}

int submit(void* stream, Work work) {
  const std::lock_guard lock(mutex);
  auto* const there = static_cast<Stream*>(stream);
  if (there != nullptr && there->capturing) {
    there->capturing->works.push_back(std::move(work));
  } else if (there != nullptr && deferred) {
    there->waiting.push_back(std::move(work));
    ++counts.waiting;
  } else {
    work();
  }
  return 0;
}

int device() { return current.empty() ? -1 : current.back(); }

int capability(int device) {
  const std::lock_guard lock(mutex);
  const int* const found = device == 1 ? kOld : of_gpus;
  return 10 * found[0] + found[1];
}

}  // namespace fake_cuda

#define EXPORTED extern "C" __attribute__((visibility("default")))

EXPORTED int cuGetProcAddress_v2(const char* name, void** function, int, std::uint64_t, int*) {
  for (const auto* const some : {&functions(), &fake_cuda::launching()}) {
    if (const auto found = some->find(name); found != some->end()) return *function = found->second, 0;
  }
  return kInvalidValue;
}

EXPORTED FakeCudaCounts fake_cuda_counts() {
  const std::lock_guard lock(mutex);
  FakeCudaCounts now = counts;
  now.pushed = static_cast<int>(current.size());
  return now;
}

EXPORTED void fake_cuda_fail(const char* function, int status, int times, int good) {
  const std::lock_guard lock(mutex);
  failures[function] = {status, times, good};
}

EXPORTED void fake_cuda_defer(int wanted) {
  const std::lock_guard lock(mutex);
  deferred = wanted != 0;
}

EXPORTED void fake_cuda_set_device(int major, int minor, int count) {
  const std::lock_guard lock(mutex);
  of_gpus[0] = major, of_gpus[1] = minor, devices = count;
}

EXPORTED int fake_cuda_submit(void* stream, void (*work)(void*), void* data, void (*drop)(void*)) {
  const std::shared_ptr<void> held(data, drop);
  if (const int status = fake_cuda::failing("submit")) {
    const std::lock_guard lock(mutex);
    if (auto* const there = static_cast<Stream*>(stream); there != nullptr && there->capturing) there->broken = true;
    return status;
  }
  return fake_cuda::submit(stream, [=] { work(held.get()); });
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
