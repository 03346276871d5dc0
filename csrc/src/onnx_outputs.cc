#include "onnx_outputs.h"

#include <cstdint>

#include "segmenter_trt/errors.h"

namespace segmenter_trt {
namespace {

// Field numbers of onnx.proto and the protocol buffers' wire types.
constexpr std::uint64_t kModelGraph = 7;
constexpr std::uint64_t kGraphOutput = 12;
constexpr std::uint64_t kValueName = 1;
enum WireType : std::uint64_t { varint = 0, eight_bytes = 1, length = 2, four_bytes = 5 };

[[noreturn]] void refuse(const std::string& why) { throw ArtifactError("not a serialized ONNX model (" + why + ")"); }

struct Field {
  std::uint64_t number;
  WireType type;
  std::string_view whole;    // with its tag
  std::string_view content;  // of a field with a length: what comes after it
};

// The fields of one message, in order.
class Fields {
 public:
  explicit Fields(std::string_view message) : rest_(message) {}

  bool next(Field& field) {
    if (rest_.empty()) return false;
    const std::string_view start = rest_;
    const std::uint64_t tag = read_varint();
    field.number = tag >> 3;
    field.type = static_cast<WireType>(tag & 7);
    field.content = {};
    switch (field.type) {
      case WireType::varint:
        read_varint();
        break;
      case WireType::eight_bytes:
        take(8);
        break;
      case WireType::length:
        field.content = take(read_varint());
        break;
      case WireType::four_bytes:
        take(4);
        break;
      default:
        refuse("a field of wire type " + std::to_string(tag & 7));
    }
    field.whole = start.substr(0, start.size() - rest_.size());
    return true;
  }

 private:
  std::string_view take(std::uint64_t count) {
    if (count > rest_.size()) refuse("a field that ends past the end");
    const std::string_view taken = rest_.substr(0, count);
    rest_.remove_prefix(count);
    return taken;
  }

  std::uint64_t read_varint() {
    std::uint64_t value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      const auto byte = static_cast<std::uint8_t>(take(1)[0]);
      value |= std::uint64_t{byte & 0x7fu} << shift;
      if (byte < 0x80) return value;
    }
    refuse("a number of more than 10 bytes");
  }

  std::string_view rest_;
};

void append_varint(std::string& to, std::uint64_t value) {
  for (; value >= 0x80; value >>= 7) to += static_cast<char>(value | 0x80);
  to += static_cast<char>(value);
}

std::string_view name_of(std::string_view value_info) {
  std::string_view name;
  Field field;
  for (Fields fields(value_info); fields.next(field);) {
    if (field.number == kValueName && field.type == WireType::length) name = field.content;
  }
  return name;
}

bool is_output(const Field& field) { return field.number == kGraphOutput && field.type == WireType::length; }

}  // namespace

std::string keep_output(std::string_view model, std::string_view kept) {
  Field graph = {};
  Field field;
  for (Fields fields(model); fields.next(field);) {
    if (field.number != kModelGraph || field.type != WireType::length) continue;
    // a second one would be merged into the first by a reader, outputs included
    if (!graph.whole.empty()) refuse("two graphs");
    graph = field;
  }
  if (graph.whole.empty()) refuse("no graph");

  std::uint64_t dropped_bytes = 0;
  int found = 0;
  for (Fields fields(graph.content); fields.next(field);) {
    if (!is_output(field)) continue;
    if (name_of(field.content) == kept) {
      ++found;
    } else {
      dropped_bytes += field.whole.size();
    }
  }
  if (found != 1) {
    throw ArtifactError("the graph has " + std::to_string(found) + " outputs named " + std::string(kept) +
                        ", wanted one; export it again");
  }

  std::string cut;
  cut.reserve(model.size());
  const auto before = static_cast<std::size_t>(graph.whole.data() - model.data());
  cut += model.substr(0, before);
  append_varint(cut, kModelGraph << 3 | WireType::length);
  append_varint(cut, graph.content.size() - dropped_bytes);
  for (Fields fields(graph.content); fields.next(field);) {
    if (!is_output(field) || name_of(field.content) == kept) cut += field.whole;
  }
  cut += model.substr(before + graph.whole.size());
  return cut;
}

}  // namespace segmenter_trt
