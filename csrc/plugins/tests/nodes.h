// Nodes of every op as TensorRT makes and describes them, with attributes and shapes that go together.
#pragma once

#include <NvInferRuntime.h>

#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "fake_images.h"
#include "plugin.h"

namespace segmenter_plugins {

using nvinfer1::DataType;
using nvinfer1::DynamicPluginTensorDesc;
using nvinfer1::PluginField;
using nvinfer1::PluginFieldCollection;
using nvinfer1::PluginFieldType;
using nvinfer1::PluginTensorDesc;
using nvinfer1::TensorFormat;
using segmenter_launch::kKernels;

struct Attributes {
  std::vector<std::int32_t> heads{3}, size{64, 80}, crop{56, 72};
  float epsilon = 1e-5F;

  std::vector<PluginField> of(const std::string& op) const {
    const auto integers = [](const char* name, const std::vector<std::int32_t>& values) {
      return PluginField(name, values.data(), PluginFieldType::kINT32, static_cast<std::int32_t>(values.size()));
    };
    if (op == "SegmenterAttention") return {integers("heads", heads)};
    if (op == "SegmenterMaskScores") return {{"epsilon", &epsilon, PluginFieldType::kFLOAT32, 1}};
    if (op == "SegmenterUpsampleArgmax") return {integers("size", size), integers("crop", crop)};
    return {};
  }
};

// A plugin and what TensorRT takes it by.
struct Node {
  std::unique_ptr<nvinfer1::IPluginV3> plugin;

  template <class Capability>
  Capability& as(nvinfer1::PluginCapabilityType type) const {
    return *static_cast<Capability*>(plugin->getCapabilityInterface(type));
  }
  nvinfer1::IPluginV3OneCore& core() const {
    return as<nvinfer1::IPluginV3OneCore>(nvinfer1::PluginCapabilityType::kCORE);
  }
  nvinfer1::IPluginV3OneBuild& build() const {
    return as<nvinfer1::IPluginV3OneBuild>(nvinfer1::PluginCapabilityType::kBUILD);
  }
  nvinfer1::IPluginV3OneRuntime& runtime() const {
    return as<nvinfer1::IPluginV3OneRuntime>(nvinfer1::PluginCapabilityType::kRUNTIME);
  }
};

inline const Maker& maker(const std::string& op) {
  for (const Maker& each : makers()) {
    if (op == each.name) return each;
  }
  throw std::runtime_error(op);
}

inline Node node(const std::string& op, const std::vector<PluginField>& fields,
                 const std::string& driver = FAKE_DRIVER) {
  Creator creator(maker(op), std::make_shared<Launcher>(kKernels, driver));
  const PluginFieldCollection collection{static_cast<std::int32_t>(fields.size()), fields.data()};
  return {
      std::unique_ptr<nvinfer1::IPluginV3>(creator.createPlugin("node", &collection, nvinfer1::TensorRTPhase::kBUILD))};
}

inline Node node(const std::string& op, const std::string& driver = FAKE_DRIVER) {
  return node(op, Attributes().of(op), driver);
}

inline const std::vector<std::string> kOps = {"SegmenterAttention", "SegmenterPatchEmbed", "SegmenterMaskScores",
                                              "SegmenterUpsampleArgmax"};

// Shapes that go with Attributes, of a batch and a grid of 4 x 5 patches.
inline std::vector<std::vector<std::int64_t>> shapes(const std::string& op, std::int64_t B = 2) {
  if (op == "SegmenterAttention") return {{B, 21, 3 * 3 * 64}};
  if (op == "SegmenterPatchEmbed") return {{B, 3, 64, 80}, {192, 3, 16, 16}, {192}, {1, 21, 192}, {1, 1, 192}};
  if (op == "SegmenterMaskScores") return {{B, 20, 192}, {B, 5, 192}, {5}, {5}};
  return {{B, 4, 5, 5}};
}

inline std::vector<std::int64_t> output_of(const std::string& op, std::int64_t B) {
  if (op == "SegmenterAttention" || op == "SegmenterPatchEmbed") return {B, 21, 192};
  if (op == "SegmenterMaskScores") return {B, 20, 5};
  return {B, 56, 72};
}

inline nvinfer1::Dims dims(const std::vector<std::int64_t>& sides) {
  nvinfer1::Dims found{};
  for (const std::int64_t side : sides) found.d[found.nbDims++] = side;
  return found;
}

inline std::vector<PluginTensorDesc> tensors(const std::vector<std::vector<std::int64_t>>& sides,
                                             DataType type = DataType::kHALF) {
  std::vector<PluginTensorDesc> found;
  for (const auto& each : sides) {
    PluginTensorDesc tensor{};
    tensor.dims = dims(each);
    tensor.type = type;
    tensor.format = TensorFormat::kLINEAR;
    found.push_back(tensor);
  }
  return found;
}

// Inputs and output as configurePlugin and supportsFormatCombination get them.
inline std::vector<DynamicPluginTensorDesc> profile(const std::string& op, DataType type = DataType::kHALF,
                                                    std::int64_t most = 8) {
  std::vector<DynamicPluginTensorDesc> found;
  const auto low = shapes(op, 1), high = shapes(op, most);
  for (std::size_t index = 0; index < low.size(); ++index) {
    DynamicPluginTensorDesc tensor{};
    tensor.desc = tensors({low[index]}, type)[0];
    tensor.min = dims(low[index]);
    tensor.opt = tensor.max = dims(high[index]);
    if (low[index] != high[index]) tensor.desc.dims.d[0] = -1;
    found.push_back(tensor);
  }
  DynamicPluginTensorDesc labels{};
  labels.desc = tensors({output_of(op, most)}, op == kOps[3] ? DataType::kINT32 : type)[0];
  found.push_back(labels);
  return found;
}

}  // namespace segmenter_plugins
