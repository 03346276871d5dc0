#include "segmenter_trt/manifest.h"

#include <algorithm>
#include <optional>

#include "manifest_fields.h"
#include "manifest_json.h"
#include "regular_file.h"
#include "segmenter_trt/errors.h"

namespace segmenter_trt {

namespace fs = std::filesystem;

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
  try {
    return read_fields(text);
  } catch (const Refused& refused) {
    throw ManifestError(name + ": not a manifest of this release: " + refused.why + "; make the artifact again");
  }
}

Manifest read_manifest(const fs::path& artifact) {
  const fs::path path = manifest_path(artifact);
  std::optional<RegularFile> file = open_regular_file(path);
  if (!file) {
    throw ManifestError(artifact.string() + ": no manifest " + path.filename().string() +
                        " beside it; copy both files, or make them again");
  }
  // one more than may be tells that there is more
  std::string read(static_cast<std::size_t>(std::min<std::uintmax_t>(file->bytes, kMostManifestBytes + 1)), '\0');
  file->stream.read(read.data(), static_cast<std::streamsize>(read.size()));
  read.resize(static_cast<std::size_t>(file->stream.gcount()));
  Manifest manifest = parse_manifest(read, path.string());
  if (manifest.artifact != artifact.filename().string()) {
    throw ManifestError(path.string() + ": is the manifest of " + manifest.artifact +
                        "; give both files their names back, or make them again");
  }
  return manifest;
}

}  // namespace segmenter_trt
