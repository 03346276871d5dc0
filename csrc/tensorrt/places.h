// What a session keeps of a shape of images: memory on both sides, and its work as graphs.
#pragma once

#include <NvInferRuntime.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "backend.h"
#include "owners.h"
#include "plan.h"

namespace segmenter_trt::tensorrt {

// A tensor of a shape: where it lies on the device and, where the host sees it, on the host.
struct Port {
  const Tensor* tensor;
  nvinfer1::Dims dims;
  std::size_t bytes;
  cuda::DeviceMemory device;
  cuda::PinnedMemory host;  // of images, labels and masks
};

// A graph has a context of its own: TensorRT leaves undefined what one does whose context was changed since.
struct Replay {
  std::unique_ptr<nvinfer1::IExecutionContext> context;
  cuda::GraphExec graph;
  bool capturable = true;  // until a capture fails
};

// Everything of one shape.
struct Place {
  ImageShape shape;
  std::vector<Port> ports;
  std::vector<std::int16_t> labels;  // of more classes than a byte holds, which a plan writes as int32
  Replay whole, network;
  bool seen = false;  // whether it ran once: a graph is for shapes that come again

  Port& port(const char* name) {
    return *std::find_if(ports.begin(), ports.end(), [&](const Port& one) { return one.tensor->name == name; });
  }
};

}  // namespace segmenter_trt::tensorrt
