#include "plugin.h"

#include <exception>
#include <utility>

#include "message.h"

namespace segmenter_plugins {
namespace {

using nvinfer1::DataType;
using nvinfer1::DynamicPluginTensorDesc;
using nvinfer1::PluginField;
using nvinfer1::PluginFieldCollection;
using nvinfer1::PluginFieldType;
using nvinfer1::PluginTensorDesc;

constexpr std::int32_t kDone = 0, kFailed = -1;

// TensorRT takes no exceptions: what a step throws becomes one line of its log.
template <class Step>
std::int32_t told(const char* name, Step&& step) noexcept {
  try {
    step();
    return kDone;
  } catch (const std::exception& failure) {
    try {
      error(std::string(name) + ": " + failure.what());
    } catch (...) {
      // no memory for a message
    }
    return kFailed;
  }
}

PluginFieldCollection collection(const std::vector<PluginField>& fields) {
  return {static_cast<std::int32_t>(fields.size()), fields.data()};
}

std::vector<PluginField> names(const std::vector<Attribute>& attributes) {
  std::vector<PluginField> fields;
  fields.reserve(attributes.size());
  for (const Attribute& each : attributes) fields.emplace_back(each.name, nullptr, each.type, each.length);
  return fields;
}

// Timings are those of these attributes with these kernels; TensorRT adds shapes and types.
std::string timing_key(const std::vector<PluginField>& fields, const char* hash) {
  std::string key = hash;
  for (const PluginField& field : fields) {
    key += std::string(";") + field.name + "=";
    for (std::int32_t index = 0; index < field.length; ++index) {
      key += field.type == PluginFieldType::kFLOAT32
                 ? std::to_string(static_cast<const float*>(field.data)[index])
                 : std::to_string(static_cast<const std::int32_t*>(field.data)[index]);
      key += ',';
    }
  }
  return key;
}

}  // namespace

Plugin::Plugin(std::shared_ptr<const Operation> operation, std::shared_ptr<Launcher> launcher)
    : operation_(std::move(operation)),
      launcher_(std::move(launcher)),
      fields_(operation_->fields()),
      collection_(collection(fields_)),
      timing_key_(timing_key(fields_, launcher_->kernels().hash)) {}

nvinfer1::IPluginCapability* Plugin::getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept {
  switch (type) {
    case nvinfer1::PluginCapabilityType::kCORE:
      return static_cast<nvinfer1::IPluginV3OneCore*>(this);
    case nvinfer1::PluginCapabilityType::kBUILD:
      return static_cast<nvinfer1::IPluginV3OneBuild*>(this);
    case nvinfer1::PluginCapabilityType::kRUNTIME:
      return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
  }
  return nullptr;
}

nvinfer1::IPluginV3* Plugin::clone() noexcept {
  nvinfer1::IPluginV3* made = nullptr;
  told(operation_->name(), [&] { made = std::make_unique<Plugin>(operation_, launcher_).release(); });
  return made;
}

const char* Plugin::getPluginName() const noexcept { return operation_->name(); }
const char* Plugin::getPluginVersion() const noexcept { return kVersion; }
const char* Plugin::getPluginNamespace() const noexcept { return kNamespace; }

Inputs Plugin::described(const PluginTensorDesc* in) const {
  return {in, static_cast<std::size_t>(operation_->inputs())};
}

std::int32_t Plugin::configurePlugin(const DynamicPluginTensorDesc* in, std::int32_t inputs,
                                     const DynamicPluginTensorDesc*, std::int32_t outputs) noexcept {
  return told(operation_->name(), [&] {
    if (inputs != operation_->inputs() || outputs != 1) {
      throw Failure(std::to_string(inputs) + " inputs: wanted " + std::to_string(operation_->inputs()));
    }
    // what no kernel serves fails the build, not the first image: both ends of the profile are asked about
    for (const auto end : {&DynamicPluginTensorDesc::min, &DynamicPluginTensorDesc::max}) {
      std::vector<PluginTensorDesc> tensors;
      bool known = true;
      for (std::int32_t index = 0; index < inputs; ++index) {
        tensors.push_back(in[index].desc);
        tensors.back().dims = in[index].*end;
        for (std::int32_t axis = 0; axis < tensors.back().dims.nbDims; ++axis) known &= tensors.back().dims.d[axis] > 0;
      }
      const std::vector<const void*> sources(static_cast<std::size_t>(inputs), nullptr);
      void* const target = nullptr;
      if (known) launcher_->require(operation_->call(tensors, sources.data(), &target));
    }
  });
}

std::int32_t Plugin::getOutputDataTypes(DataType* types, std::int32_t outputs, const DataType* in,
                                        std::int32_t inputs) const noexcept {
  return told(operation_->name(), [&] {
    if (inputs != operation_->inputs() || outputs != 1) {
      throw Failure(std::to_string(inputs) + " inputs: wanted " + std::to_string(operation_->inputs()));
    }
    if (in[0] != DataType::kHALF && in[0] != DataType::kBF16) {
      throw Failure("tensors of TensorRT type " + std::to_string(static_cast<int>(in[0])) +
                    ": its kernels take float16 and bfloat16; export with --precision fp16 or bf16");
    }
    types[0] = operation_->output_type(in[0]);
  });
}

std::int32_t Plugin::getOutputShapes(const nvinfer1::DimsExprs* in, std::int32_t inputs, const nvinfer1::DimsExprs*,
                                     std::int32_t, nvinfer1::DimsExprs* out, std::int32_t outputs,
                                     nvinfer1::IExprBuilder& exprs) noexcept {
  return told(operation_->name(), [&] {
    if (inputs != operation_->inputs() || outputs != 1) {
      throw Failure(std::to_string(inputs) + " inputs: wanted " + std::to_string(operation_->inputs()));
    }
    out[0] = operation_->output_shape({in, static_cast<std::size_t>(inputs)}, exprs);
  });
}

bool Plugin::supportsFormatCombination(std::int32_t position, const DynamicPluginTensorDesc* tensors,
                                       std::int32_t inputs, std::int32_t outputs) noexcept {
  if (inputs != operation_->inputs() || outputs != 1 || position < 0 || position > inputs) return false;
  const PluginTensorDesc& tensor = tensors[position].desc;
  if (tensor.format != nvinfer1::TensorFormat::kLINEAR) return false;
  const DataType first = tensors[0].desc.type;
  if (position == 0) return first == DataType::kHALF || first == DataType::kBF16;
  return tensor.type == (position < inputs ? first : operation_->output_type(first));
}

std::int32_t Plugin::getNbOutputs() const noexcept { return 1; }

// No kernel in this library needs memory of its own: embed.py takes no other.
std::size_t Plugin::getWorkspaceSize(const DynamicPluginTensorDesc*, std::int32_t, const DynamicPluginTensorDesc*,
                                     std::int32_t) const noexcept {
  return 0;
}

const char* Plugin::getTimingCacheID() noexcept { return timing_key_.c_str(); }

std::int32_t Plugin::onShapeChange(const PluginTensorDesc* in, std::int32_t inputs, const PluginTensorDesc*,
                                   std::int32_t outputs) noexcept {
  if (inputs != operation_->inputs() || outputs != 1) return kFailed;
  try {
    const std::vector<const void*> sources(static_cast<std::size_t>(inputs), nullptr);
    void* const target = nullptr;
    launcher_->prepare(operation_->call(described(in), sources.data(), &target));
  } catch (const std::exception&) {
    // plans are built where there is no GPU; a fault is told by enqueue, which meets it again
  }
  return kDone;
}

std::int32_t Plugin::enqueue(const PluginTensorDesc* in, const PluginTensorDesc*, const void* const* inputs,
                             void* const* outputs, void*, cudaStream_t stream) noexcept {
  return told(operation_->name(), [&] { launcher_->launch(operation_->call(described(in), inputs, outputs), stream); });
}

nvinfer1::IPluginV3* Plugin::attachToContext(nvinfer1::IPluginResourceContext*) noexcept { return clone(); }

const PluginFieldCollection* Plugin::getFieldsToSerialize() noexcept { return &collection_; }

Creator::Creator(const Maker& maker, std::shared_ptr<Launcher> launcher)
    : maker_(maker),
      launcher_(std::move(launcher)),
      fields_(names(maker.attributes)),
      collection_(collection(fields_)) {}

nvinfer1::IPluginV3* Creator::createPlugin(const char*, const PluginFieldCollection* fields,
                                           nvinfer1::TensorRTPhase) noexcept {
  nvinfer1::IPluginV3* made = nullptr;
  told(maker_.name, [&] {
    const PluginFieldCollection none{0, nullptr};
    made = std::make_unique<Plugin>(maker_.make(fields ? *fields : none), launcher_).release();
  });
  return made;
}

const PluginFieldCollection* Creator::getFieldNames() noexcept { return &collection_; }
const char* Creator::getPluginName() const noexcept { return maker_.name; }
const char* Creator::getPluginVersion() const noexcept { return kVersion; }
const char* Creator::getPluginNamespace() const noexcept { return kNamespace; }

}  // namespace segmenter_plugins
