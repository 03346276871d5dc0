// Shapes as TensorRT has them.
#pragma once

#include <NvInferRuntime.h>

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <string>

#include "backend.h"

namespace segmenter_trt::tensorrt {

// Of a plan's input.
nvinfer1::Dims dims_of(const ImageShape& shape, Input input);

// Elements; 0 where a side is not known.
std::size_t count(const nvinfer1::Dims& dims);

bool same(const nvinfer1::Dims& dims, std::initializer_list<std::int64_t> wanted);

// As "[2, 16, 24, 3]", and as "images 2x16x24".
std::string text(const nvinfer1::Dims& dims);
std::string text(const ImageShape& shape);

}  // namespace segmenter_trt::tensorrt
