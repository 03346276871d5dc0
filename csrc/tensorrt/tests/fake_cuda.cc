// A CUDA driver without a GPU, as libcuda.so.1: its devices and their contexts, and how tests look into it.
#include "fake_cuda.h"

#include <cstdint>
#include <cstring>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "fake_state.h"

namespace fake_cuda {

std::recursive_mutex mutex;
FakeCudaCounts counts;

namespace {

struct Failing {
  int status, times, good;
};

std::map<std::string, Failing> failures;  // by function
int of_gpus[2] = {9, 0}, devices = 1;
constexpr int kOld[2] = {7, 5};
int contexts[2];                        // one a GPU
thread_local std::vector<int> current;  // GPUs whose contexts were pushed

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
const Functions& of_devices() {
  static const Functions found = {
      NAMED(Init),           NAMED(GetErrorString),     NAMED(DeviceGetCount),         NAMED(DeviceGet),
      NAMED(DeviceGetName),  NAMED(DeviceGetAttribute), NAMED(DevicePrimaryCtxRetain), NAMED(DevicePrimaryCtxRelease),
      NAMED(CtxPushCurrent), NAMED(CtxPopCurrent)};
  return found;
}

}  // namespace

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

int device() { return current.empty() ? -1 : current.back(); }

int capability(int device) {
  const std::lock_guard lock(mutex);
  const int* const found = device == 1 ? kOld : of_gpus;
  return 10 * found[0] + found[1];
}

}  // namespace fake_cuda

EXPORTED int cuGetProcAddress_v2(const char* name, void** function, int, std::uint64_t, int*) {
  using namespace fake_cuda;
  for (const Functions* const some : {&of_devices(), &of_memory(), &of_streams(), &launching()}) {
    if (const auto found = some->find(name); found != some->end()) return *function = found->second, 0;
  }
  return kInvalidValue;
}

EXPORTED FakeCudaCounts fake_cuda_counts() {
  const std::lock_guard lock(fake_cuda::mutex);
  FakeCudaCounts now = fake_cuda::counts;
  now.pushed = static_cast<int>(fake_cuda::current.size());
  return now;
}

EXPORTED void fake_cuda_fail(const char* function, int status, int times, int good) {
  const std::lock_guard lock(fake_cuda::mutex);
  fake_cuda::failures[function] = {status, times, good};
}

EXPORTED void fake_cuda_set_device(int major, int minor, int count) {
  using namespace fake_cuda;
  const std::lock_guard lock(mutex);
  of_gpus[0] = major, of_gpus[1] = minor, devices = count;
}
