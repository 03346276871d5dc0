#include "operations.h"

#include <algorithm>
#include <limits>
#include <string_view>

namespace segmenter_plugins {
namespace {

using nvinfer1::DataType;
using nvinfer1::DimensionOperation;
using nvinfer1::Dims;
using nvinfer1::DimsExprs;
using nvinfer1::IExprBuilder;
using nvinfer1::PluginField;
using nvinfer1::PluginFieldCollection;
using nvinfer1::PluginFieldType;

constexpr std::int64_t kMaxImageElements = std::int64_t{1} << 31;  // so that offsets in one fit int32
constexpr std::int64_t kMaxSides = std::int64_t{1} << 29;          // source side times target side, likewise

std::string text(const Dims& dims) {
  std::string found = "[";
  for (int axis = 0; axis < dims.nbDims; ++axis) found += (axis ? ", " : "") + std::to_string(dims.d[axis]);
  return found + "]";
}

// The message is made only when it is needed: the hot path allocates nothing.
template <class Message>
void require(bool condition, Message&& message) {
  if (!condition) throw Failure(message());
}

// `input` as dims of the wanted rank and sides, -1 for any.
const Dims& shape(Inputs in, std::size_t index, const char* name, std::initializer_list<std::int64_t> wanted) {
  const Dims& dims = in[index].dims;
  bool fits = dims.nbDims == static_cast<std::int32_t>(wanted.size());
  Dims described{};
  for (const std::int64_t side : wanted) described.d[described.nbDims++] = side;
  for (int axis = 0; fits && axis < dims.nbDims; ++axis) {
    fits = dims.d[axis] >= 0 && (described.d[axis] < 0 || dims.d[axis] == described.d[axis]);
  }
  require(fits,
          [&] { return std::string(name) + " " + text(dims) + ": wanted " + text(described) + ", -1 for any side"; });
  return dims;
}

Type type_of(Inputs in) {
  const DataType type = in[0].type;
  require(type == DataType::kHALF || type == DataType::kBF16, [&] {
    return "tensors of TensorRT type " + std::to_string(static_cast<int>(type)) + ": wanted float16 or bfloat16";
  });
  return type == DataType::kHALF ? Type::fp16 : Type::bf16;
}

// Values of an integer attribute, of whichever width the parser chose.
std::vector<std::int64_t> integers(const PluginFieldCollection& fields, std::string_view name) {
  for (const PluginField& field : std::span(fields.fields, static_cast<std::size_t>(fields.nbFields))) {
    if (name != field.name || !field.data || field.length < 1) continue;
    const auto count = static_cast<std::size_t>(field.length);
    if (field.type == PluginFieldType::kINT32) {
      const auto values = std::span(static_cast<const std::int32_t*>(field.data), count);
      return {values.begin(), values.end()};
    }
    if (field.type == PluginFieldType::kINT64) {
      const auto values = std::span(static_cast<const std::int64_t*>(field.data), count);
      return {values.begin(), values.end()};
    }
    throw Failure("attribute " + std::string(name) + ": wanted integers");
  }
  throw Failure("attribute " + std::string(name) + " is missing; export with this version of segmenter");
}

float number(const PluginFieldCollection& fields, std::string_view name) {
  for (const PluginField& field : std::span(fields.fields, static_cast<std::size_t>(fields.nbFields))) {
    if (name != field.name || !field.data) continue;
    require(field.type == PluginFieldType::kFLOAT32 && field.length == 1,
            [&] { return "attribute " + std::string(name) + ": wanted one float"; });
    return *static_cast<const float*>(field.data);
  }
  throw Failure("attribute " + std::string(name) + " is missing; export with this version of segmenter");
}

std::array<std::int32_t, 2> pair(const PluginFieldCollection& fields, std::string_view name) {
  const std::vector<std::int64_t> values = integers(fields, name);
  require(values.size() == 2, [&] { return "attribute " + std::string(name) + ": wanted 2 integers"; });
  for (const std::int64_t value : values) {
    require(value != 0 && value >= -kMaxSides && value <= kMaxSides, [&] {
      return "attribute " + std::string(name) + ": " + std::to_string(value) + " is no number of pixels";
    });
  }
  return {static_cast<std::int32_t>(values[0]), static_cast<std::int32_t>(values[1])};
}

PluginField field(const char* name, const std::int32_t& value, std::int32_t length = 1) {
  return {name, &value, PluginFieldType::kINT32, length};
}

DimsExprs exprs_of(std::initializer_list<const nvinfer1::IDimensionExpr*> sides) {
  DimsExprs found{};
  for (const nvinfer1::IDimensionExpr* side : sides) found.d[found.nbDims++] = side;
  return found;
}

void ranks(Exprs in, std::initializer_list<std::int32_t> wanted) {
  std::size_t index = 0;
  for (const std::int32_t rank : wanted) {
    require(in[index].nbDims == rank, [&] {
      return "input " + std::to_string(index) + " of " + std::to_string(in[index].nbDims) + " axes: wanted " +
             std::to_string(rank);
    });
    ++index;
  }
}

class Attention final : public Operation {
 public:
  static constexpr const char* kName = "SegmenterAttention";

