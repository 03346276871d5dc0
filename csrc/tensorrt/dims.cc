#include "dims.h"

#include <algorithm>

namespace segmenter_trt::tensorrt {

nvinfer1::Dims dims_of(const ImageShape& shape, Input input) {
  nvinfer1::Dims dims{};
  dims.nbDims = 4;
  const std::int64_t pixels[] = {shape.B, shape.H, shape.W, 3}, planes[] = {shape.B, 3, shape.H, shape.W};
  std::copy_n(input == Input::pixels ? pixels : planes, 4, dims.d);
  return dims;
}

std::size_t count(const nvinfer1::Dims& dims) {
  std::size_t product = 1;
  for (int axis = 0; axis < dims.nbDims; ++axis) {
    if (dims.d[axis] < 0) return 0;
    product *= static_cast<std::size_t>(dims.d[axis]);
  }
  return product;
}

bool same(const nvinfer1::Dims& dims, std::initializer_list<std::int64_t> wanted) {
  return dims.nbDims == static_cast<int>(wanted.size()) && std::equal(wanted.begin(), wanted.end(), dims.d);
}

std::string text(const nvinfer1::Dims& dims) {
  std::string shape = "[";
  for (int axis = 0; axis < dims.nbDims; ++axis) shape += (axis == 0 ? "" : ", ") + std::to_string(dims.d[axis]);
  return shape + "]";
}

std::string text(const ImageShape& shape) {
  return "images " + std::to_string(shape.B) + "x" + std::to_string(shape.H) + "x" + std::to_string(shape.W);
}

}  // namespace segmenter_trt::tensorrt
