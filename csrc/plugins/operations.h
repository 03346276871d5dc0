// The four nodes of domain `segmenter` in TensorRT's terms: attributes, types, shapes, and the call each becomes. What
// they compute is documented in kernels/segmenter_kernels/onnx_ops.py.
#pragma once

#include <NvInferRuntime.h>

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "calls.h"
#include "failure.h"

namespace segmenter_plugins {

using segmenter_launch::AttentionCall;
using segmenter_launch::Call;
using segmenter_launch::Failure;
using segmenter_launch::MaskScoresCall;
using segmenter_launch::PatchEmbedCall;
using segmenter_launch::Type;
using segmenter_launch::UpsampleArgmaxCall;

using Inputs = std::span<const nvinfer1::PluginTensorDesc>;
using Exprs = std::span<const nvinfer1::DimsExprs>;

// An attribute of a node; its value lies in the operation.
struct Attribute {
  const char* name;
  nvinfer1::PluginFieldType type;
  std::int32_t length;
};

// Immutable; shared by the clones of a plugin.
class Operation {
 public:
  virtual ~Operation() = default;

  virtual const char* name() const noexcept = 0;
  virtual std::int32_t inputs() const noexcept = 0;
  // The attributes with their values, in the form TensorRT stores in a plan.
  virtual std::vector<nvinfer1::PluginField> fields() const = 0;
  virtual nvinfer1::DataType output_type(nvinfer1::DataType input) const { return input; }
  virtual nvinfer1::DimsExprs output_shape(Exprs in, nvinfer1::IExprBuilder& exprs) const = 0;
  // Throws Failure when shapes do not fit each other. Pointers may be null, when only shapes are asked about.
  virtual Call call(Inputs in, const void* const* inputs, void* const* outputs) const = 0;
};

// How to make an operation, and what a creator tells of it.
struct Maker {
  const char* name;
  std::vector<Attribute> attributes;
  // Throws Failure naming an attribute that is missing or out of range.
  std::shared_ptr<const Operation> (*make)(const nvinfer1::PluginFieldCollection& fields);
};

// All four.
const std::array<Maker, 4>& makers();

}  // namespace segmenter_plugins
