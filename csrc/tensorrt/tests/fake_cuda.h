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
};

FakeCudaCounts fake_cuda_counts();
// The next `times` calls of a function, named without cu, give `status` and do nothing.
void fake_cuda_fail(const char* function, int status, int times);
void fake_cuda_set_device(int major, int minor, int count);
// Puts work on a stream: at once, or into the graph it is capturing. Returns 0, or the error of a stream that refuses.
int fake_cuda_submit(void* stream, void (*work)(void*), void* data, void (*drop)(void*));
// Whether a stream is capturing.
int fake_cuda_capturing(void* stream);
// Whether memory of so many bytes at an address is the device's.
int fake_cuda_on_device(const void* address, std::size_t bytes);
}
