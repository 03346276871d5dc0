// The plans of the fake TensorRT, and what its networks compute.
//
// A plan is a few words behind a plan's 32 bytes: `fake B H W K P int32 masks`. Label of a pixel: its red value modulo
// K; masks are 1 for the label of a patch's first pixel and 0 elsewhere, and NaN everywhere in an image whose first
// pixel is 255, 255, 255. The profile goes from one pixel to B images of H x W, or with the word `fixed` is that shape
// alone.
#pragma once

#include <NvInferRuntime.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

namespace fake_network {

struct Facts {
  std::int64_t B = 0, H = 0, W = 0, K = 0, P = 0;
  bool wide = false, masks = false, normalized = false, short_labels = false, uncapturable = false, fixed = false;

  nvinfer1::Dims images(std::int64_t b, std::int64_t h, std::int64_t w) const;
};

// None where a plan is none.
std::optional<Facts> read(const std::string& plan);

// One enqueue: two works on its stream, which meet in the scratch memory.
struct Job {
  Facts facts;
  std::int64_t B, H, W;
  const void* images;
  void* labels;
  void* masks;
  void* scratch;
  bool captured;
  std::shared_ptr<const int> changes;  // of its context, now and at the enqueue
  int changes_then;
  bool replaced;  // by kernels that were compiled meanwhile
};

// Of a Job. One that was captured with what its context no longer is computes nothing, nor does one whose scratch
// memory another one took meanwhile.
void begin(const Job& job);
void compute(const Job& job);

}  // namespace fake_network