  explicit Attention(std::int64_t heads) : heads_(static_cast<std::int32_t>(heads)) {
    require(heads > 0 && heads <= std::numeric_limits<std::int16_t>::max(),
            [&] { return "attribute heads: " + std::to_string(heads) + ": wanted at least 1"; });
  }
  static std::shared_ptr<const Operation> make(const PluginFieldCollection& fields) {
    return std::make_shared<Attention>(integers(fields, "heads").front());
  }

  const char* name() const noexcept override { return kName; }
  std::int32_t inputs() const noexcept override { return 1; }
  std::vector<PluginField> fields() const override { return {field("heads", heads_)}; }

  DimsExprs output_shape(Exprs in, IExprBuilder& exprs) const override {
    ranks(in, {3});
    return exprs_of(
        {in[0].d[0], in[0].d[1], exprs.operation(DimensionOperation::kFLOOR_DIV, *in[0].d[2], *exprs.constant(3))});
  }

  Call call(Inputs in, const void* const* inputs, void* const* outputs) const override {
    const Dims& qkv = shape(in, 0, "qkv", {-1, -1, -1});
    require(qkv.d[2] > 0 && qkv.d[2] % (std::int64_t{3} * heads_) == 0, [&] {
      return "qkv " + text(qkv) + " and " + std::to_string(heads_) +
             " heads: wanted a width of 3 x heads x head dimension";
    });
    return AttentionCall{type_of(in), qkv.d[0],  qkv.d[1], heads_, qkv.d[2] / (std::int64_t{3} * heads_),
                         inputs[0],   outputs[0]};
  }

 private:
  const std::int32_t heads_;
};

class PatchEmbed final : public Operation {
 public:
  static constexpr const char* kName = "SegmenterPatchEmbed";

  static std::shared_ptr<const Operation> make(const PluginFieldCollection&) { return std::make_shared<PatchEmbed>(); }

  const char* name() const noexcept override { return kName; }
  std::int32_t inputs() const noexcept override { return 5; }
  std::vector<PluginField> fields() const override { return {}; }

  DimsExprs output_shape(Exprs in, IExprBuilder&) const override {
    ranks(in, {4, 4, 1, 3, 3});
    // position embeddings are at the image's grid already
    return exprs_of({in[0].d[0], in[3].d[1], in[1].d[0]});
  }

  Call call(Inputs in, const void* const* inputs, void* const* outputs) const override {
    const Dims& image = shape(in, 0, "image", {-1, 3, -1, -1});
    const Dims& weight = shape(in, 1, "weight", {-1, 3, -1, -1});
    const std::int64_t C = weight.d[0], P = weight.d[3], H = image.d[2], W = image.d[3];
    require(C > 0 && P > 0 && weight.d[2] == P, [&] { return "weight " + text(weight) + ": wanted [C, 3, P, P]"; });
    require(H > 0 && W > 0 && H % P == 0 && W % P == 0,
            [&] { return "image " + text(image) + ": wanted sides that are multiples of " + std::to_string(P); });
    require(3 * H * W < kMaxImageElements, [&] { return "image " + text(image) + ": too large; do it in windows"; });
    require(C % 16 == 0, [&] { return "weight " + text(weight) + ": wanted a width that is a multiple of 16"; });
    const Dims& tokens = shape(in, 4, "tokens", {1, -1, C});
    shape(in, 2, "bias", {C});
    shape(in, 3, "position", {1, tokens.d[1] + H / P * (W / P), C});
    return PatchEmbedCall{type_of(in), image.d[0], H / P,     W / P,     P,         C,         tokens.d[1],
                          inputs[0],   inputs[1],  inputs[2], inputs[3], inputs[4], outputs[0]};
  }
};

class MaskScores final : public Operation {
 public:
  static constexpr const char* kName = "SegmenterMaskScores";

  explicit MaskScores(float epsilon) : epsilon_(epsilon) {
    require(epsilon >= 0, [&] { return "attribute epsilon: " + std::to_string(epsilon) + ": wanted 0 or more"; });
  }
  static std::shared_ptr<const Operation> make(const PluginFieldCollection& fields) {
    return std::make_shared<MaskScores>(number(fields, "epsilon"));
  }

  const char* name() const noexcept override { return kName; }
  std::int32_t inputs() const noexcept override { return 4; }
  std::vector<PluginField> fields() const override { return {{"epsilon", &epsilon_, PluginFieldType::kFLOAT32, 1}}; }

