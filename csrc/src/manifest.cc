#include "segmenter_trt/manifest.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <initializer_list>
#include <nlohmann/json.hpp>

#include "segmenter_trt/errors.h"

namespace segmenter_trt {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr std::uintmax_t kLargestManifest = std::uintmax_t{16} << 20;
constexpr int kDeepest = 32;  // what is written is 4 deep; readers of deeper ones would need a deeper stack
constexpr std::int64_t kLargestSide = 1 << 23;
constexpr std::int64_t kLargestBatch = 1 << 16;
constexpr std::int64_t kLargestPatch = 1 << 10;
constexpr std::size_t kMostClasses = 32768;

// Why a text is no manifest; its reader adds which.
struct Refused {
  std::string why;
};

[[noreturn]] void refuse(const char* field, const std::string& wanted) {
  throw Refused{std::string(field) + ": wanted " + wanted};
}

json read_json(std::string_view text) {
  const auto shallow = [](int depth, json::parse_event_t, json&) {
    if (depth > kDeepest) throw Refused{"nested deeper than " + std::to_string(kDeepest) + " levels"};
    return true;
  };
  return json::parse(text, shallow);
}

const json& member(const json& object, const char* field) {
  const auto found = object.find(field);
  if (found == object.end()) throw Refused{"no field " + std::string(field)};
  return *found;
}

std::string text(const json& object, const char* field) {
  const json& value = member(object, field);
  if (!value.is_string()) refuse(field, "a text");
  return value.get<std::string>();
}

std::string one_of(const json& object, const char* field, std::initializer_list<const char*> choices) {
  std::string value = text(object, field);
  std::string listed;
  for (const char* choice : choices) {
    if (value == choice) return value;
    listed += (listed.empty() ? "" : ", ") + std::string(choice);
  }
  refuse(field, "one of " + listed);
}

bool whole_number(const json& value, std::int64_t least, std::int64_t most, std::int64_t& number) {
  if (!value.is_number_integer()) return false;
  // one that is too large for int64 is unsigned
  if (value.is_number_unsigned() && value.get<std::uint64_t>() > static_cast<std::uint64_t>(most)) return false;
  number = value.get<std::int64_t>();
  return least <= number && number <= most;
}

Range range(const json& object, const char* field, std::int64_t most) {
  const json& value = member(object, field);
  Range read = {};
  const bool whole = value.is_array() && value.size() == 3 && whole_number(value[0], 1, most, read.min) &&
                     whole_number(value[1], 1, most, read.opt) && whole_number(value[2], 1, most, read.max);
  if (!whole || read.min > read.opt || read.opt > read.max) {
    refuse(field, "[min, opt, max], whole numbers in ascending order from 1 to " + std::to_string(most));
  }
  return read;
}

std::vector<std::string> texts(const json& object, const char* field) {
  const json& value = member(object, field);
  if (!value.is_array() || !std::all_of(value.begin(), value.end(), [](const json& x) { return x.is_string(); })) {
    refuse(field, "a list of texts");
  }
  return value.get<std::vector<std::string>>();
}

std::map<std::string, std::string> text_map(const json& object, const char* field) {
  const json& value = member(object, field);
  if (!value.is_object() || !std::all_of(value.begin(), value.end(), [](const json& x) { return x.is_string(); })) {
    refuse(field, "texts by name");
  }
  return value.get<std::map<std::string, std::string>>();
}

std::vector<std::array<std::uint8_t, 3>> colours(const json& object, const char* field, std::size_t count) {
  const json& value = member(object, field);
  if (!value.is_array() || value.size() != count) refuse(field, "one colour a class");
  std::vector<std::array<std::uint8_t, 3>> read;
  read.reserve(count);
  for (const json& colour : value) {
    std::array<std::int64_t, 3> rgb = {};
    const bool whole = colour.is_array() && colour.size() == 3 && whole_number(colour[0], 0, 255, rgb[0]) &&
                       whole_number(colour[1], 0, 255, rgb[1]) && whole_number(colour[2], 0, 255, rgb[2]);
    if (!whole) refuse(field, "[R, G, B] from 0 to 255 for each class");
    read.push_back(
        {static_cast<std::uint8_t>(rgb[0]), static_cast<std::uint8_t>(rgb[1]), static_cast<std::uint8_t>(rgb[2])});
  }
  return read;
}

std::array<double, 3> channels(const json& object, const char* field) {
  const json& value = member(object, field);
  const auto finite = [](const json& x) { return x.is_number() && std::isfinite(x.get<double>()); };
  if (!value.is_array() || value.size() != 3 || !std::all_of(value.begin(), value.end(), finite)) {
    refuse(field, "three numbers");
  }
  return value.get<std::array<double, 3>>();
}

Preprocess preprocess(const json& object, const char* field) {
  const json& value = member(object, field);
  if (!value.is_object()) refuse(field, "{mean, std}");
  const Preprocess read = {channels(value, "mean"), channels(value, "std")};
  const Affine computed = affine(read);
  for (std::size_t c = 0; c < 3; ++c) {
    if (!(read.std[c] > 0) || !std::isfinite(computed.scale[c]) || !std::isfinite(computed.shift[c])) {
      refuse(field, "std above 0, and a preprocessing that float32 holds");
    }
  }
  return read;
}

std::string digest(const json& object, const char* field) {
  std::string value = text(object, field);
  if (value.size() != 64 || value.find_first_not_of("0123456789abcdef") != std::string::npos) {
    refuse(field, "64 hexadecimal digits");
  }
  return value;
}

Manifest manifest_of(const json& values) {
  if (!values.is_object()) throw Refused{"wanted an object"};
  std::vector<std::string> classes = texts(values, "classes");
  if (classes.empty() || classes.size() > kMostClasses) {
    refuse("classes", "from 1 to " + std::to_string(kMostClasses) + " names");
  }
  auto palette = colours(values, "palette", classes.size());
  std::int64_t patch_size = 0;
  if (!whole_number(member(values, "patch_size"), 1, kLargestPatch, patch_size)) {
    refuse("patch_size", "a whole number from 1 to " + std::to_string(kLargestPatch));
  }
  return {
      .artifact = text(values, "artifact"),
      .kind = one_of(values, "kind", {"onnx", "plan"}) == "onnx" ? Kind::onnx : Kind::plan,
      .engine = one_of(values, "engine", {"any", "tensorrt", "tensorrt-rtx"}),
      .precision = one_of(values, "precision", {"fp32", "fp16", "bf16", "int8", "fp8"}),
      .sha256 = digest(values, "sha256"),
      .source = text_map(values, "source"),
      .model = text(values, "model"),
      .patch_size = patch_size,
      .input = one_of(values, "input", {"pixels", "normalized"}) == "pixels" ? Input::pixels : Input::normalized,
      .height = range(values, "height", kLargestSide),
      .width = range(values, "width", kLargestSide),
      .batch = range(values, "batch", kLargestBatch),
      .outputs = texts(values, "outputs"),
      .classes = std::move(classes),
      .palette = std::move(palette),
      .preprocess = preprocess(values, "preprocess"),
      .command = text(values, "command"),
      .versions = text_map(values, "versions"),
      .machine = text(values, "machine"),
      .plugins = texts(values, "plugins"),
      .compute_capabilities = texts(values, "compute_capabilities"),
      .details = member(values, "details").dump(),
      .verification = member(values, "verification").dump(),
  };
}

// The format comes first: fields of another one would be judged by the wrong rules.
void require_format(const json& values, const std::string& name) {
  const auto found = values.find("format");
  if (!values.is_object() || found == values.end() || *found != kManifestFormat) {
    const std::string format = values.is_object() && found != values.end() && found->is_number_integer()
                                   ? std::to_string(found->get<std::int64_t>())
                                   : "None";
    throw ManifestError(name + ": manifest format " + format + ", wanted " + std::to_string(kManifestFormat) +
                        "; make the artifact again");
  }
}

}  // namespace

