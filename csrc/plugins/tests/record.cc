// Reads nodes from standard input, one a line, and prints what the plugins would launch for each, as JSON, one a line:
//   90 SegmenterAttention fp16 heads=3 2x197x576
// architecture, op, type, attributes, shapes of the inputs. Input number i lies at address (i + 1) << 20, the output
// behind the last.
#include <cstdio>
#include <cstring>
#include <iostream>
#include <sstream>
#include <string>

#include "fake_driver.h"
#include "fake_images.h"
#include "plugin.h"

using namespace segmenter_launch;
using namespace segmenter_plugins;

namespace {

std::vector<double> numbers(const std::string& text, char separator) {
  std::vector<double> found;
  std::stringstream parts(text);
  for (std::string part; std::getline(parts, part, separator);) found.push_back(std::stod(part));
  return found;
}

template <class Item>
std::string list(const std::vector<Item>& items) {
  std::string text = "[";
  for (const Item& item : items) text += (text.size() > 1 ? ", " : "") + std::to_string(item);
  return text + "]";
}

template <class Value>
Value read(const std::vector<std::byte>& bytes) {
  Value value{};
  if (bytes.size() != sizeof value) throw std::runtime_error("a parameter of another size");
  std::memcpy(&value, bytes.data(), sizeof value);
  return value;
}

std::string pointer(const void* address) {
  return std::to_string(static_cast<long>(reinterpret_cast<std::uintptr_t>(address) >> 20) - 1);
}

std::string value_of(const Parameter& parameter, const std::vector<std::byte>& bytes) {
  switch (parameter.kind) {
    case Kind::i32:
    case Kind::shape:
      return std::to_string(read<std::int32_t>(bytes));
    case Kind::stride:
      return std::to_string(read<std::int64_t>(bytes));
    case Kind::fp32: {
      std::ostringstream text;
      text.precision(9);
      text << read<float>(bytes);
      return text.str();
    }
    case Kind::map: {
      const fake::Map map = fake::map(bytes);
      return "{\"input\": " + pointer(map.address) + ", \"type\": " + std::to_string(map.type) +
             ", \"sides\": " + list(map.sides) + ", \"stride_bytes\": " + list(map.stride_bytes) +
             ", \"box\": " + list(map.box) + ", \"steps\": " + list(map.steps) +
             ", \"swizzle\": " + std::to_string(map.swizzle) + ", \"promotion\": " + std::to_string(map.promotion) +
             ", \"interleave\": " + std::to_string(map.interleave) + ", \"fill\": " + std::to_string(map.fill) + "}";
    }
    default:
      return pointer(read<const void*>(bytes));
  }
}

const char* kind_name(Kind kind) {
  constexpr const char* kNames[] = {"pointer", "i32", "fp32", "map", "shape", "stride", "scratch"};
  return kNames[static_cast<int>(kind)];
}

std::string told(const fake::Launched& launch) {
  for (const Image& image : kKernels.images) {
    if (image.code != launch.image) continue;
    for (const Form& form : image.forms) {
      if (form.architecture != launch.architecture) continue;
      std::string text =
          "{\"name\": \"" + std::string(image.name) + "\", \"architecture\": " + std::to_string(form.architecture) +
          ", \"symbol\": \"" + launch.symbol + "\", \"grid\": [" + std::to_string(launch.config.grid_x) + ", " +
          std::to_string(launch.config.grid_y) + ", " + std::to_string(launch.config.grid_z) +
          "], \"threads\": " + std::to_string(launch.config.block_x * launch.config.block_y * launch.config.block_z) +
          ", \"shared_bytes\": " + std::to_string(launch.config.shared_bytes) + ", \"parameters\": [";
      for (std::size_t index = 0; index < form.parameters.size(); ++index) {
        const Parameter& parameter = form.parameters[index];
        text += std::string(index ? ", " : "") + "[\"" + std::string(parameter.name) + "\", \"" +
                kind_name(parameter.kind) + "\", " + std::to_string(parameter.axis) + ", " +
                value_of(parameter, launch.parameters.at(index)) + "]";
      }
      return text + "]}";
    }
  }
  throw std::runtime_error("a launch of no kernel");
}

std::string run(const std::string& line) {
  std::istringstream words(line);
  int architecture = 0;
  std::string op, type, word;
  words >> architecture >> op >> type;
  std::vector<std::int32_t> integers;
  integers.reserve(8);
  float number = 0;
  std::vector<std::string> names;
  names.reserve(8);
  std::vector<nvinfer1::PluginField> fields;
  std::vector<nvinfer1::PluginTensorDesc> tensors;
  while (words >> word) {
    const std::size_t at = word.find('=');
    if (at == std::string::npos) {
      nvinfer1::PluginTensorDesc tensor{};
      for (const double side : numbers(word, 'x'))
        tensor.dims.d[tensor.dims.nbDims++] = static_cast<std::int64_t>(side);
      tensor.type = type == "fp16" ? nvinfer1::DataType::kHALF : nvinfer1::DataType::kBF16;
      tensors.push_back(tensor);
      continue;
    }
    names.push_back(word.substr(0, at));
    const std::vector<double> values = numbers(word.substr(at + 1), ',');
    if (names.back() == "epsilon") {
      number = static_cast<float>(values.at(0));
      fields.emplace_back(names.back().c_str(), &number, nvinfer1::PluginFieldType::kFLOAT32, 1);
      continue;
    }
    const std::size_t first = integers.size();
    for (const double value : values) integers.push_back(static_cast<std::int32_t>(value));
    fields.emplace_back(names.back().c_str(), integers.data() + first, nvinfer1::PluginFieldType::kINT32,
                        static_cast<std::int32_t>(values.size()));
  }
  fake::reset();
  fake::set_gpus({architecture});
  const auto launcher = std::make_shared<Launcher>(kKernels, FAKE_DRIVER);
  for (const Maker& maker : makers()) {
    if (op != maker.name) continue;
    Creator creator(maker, launcher);
    const nvinfer1::PluginFieldCollection collection{static_cast<std::int32_t>(fields.size()), fields.data()};
    const std::unique_ptr<nvinfer1::IPluginV3> plugin(
        creator.createPlugin("node", &collection, nvinfer1::TensorRTPhase::kRUNTIME));
    if (!plugin) throw std::runtime_error("no plugin");
    auto* const runtime = static_cast<nvinfer1::IPluginV3OneRuntime*>(
        plugin->getCapabilityInterface(nvinfer1::PluginCapabilityType::kRUNTIME));
    std::vector<const void*> inputs;
    for (std::size_t index = 0; index < tensors.size(); ++index) {
      inputs.push_back(reinterpret_cast<const void*>((index + 1) << 20));
    }
    void* output = reinterpret_cast<void*>((tensors.size() + 1) << 20);
    if (runtime->enqueue(tensors.data(), nullptr, inputs.data(), &output, nullptr, nullptr) != 0) {
      throw std::runtime_error("enqueue failed");
    }
    const std::vector<fake::Launched> launched = fake::launched();
    return launched.empty() ? "null" : told(launched.at(0));
  }
  throw std::runtime_error("no op " + op);
}

}  // namespace

int main() {
  fake::add_all_images();
  for (std::string line; std::getline(std::cin, line);) {
    try {
      std::cout << run(line) << "\n";
    } catch (const std::exception& error) {
      std::fprintf(stderr, "%s: %s\n", line.c_str(), error.what());
      return 1;
    }
  }
  return 0;
}