  DimsExprs output_shape(Exprs in, IExprBuilder&) const override {
    ranks(in, {3, 3, 1, 1});
    return exprs_of({in[0].d[0], in[0].d[1], in[1].d[1]});
  }

  Call call(Inputs in, const void* const* inputs, void* const* outputs) const override {
    const Dims& patches = shape(in, 0, "patches", {-1, -1, -1});
    const Dims& classes = shape(in, 1, "classes", {patches.d[0], -1, patches.d[2]});
    const std::int64_t K = classes.d[1];
    require(K > 0 && patches.d[2] > 0, [&] {
      return "patches " + text(patches) + ", classes " + text(classes) + ": wanted at least 1 class and channel";
    });
    shape(in, 2, "weight", {K});
    shape(in, 3, "bias", {K});
    return MaskScoresCall{type_of(in), patches.d[0], patches.d[1], K,         patches.d[2], epsilon_,
                          inputs[0],   inputs[1],    inputs[2],    inputs[3], outputs[0]};
  }

 private:
  const float epsilon_;
};

class UpsampleArgmax final : public Operation {
 public:
  static constexpr const char* kName = "SegmenterUpsampleArgmax";

  UpsampleArgmax(std::array<std::int32_t, 2> size, std::array<std::int32_t, 2> crop) : size_(size), crop_(crop) {
    for (int axis = 0; axis < 2; ++axis) {
      require(size[axis] < 0 || crop[axis] <= size[axis], [&] {
        return "attribute crop " + std::to_string(crop[axis]) + ": wanted a part of " + std::to_string(size[axis]);
      });
      require(crop[axis] >= -1,
              [&] { return "attribute crop " + std::to_string(crop[axis]) + ": wanted pixels, or -1 for all"; });
    }
  }
  static std::shared_ptr<const Operation> make(const PluginFieldCollection& fields) {
    return std::make_shared<UpsampleArgmax>(pair(fields, "size"), pair(fields, "crop"));
  }

  const char* name() const noexcept override { return kName; }
  std::int32_t inputs() const noexcept override { return 1; }
  std::vector<PluginField> fields() const override { return {field("size", size_[0], 2), field("crop", crop_[0], 2)}; }
  // UINT8 is a type of TensorRT's inputs and outputs alone, which a cast must make of these
  DataType output_type(DataType) const override { return DataType::kINT32; }

  DimsExprs output_shape(Exprs in, IExprBuilder& exprs) const override {
    ranks(in, {4});
    const auto side = [&](int axis) -> const nvinfer1::IDimensionExpr* {
      if (crop_[axis] > 0) return exprs.constant(crop_[axis]);
      if (size_[axis] > 0) return exprs.constant(size_[axis]);
      return exprs.operation(DimensionOperation::kPROD, *in[0].d[1 + axis], *exprs.constant(-size_[axis]));
    };
    return exprs_of({in[0].d[0], side(0), side(1)});
  }

  Call call(Inputs in, const void* const* inputs, void* const* outputs) const override {
    const Dims& masks = shape(in, 0, "masks", {-1, -1, -1, -1});
    const std::int64_t h = masks.d[1], w = masks.d[2], K = masks.d[3];
    const std::int64_t H = size_[0] > 0 ? size_[0] : -size_[0] * h, W = size_[1] > 0 ? size_[1] : -size_[1] * w;
    const std::int64_t rows = crop_[0] > 0 ? crop_[0] : H, columns = crop_[1] > 0 ? crop_[1] : W;
    require(h > 0 && w > 0 && K > 0, [&] { return "masks " + text(masks) + ": wanted sides of at least 1"; });
    require(h * H < kMaxSides && w * W < kMaxSides, [&] {
      return "masks " + text(masks) + " to " + std::to_string(H) + "x" + std::to_string(W) +
             ": too large; do it in windows";
    });
    require(rows <= H && columns <= W, [&] {
      return "crop " + std::to_string(rows) + "x" + std::to_string(columns) + ": wanted a part of " +
             std::to_string(H) + "x" + std::to_string(W);
    });
    return UpsampleArgmaxCall{type_of(in), masks.d[0], h, w, K, H, W, rows, columns, inputs[0], outputs[0]};
  }

 private:
  const std::array<std::int32_t, 2> size_, crop_;
};

}  // namespace

const std::array<Maker, 4>& makers() {
  static const std::array<Maker, 4> all = {{
      {Attention::kName, {{"heads", PluginFieldType::kINT32, 1}}, Attention::make},
      {PatchEmbed::kName, {}, PatchEmbed::make},
      {MaskScores::kName, {{"epsilon", PluginFieldType::kFLOAT32, 1}}, MaskScores::make},
      {UpsampleArgmax::kName,
       {{"size", PluginFieldType::kINT32, 2}, {"crop", PluginFieldType::kINT32, 2}},
       UpsampleArgmax::make},
  }};
  return all;
}

}  // namespace segmenter_plugins
