// libFuzzer on the manifest's parser, whose text may come from anywhere (clang):
//   clang++ -std=c++20 -g -O1 -fsanitize=fuzzer,address,undefined -Icsrc/include -I JSON csrc/tests/fuzz_manifest.cc
//     csrc/src/manifest*.cc -o fuzz_manifest && ./fuzz_manifest -max_total_time=60
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "segmenter_trt/errors.h"
#include "segmenter_trt/manifest.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  try {
    segmenter_trt::parse_manifest({reinterpret_cast<const char*>(data), size}, "fuzz");
  } catch (const segmenter_trt::ManifestError&) {
    // the one thing it may throw
  }
  return 0;
}
