#include "manifest_fields.h"

#include <algorithm>
#include <initializer_list>
#include <set>

#include "manifest_json.h"

namespace segmenter_trt {
namespace {

using nlohmann::json;

constexpr std::int64_t kLargestBatch = 1 << 16;
constexpr std::int64_t kLargestPatch = 1 << 10;
constexpr std::size_t kMostClasses = 1 << 15;
constexpr double kLargest = 1e6;  // of mean and std
constexpr double kSmallestStd = 1e-6;

constexpr const char* kRequired[] = {
    "artifact", "kind",  "engine",  "precision", "sha256",  "source",     "model",   "patch_size", "input",   "height",
    "width",    "batch", "outputs", "classes",   "palette", "preprocess", "command", "versions",   "machine", "format"};
constexpr const char* kOptional[] = {"plugins", "compute_capabilities", "details", "verification"};

// The readers of one value each throw what was wanted instead.
[[noreturn]] void want(const std::string& wanted) { throw Refused{wanted}; }

std::string count(std::size_t least, std::size_t most) {
  return std::to_string(least) + (least == most ? "" : " to " + std::to_string(most));
}

bool digit(char c) { return c >= '0' && c <= '9'; }
bool letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_'; }

// Below U+0020, and U+007F to U+009F, in UTF-8 that is known to be that.
bool has_control(const std::string& text) {
  for (std::size_t at = 0; at < text.size(); ++at) {
    const auto byte = static_cast<unsigned char>(text[at]);
    if (byte < 0x20 || byte == 0x7F) return true;
    if (byte == 0xC2 && static_cast<unsigned char>(text[at + 1]) < 0xA0) return true;
  }
  return false;
}

std::string text(const json& value, std::size_t least, std::size_t most) {
  const std::string* const found = value.get_ptr<const std::string*>();
  const auto begins = [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; };
  const auto characters = found == nullptr ? 0 : std::count_if(found->begin(), found->end(), begins);
  if (found == nullptr || static_cast<std::size_t>(characters) < least || static_cast<std::size_t>(characters) > most) {
    want("a string of " + count(least, most) + " characters");
  }
  if (has_control(*found)) want("a string without control characters");
  return *found;
}

std::string file_name(const json& value) {
  std::string name = text(value, 1, 255);
  if (name == "." || name == ".." || name.find_first_of("/\\") != std::string::npos) {
    want("the name of a file, without a folder");
  }
  return name;
}

std::string digest(const json& value) {
  std::string found = text(value, 64, 64);
  if (found.find_first_not_of("0123456789abcdef") != std::string::npos) want("64 hexadecimal digits in lower case");
  return found;
}

std::string plugin(const json& value) {
  std::string name = text(value, 1, 100);
  if (digit(name[0]) || !std::all_of(name.begin(), name.end(), [](char c) { return letter(c) || digit(c); })) {
    want("the name of an op");
  }
  return name;
}

std::string capability(const json& value) {
  std::string found = text(value, 1, 6);
  const std::string number = found.substr(0, found.size() - (found.back() == '+'));
  const std::size_t dot = number.find('.');
  const bool fits = (dot == 1 || dot == 2) && number.size() == dot + 2 && digit(number[0]) && digit(number[dot - 1]) &&
                    digit(number[dot + 1]);
  if (!fits) want("a compute capability, such as 9.0 or 8.0+");
  return found;
}

std::string one_of(const json& value, std::initializer_list<const char*> choices) {
  std::string listed;
  for (const char* choice : choices) {
    if (value == choice) return choice;
    listed += (listed.empty() ? "" : ", ") + std::string(choice);
  }
  want("one of " + listed);
}

std::int64_t whole(const json& value, std::int64_t least, std::int64_t most) {
  // one that is too large for int64 is unsigned, or a float
  const bool fits = value.is_number_unsigned() ? value.get<std::uint64_t>() <= static_cast<std::uint64_t>(most)
                                               : value.is_number_integer();
  if (!fits || value.get<std::int64_t>() < least || value.get<std::int64_t>() > most) {
    want("an integer from " + std::to_string(least) + " to " + std::to_string(most));
  }
  return value.get<std::int64_t>();
}

double number(const json& value, double least) {
  if (!value.is_number() || !(value.get<double>() >= least && value.get<double>() <= kLargest)) {
    want("a number from " + json(least).dump() + " to " + json(kLargest).dump());
  }
  return value.get<double>();
}

template <class One>
auto list(const json& value, std::size_t least, std::size_t most, const One& one) {
  if (!value.is_array() || value.size() < least || value.size() > most) want("a list of " + count(least, most));
  std::vector<decltype(one(value))> found;
  found.reserve(value.size());
  for (const json& item : value) found.push_back(one(item));
  return found;
}

template <class One>
std::vector<std::string> set(const json& value, std::size_t least, std::size_t most, const One& one) {
  auto found = list(value, least, most, one);
  if (std::set(found.begin(), found.end()).size() < found.size()) want("a list without the same twice");
  return found;
}

Range range(const json& value, std::int64_t most) {
  const auto three = list(value, 3, 3, [&](const json& one) { return whole(one, 1, most); });
  if (three[0] > three[1] || three[1] > three[2]) want("min <= opt <= max");
  return {three[0], three[1], three[2]};
}

std::map<std::string, std::string> texts(const json& value, std::size_t most, std::size_t longest) {
  if (!value.is_object() || value.size() > most) want("an object of at most " + std::to_string(most) + " strings");
  std::map<std::string, std::string> found;
  for (const auto& [name, one] : value.items()) found.emplace(text(name, 1, 100), text(one, 1, longest));
  return found;
}

std::array<std::uint8_t, 3> colour(const json& value) {
  const auto rgb = list(value, 3, 3, [](const json& one) { return static_cast<std::uint8_t>(whole(one, 0, 255)); });
  return {rgb[0], rgb[1], rgb[2]};
}

std::array<double, 3> channels(const json& value, double least) {
  const auto three = list(value, 3, 3, [&](const json& one) { return number(one, least); });
  return {three[0], three[1], three[2]};
}

// An object of two fields and no others.
bool holds_just(const json& value, const char* one, const char* other) {
  return value.is_object() && value.size() == 2 && value.contains(one) && value.contains(other);
}

Preprocess preprocess(const json& value) {
  if (!holds_just(value, "mean", "std")) want("an object of mean and std");
  return {channels(value["mean"], -kLargest), channels(value["std"], kSmallestStd)};
}

std::string details(const json& value) {
  if (!value.is_object()) want("an object");
  return value.dump();
}

std::optional<PluginLibrary> plugin_library(const json& details) {
  const auto found = details.find("plugin_library");
  if (found == details.end() || found->is_null()) return std::nullopt;
  if (!holds_just(*found, "name", "sha256")) want("plugin_library as an object of name and sha256");
  return PluginLibrary{file_name((*found)["name"]), digest((*found)["sha256"])};
}

std::string verification(const json& value) {
  if (!value.is_null() && !value.is_object()) want("an object");
  for (const auto& [name, verdict] : value.items()) {
    text(name, 1, 200);
    if (!verdict.is_object() || !verdict.contains("passed") || !verdict["passed"].is_boolean()) {
      want("null, or an object of verdicts, each an object that tells whether it passed");
    }
  }
  return value.dump();
}

void require_fields(const json& values) {
  // it comes first: fields of another format would be judged by the wrong rules
  const auto format = values.find("format");
  if (format == values.end() || !format->is_number_integer() || *format != kManifestFormat) {
    throw Refused{"manifest format " + (format == values.end() ? "None" : shown(*format)) + ", wanted " +
                  std::to_string(kManifestFormat)};
  }
  std::set<std::string> unknown;
  for (const auto& [name, value] : values.items()) unknown.insert(name);
  for (const char* const name : kRequired) {
    if (unknown.erase(name) == 0) throw Refused{"field " + std::string(name) + " is missing"};
  }
  for (const char* const name : kOptional) unknown.erase(name);
  if (!unknown.empty()) throw Refused{"unknown field " + shown(*unknown.begin())};
}

Manifest manifest_of(const json& values) {
  if (!values.is_object()) throw Refused{"wanted an object, got " + shown(values)};
  require_fields(values);
  // a field that is left out is its type's nothing
  const auto field = [&](const char* name, const auto& read) {
    const auto value = values.find(name);
    if (value == values.end()) return decltype(read(*value)){};
    try {
      return read(*value);
    } catch (const Refused& refused) {
      throw Refused{std::string(name) + " " + shown(*value) + ": wanted " + refused.why};
    }
  };
  const auto names = [](const json& value) { return text(value, 1, 200); };
  const auto choice = [](auto... choices) { return [=](const json& value) { return one_of(value, {choices...}); }; };
  const auto side = [](const json& value) { return range(value, kLargestImageSide); };
  Manifest read = {
      .artifact = field("artifact", file_name),
      .kind = field("kind", choice("onnx", "plan")) == "onnx" ? Kind::onnx : Kind::plan,
      .engine = field("engine", choice("any", "tensorrt", "tensorrt-rtx")),
      .precision = field("precision", choice("fp32", "fp16", "bf16", "int8", "fp8")),
      .sha256 = field("sha256", digest),
      .source = field("source", [](const json& value) { return texts(value, 16, 1000); }),
      .model = field("model", names),
      .patch_size = field("patch_size", [](const json& value) { return whole(value, 1, kLargestPatch); }),
      .input = field("input", choice("pixels", "normalized")) == "pixels" ? Input::pixels : Input::normalized,
      .height = field("height", side),
      .width = field("width", side),
      .batch = field("batch", [](const json& value) { return range(value, kLargestBatch); }),
      .outputs =
          field("outputs",
                [&](const json& value) { return set(value, 1, 4, choice("labels", "masks", "logits", "confidence")); }),
      .classes = field("classes", [&](const json& value) { return list(value, 1, kMostClasses, names); }),
      .palette = field("palette", [](const json& value) { return list(value, 1, kMostClasses, colour); }),
      .preprocess = field("preprocess", preprocess),
      .command = field("command", [](const json& value) { return text(value, 0, 8000); }),
      .versions = field("versions", [](const json& value) { return texts(value, 100, 200); }),
      .machine = field("machine", [](const json& value) { return text(value, 1, 500); }),
      .plugins = field("plugins", [](const json& value) { return set(value, 0, 100, plugin); }),
      .compute_capabilities =
          field("compute_capabilities", [](const json& value) { return set(value, 0, 100, capability); }),
      .details = field("details", details),
      .plugin_library = field("details", plugin_library),
      .verification = field("verification", verification),
  };
  if (read.details.empty()) read.details = "{}";
  if (read.verification.empty()) read.verification = "null";
  return read;
}

void check_together(const Manifest& manifest) {
  const std::string kind = manifest.kind == Kind::onnx ? "onnx" : "plan";
  if (!manifest.artifact.ends_with("." + kind)) {
    throw Refused{"artifact " + shown(manifest.artifact) + ": wanted a name that ends with ." + kind + ", its kind"};
  }
  if (manifest.kind == Kind::plan && manifest.engine == "any") {
    throw Refused{"engine any: wanted the one the plan was built for"};
  }
  if (manifest.palette.size() != manifest.classes.size()) {
    throw Refused{"palette of " + std::to_string(manifest.palette.size()) + " colours: wanted one for each class"};
  }
}

}  // namespace

Manifest read_fields(std::string_view text) {
  Manifest manifest = manifest_of(read_json(text));
  check_together(manifest);
  return manifest;
}

}  // namespace segmenter_trt
