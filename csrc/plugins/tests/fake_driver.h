// A CUDA driver that launches nothing and writes down everything, with faults on demand. Safe from many threads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "driver.h"

namespace fake {

// Machine code in a fatbin: its kernel's name, what it runs on, and the bytes of its parameters.
struct Code {
  std::string symbol;
  int architecture;
  bool exact, ptx;
  std::vector<std::size_t> parameter_bytes;
};

struct Map {
  int type;
  const void* address;
  std::vector<std::uint64_t> sides, stride_bytes;
  std::vector<std::uint32_t> box, steps;
  int interleave, swizzle, promotion, fill;
};

struct Launched {
  const void* image;
  std::string symbol;
  int device, architecture, shared_limit;
  segmenter_launch::LaunchConfig config;
  std::vector<std::vector<std::byte>> parameters;
};

// One GPU of capability 8.0, no faults, nothing written down; images stay.
void reset();
void add_image(const void* address, std::vector<Code> codes);
void set_gpus(std::vector<int> capabilities);  // 80 is 8.0
void use_gpu(int device);                      // on this thread
void set_version(int version);                 // 13020 is CUDA 13.2
void fail(const std::string& function, int result);
void hide(const std::string& function);     // as a driver too old for it
void take(int architecture);                // of a fatbin, whatever the GPU; 0 for the newest that runs
void resize(std::size_t index, int bytes);  // what a parameter's size is told as
void be_quiet(bool quiet);  // launches and maps succeed and are not written down, so that nothing is allocated here
std::vector<Launched> launched();
Map map(const std::vector<std::byte>& parameter);
int calls(const std::string& function);

}  // namespace fake