Affine affine(const Preprocess& preprocess) noexcept {
  Affine computed = {};
  for (std::size_t c = 0; c < 3; ++c) {
    computed.scale[c] = static_cast<float>(1.0 / (255.0 * preprocess.std[c]));
    computed.shift[c] = static_cast<float>(-preprocess.mean[c] / preprocess.std[c]);
  }
  return computed;
}

bool Manifest::gives(std::string_view output) const noexcept {
  return std::find(outputs.begin(), outputs.end(), output) != outputs.end();
}

fs::path manifest_path(const fs::path& artifact) {
  fs::path path = artifact;
  return path += ".json";
}

Manifest parse_manifest(std::string_view text, const std::string& name) {
  std::string why;
  try {
    const json values = read_json(text);
    require_format(values, name);
    return manifest_of(values);
  } catch (const Refused& refused) {
    why = refused.why;
  } catch (const json::exception& error) {
    why = std::string(error.what()).substr(0, 200);
    // what it quotes of the text may hold anything
    std::replace_if(
        why.begin(), why.end(), [](char c) { return c < ' ' || c > '~'; }, '?');
  }
  throw ManifestError(name + ": not a manifest (" + why + "); make the artifact again");
}

Manifest read_manifest(const fs::path& artifact) {
  const fs::path path = manifest_path(artifact);
  std::error_code missing;
  const std::uintmax_t bytes = fs::file_size(path, missing);
  std::ifstream file(path, std::ios::binary);
  if (missing || !file) {
    throw ManifestError(artifact.string() + ": no manifest " + path.filename().string() +
                        " beside it; copy both files, or make them again");
  }
  if (bytes > kLargestManifest) {
    throw ManifestError(path.string() + ": not a manifest (" + std::to_string(bytes) +
                        " bytes); make the artifact again");
  }
  std::string read(static_cast<std::size_t>(bytes), '\0');
  file.read(read.data(), static_cast<std::streamsize>(read.size()));
  read.resize(static_cast<std::size_t>(file.gcount()));
  return parse_manifest(read, path.string());
}

}  // namespace segmenter_trt
