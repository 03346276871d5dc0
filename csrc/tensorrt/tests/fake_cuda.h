// How tests look into the fake driver, and make it fail.
#pragma once

#include <cstddef>

extern "C" {

struct FakeCudaCounts {
  int device_memory, pinned_memory, streams, events, graphs, execs;  // alive
  int contexts;                                                      // retained
  int pushed;                                                        // current contexts of this thread
  int launches;                                                      // of graphs, ever
  int captures;                                                      // begun, ever
  int allocations;                                                   // of device and pinned memory, ever
  int waiting;                                                       // works that streams put off
  int stream_waits;                                                  // StreamSynchronize, ever
};

FakeCudaCounts fake_cuda_counts();
// Calls of a function, named without cu, give `status` and do nothing: the next `times` after the next `good`.
void fake_cuda_fail(const char* function, int status, int times, int good = 0);
// The most allocations of device memory that are alive at once, past which it is out of memory; 0 for any number.
void fake_cuda_limit_memory(int allocations);
// The compute capability of all GPUs but number 1, which is of 7.5.
void fake_cuda_set_device(int major, int minor, int count);
// What a launch does, at its place in the stream: `form` as it was given, programs, threads of each, and the
// parameters.
typedef void (*FakeCompute)(const void* form, unsigned programs, unsigned threads, const void* const* parameters);
// Machine code in a fatbin, of a kernel with parameters of so many bytes each.
void fake_cuda_add_kernel(const void* code, const char* symbol, int architecture, const std::size_t* bytes,
                          std::size_t count, FakeCompute compute, const void* form);
// What the size of every kernel's parameter number `index` is told as; 0 tells the truth again.
void fake_cuda_tell_parameter(std::size_t index, std::size_t bytes);
// Whether streams put off what they are given until somebody waits for them.
void fake_cuda_defer(int wanted);
// Puts work on a stream: at once, or into the graph it is capturing. Returns 0, or the error of a stream that refuses.
int fake_cuda_submit(void* stream, void (*work)(void*), void* data, void (*drop)(void*));
// Whether a stream is capturing.
int fake_cuda_capturing(void* stream);
// Whether memory of so many bytes at an address is the device's.
int fake_cuda_on_device(const void* address, std::size_t bytes);
}
