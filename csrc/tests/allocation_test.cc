// Once a session has seen a shape it allocates nothing more. Every `new` of this program is counted.
#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <new>
#include <vector>

#include "fake_engine.h"
#include "segmenter_trt/session.h"

namespace {

std::atomic<long> allocations = 0;

void* counted(std::size_t size) {
  ++allocations;
  if (void* const memory = std::malloc(size)) return memory;
  throw std::bad_alloc();
}

}  // namespace

void* operator new(std::size_t size) { return counted(size); }
void* operator new[](std::size_t size) { return counted(size); }
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete[](void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete[](void* memory, std::size_t) noexcept { std::free(memory); }

namespace segmenter_trt {
namespace {

class AllocationTest : public EngineTest {};

TEST_F(AllocationTest, NothingAfterTheFirstCallOfAShape) {
  const std::vector<std::uint8_t> pixels(2 * 64 * 96 * 3, 20);
  std::vector<std::uint8_t> labels(2 * 64 * 96);
  for (const char* input : {"normalized", "pixels"}) {
    Session session(open({.input = input}, {.threads = 3}));
    const auto run = [&](std::int64_t H, std::int64_t W) {
      session.run({pixels.data(), 2, H, W}, LabelsView<std::uint8_t>{labels.data(), {H, W}});
    };
    const long before_any = allocations;
    run(64, 96);
    run(40, 56);
    EXPECT_GT(allocations, before_any);
    const long before = allocations;
    for (int round = 0; round < 20; ++round) {
      run(64, 96);
      run(40, 56);
    }
    EXPECT_EQ(allocations, before) << input;
  }
}

}  // namespace
}  // namespace segmenter_trt
