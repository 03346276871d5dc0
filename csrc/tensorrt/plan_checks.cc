#include "plan_checks.h"

#include <algorithm>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <fstream>
#include <iterator>
#include <optional>
#include <string_view>

#include "rebuild.h"
#include "segmenter_trt/errors.h"
#include "sha256.h"

namespace segmenter_trt::tensorrt {
namespace {

namespace fs = std::filesystem;
using Numbers = std::vector<std::uint64_t>;

constexpr std::size_t kHeaderBytes = 32;
constexpr std::size_t kNumbers = 4;  // of a version: major, minor, patch, build

struct Header {
  std::string engine;
  std::optional<Numbers> version;       // each modulo 256; none in a layout that is not known
  std::optional<std::uint64_t> length;  // bytes of the whole file; none where that is not known to be told
};

std::optional<Header> read_header(std::span<const std::byte> plan) {
  if (plan.size() < kHeaderBytes) return std::nullopt;
  const std::string_view text(reinterpret_cast<const char*>(plan.data()), kHeaderBytes);
  const auto byte = [&](std::size_t at) { return static_cast<std::uint64_t>(plan[at]); };
  Header header;
  if (text.starts_with("vtrt")) {
    header.engine = "tensorrt-rtx";
  } else if (text.starts_with("ftrt")) {
    header.engine = "tensorrt";
  } else {
    return std::nullopt;
  }
  if (byte(4) != 0 || byte(5) != 0 || byte(6) != 0 || byte(7) != 0) return header;
  header.version = Numbers{byte(24), byte(25), byte(26), byte(27)};
  if (header.engine == "tensorrt-rtx") {
    header.length = 0;
    for (std::size_t at = 24; at > 16; --at) header.length = *header.length << 8 | byte(at - 1);  // little endian
  }
  return header;
}

// The leading numbers of a version, at most four: 10.14.1.48.post1 -> 10, 14, 1, 48; none of what begins otherwise.
Numbers numbers(std::string_view version) {
  Numbers found;
  const char* at = version.data();
  const char* const end = at + version.size();
  while (found.size() < kNumbers) {
    std::uint64_t number = 0;
    const auto [after, fault] = std::from_chars(at, end, number);
    if (fault == std::errc::result_out_of_range) return {};
    if (fault != std::errc()) break;
    found.push_back(number);
    at = after;
    if (at == end || *at++ != '.') break;
  }
  return found;
}

// Whether two versions are one, by the numbers that both tell, at least three: TensorRT's Python module leaves the
// fourth out up to 10.7.
bool agree(const Numbers& one, const Numbers& other) {
  const std::size_t told = std::min(one.size(), other.size());
  return told >= 3 && std::equal(one.begin(), one.begin() + static_cast<std::ptrdiff_t>(told), other.begin());
}

std::string text(const Numbers& version) {
  std::vector<std::string> parts;
  for (const std::uint64_t number : version) parts.push_back(std::to_string(number));
  return joined(parts, ".");
}

std::string digest_of(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  const std::string bytes((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  return sha256(std::as_bytes(std::span(bytes)));
}

}  // namespace

std::string joined(const std::vector<std::string>& parts, const char* between) {
  std::string text;
  for (const std::string& part : parts) text += (text.empty() ? "" : between) + part;
  return text;
}

void require_version(const Manifest& manifest, const std::string& artifact, std::span<const std::byte> plan,
                     const std::string& engine, const std::string& version) {
  const std::string again = "; " + rebuild_advice(manifest, artifact);
  const auto found = manifest.versions.find(engine);
  const std::string told = found == manifest.versions.end() ? "of a version its manifest does not tell" : found->second;
  const Numbers built = numbers(told);
  Numbers here = numbers(version);
  if (!agree(built, here)) {
    throw ArtifactError(artifact + ": built with " + engine + " " + told + ", this is " + version +
                        "; install that version, or " + rebuild_advice(manifest, artifact));
  }
  const std::optional<Header> header = read_header(plan);
  if (!header || header->engine != engine) {
    const std::string begins = header ? "one of " + header->engine + " does" : "no plan does";
    throw ArtifactError(artifact + ": begins as " + begins + ", wanted one of " + engine + again);
  }
  if (header->length && *header->length != plan.size()) {
    throw ArtifactError(artifact + ": has " + std::to_string(plan.size()) + " bytes, its own header says " +
                        std::to_string(*header->length) + again);
  }
  for (std::uint64_t& number : here) number %= 256;
  if (header->version && !agree(*header->version, here)) {
    throw ArtifactError(artifact + ": its own header says " + engine + " " + text(*header->version) +
                        " wrote it, this is " + version + again);
  }
}

void require_plugin_library(const Manifest& manifest, const std::string& artifact, const fs::path& library) {
  const std::string names = joined(manifest.plugins), again = rebuild_advice(manifest, artifact);
  if (!manifest.plugin_library) {
    throw ArtifactError(manifest_path(artifact).string() +
                        ": vouches for no plugin library where the plan needs one (" + names + "); " + again);
  }
  const auto& [name, wanted] = *manifest.plugin_library;
  std::error_code missing;
  if (library.empty() || !fs::is_regular_file(library, missing)) {
    throw Unavailable(artifact + ": needs the plugin library " + name + " (" + names + "), which is not here (" +
                      (library.empty() ? "none was found" : library.string()) +
                      "); install segmenter-trt with its plugins, name the library in SEGMENTER_TRT_PLUGINS, or " +
                      again);
  }
  if (const std::string found = digest_of(library); found != wanted) {
    throw ArtifactError(artifact + ": built with plugin library " + name + " of SHA-256 " + wanted + ", " +
                        library.string() + " has " + found + "; install that one, or " + again);
  }
}

}  // namespace segmenter_trt::tensorrt
