// The JSON beside every artifact: what it is, what it takes, and what its labels mean.
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace segmenter_trt {

inline constexpr int kManifestFormat = 2;
inline constexpr std::int64_t kLargestImageSide = 1 << 16;  // of images, in pixels

enum class Kind { onnx, plan };

enum class Input {
  pixels,      // uint8 [B, H, W, 3]: the preprocessing is in the graph
  normalized,  // float32 [B, 3, H, W], as `normalize` makes it
};

// What a dimension may be; three times the same for a fixed one.
struct Range {
  std::int64_t min, opt, max;

  bool fixed() const noexcept { return min == max; }
  bool holds(std::int64_t value) const noexcept { return min <= value && value <= max; }
};

struct Preprocess {
  std::array<double, 3> mean, std;  // of colours from 0 to 1, in the order R, G, B
};

// The preprocessing as `normalize` takes it.
struct Affine {
  std::array<float, 3> scale, shift;
};

// scale = 1 / (255 std), shift = -mean / std, each rounded to float32 once.
Affine affine(const Preprocess& preprocess) noexcept;

// The library of TensorRT plugins a plan was built with.
struct PluginLibrary {
  std::string name;    // of the file, without a folder
  std::string sha256;  // in hexadecimal
};

struct Manifest {
  std::string artifact;  // file name, in the same folder
  Kind kind;
  std::string engine;     // the runtime it was made for: any, tensorrt, tensorrt-rtx
  std::string precision;  // fp32, fp16, bf16, int8 or fp8
  std::string sha256;     // of the artifact, in hexadecimal
  std::map<std::string, std::string> source;
  std::string model;
  std::int64_t patch_size;
  Input input;
  Range height, width, batch;
  std::vector<std::string> outputs;  // of: labels, masks, logits, confidence
  std::vector<std::string> classes;
  std::vector<std::array<std::uint8_t, 3>> palette;  // R, G, B of each class
  Preprocess preprocess;
  std::string command;
  std::map<std::string, std::string> versions;
  std::string machine;
  std::vector<std::string> plugins;               // custom ops its runtime must bring
  std::vector<std::string> compute_capabilities;  // of the GPUs a plan runs on: "9.0" that alone, "8.0+" and later ones
  std::string details;                            // JSON: an object
  std::optional<PluginLibrary> plugin_library;    // of details
  std::string verification;                       // JSON; "null" before `segmenter verify` has seen it

  bool gives(std::string_view output) const noexcept;
  std::int64_t K() const noexcept { return static_cast<std::int64_t>(classes.size()); }
};

// `X.onnx.json` of `X.onnx`.
std::filesystem::path manifest_path(const std::filesystem::path& artifact);

// `name` is what messages call the text, usually its path. Throws ManifestError for whatever breaks a rule
// of format 2, which engines/segmenter_engines/manifest.py states.
Manifest parse_manifest(std::string_view json, const std::string& name);

// The manifest beside an artifact, whose file is not looked at. Throws ManifestError as parse_manifest does, when there
// is none, and when it is another artifact's.
Manifest read_manifest(const std::filesystem::path& artifact);

}  // namespace segmenter_trt
