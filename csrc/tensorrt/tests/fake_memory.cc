// Memory of the fake driver: the device's is the host's too, and nothing but what was allocated is copied.
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>

#include "fake_state.h"

namespace fake_cuda {
namespace {

std::map<std::uintptr_t, std::size_t> device_blocks, pinned_blocks;
int most = 0;  // device_blocks; 0 for any number

bool inside(const std::map<std::uintptr_t, std::size_t>& blocks, const void* address, std::size_t bytes) {
  const auto at = reinterpret_cast<std::uintptr_t>(address);
  auto next = blocks.upper_bound(at);
  if (next == blocks.begin()) return false;
  --next;
  return at + bytes <= next->first + next->second;
}

int MemAlloc(Address* address, std::size_t bytes) {
  GUARD("MemAlloc");
  if (device() < 0) return kInvalidContext;
  if (bytes == 0) return kInvalidValue;
  if (most != 0 && counts.device_memory >= most) return kOutOfMemory;
  void* const memory = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
  std::memset(memory, 0xEE, bytes);
  device_blocks[reinterpret_cast<std::uintptr_t>(memory)] = bytes;
  ++counts.device_memory, ++counts.allocations;
  *address = reinterpret_cast<std::uintptr_t>(memory);
  return 0;
}
int MemFree(Address address) {
  GUARD("MemFree");
  if (device() < 0) return kInvalidContext;
  if (device_blocks.erase(address) == 0) return kInvalidValue;
  --counts.device_memory;
  std::free(reinterpret_cast<void*>(address));
  return 0;
}
int MemHostAlloc(void** memory, std::size_t bytes, unsigned) {
  GUARD("MemHostAlloc");
  if (device() < 0) return kInvalidContext;
  *memory = std::malloc(bytes);
  std::memset(*memory, 0xDD, bytes);
  pinned_blocks[reinterpret_cast<std::uintptr_t>(*memory)] = bytes;
  ++counts.pinned_memory, ++counts.allocations;
  return 0;
}
int MemFreeHost(void* memory) {
  GUARD("MemFreeHost");
  if (device() < 0) return kInvalidContext;
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
  return submit(stream, [=] {
    for (std::size_t z = 0; z < box.depth; ++z) {
      for (std::size_t y = 0; y < box.height; ++y) {
        std::memcpy(reinterpret_cast<void*>(place(box.to, y, z)), reinterpret_cast<void*>(place(box.from, y, z)),
                    box.width);
      }
    }
  });
}
}  // namespace

const Functions& of_memory() {
  static const Functions found = {NAMED(MemAlloc),        NAMED(MemFree),         NAMED(MemHostAlloc),
                                  NAMED(MemFreeHost),     NAMED(MemcpyHtoDAsync), NAMED(MemcpyDtoHAsync),
                                  NAMED(MemcpyDtoDAsync), NAMED(Memcpy3DAsync)};
  return found;
}

}  // namespace fake_cuda

EXPORTED void fake_cuda_limit_memory(int allocations) {
  const std::lock_guard lock(fake_cuda::mutex);
  fake_cuda::most = allocations;
}

EXPORTED int fake_cuda_on_device(const void* address, std::size_t bytes) {
  const std::lock_guard lock(fake_cuda::mutex);
  return fake_cuda::inside(fake_cuda::device_blocks, address, bytes);
}
