#include "verified.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <nlohmann/json.hpp>
#include <span>
#include <utility>
#include <vector>

#include "sha256.h"

namespace segmenter_trt {
namespace {

using nlohmann::json;

constexpr const char* kOfGraph = "graph:";  // begins the names of verdicts on the graph a plan was built from
constexpr std::size_t kLongest = 200;       // of what is quoted of a verdict
// 8-bit products summed in 32 bits, as segmenter/cpu.py names them
constexpr const char* kExactInt8[] = {"avx_vnni", "avx512_vnni", "amx_int8"};

// A text of a verdict, which may hold anything; empty where there is none.
std::string text(const json& verdict, const char* name) {
  const auto found = verdict.find(name);
  return found != verdict.end() && found->is_string() ? found->get<std::string>() : std::string();
}

bool passed(const json& verdict) { return verdict["passed"].get<bool>(); }

// In printable ASCII and short: it comes from a file.
std::string printable(std::string told) {
  for (char& letter : told) {
    if (letter < ' ' || letter > '~') letter = '?';
  }
  return told.substr(0, kLongest);
}

// What failed.
std::string faults(const std::vector<json>& verdicts) {
  std::string told;
  for (const json& verdict : verdicts) {
    const auto found = verdict.find("faults");
    if (found == verdict.end() || !found->is_array()) continue;
    for (const json& fault : *found) {
      if (fault.is_string()) told += (told.empty() ? "" : "; ") + fault.get<std::string>();
    }
  }
  return told.empty() ? "it does not tell why" : printable(std::move(told));
}

// Parted by spaces: "16 56 160".
std::string line(const Range& range) {
  return std::to_string(range.min) + " " + std::to_string(range.opt) + " " + std::to_string(range.max);
}

std::string line(const std::vector<std::string>& names) {
  std::string joined;
  for (const std::string& name : names) joined += (joined.empty() ? "" : " ") + name;
  return joined;
}

// Doubles as 16 hexadecimal digits each.
std::string line(const std::array<double, 3>& numbers) {
  constexpr const char* kDigits = "0123456789abcdef";
  std::string joined;
  for (const double number : numbers) {
    if (!joined.empty()) joined += ' ';
    const auto bits = std::bit_cast<std::uint64_t>(number);
    for (int shift = 60; shift >= 0; shift -= 4) joined += kDigits[bits >> shift & 15];
  }
  return joined;
}

}  // namespace

std::string facts_digest(const Manifest& manifest) {
  std::string text = manifest.precision;
  for (const std::string& next :
       {std::string(manifest.input == Input::pixels ? "pixels" : "normalized"), std::to_string(manifest.patch_size),
        line(manifest.height), line(manifest.width), line(manifest.batch), line(manifest.outputs),
        line(manifest.plugins), manifest.plugin_library ? manifest.plugin_library->sha256 : std::string(),
        line(manifest.preprocess.mean), line(manifest.preprocess.std)}) {
    text += "\n" + next;
  }
  for (const std::string& name : manifest.classes) text += "\n" + name;
  return sha256(std::as_bytes(std::span(text)));
}

std::string unverified(const Manifest& manifest, const std::string& engine, const std::string& device) {
  const json found = json::parse(manifest.verification);
  const auto own = found.find(engine);
  if (own != found.end() && text(*own, "sha256") == manifest.sha256) {
    if (!passed(*own)) return "failed its verification in " + engine + ": " + faults({*own});
    if (text(*own, "facts_sha256") != facts_digest(manifest)) {
      return "verified in " + engine +
             " by an older release, or before what its manifest says of classes, preprocessing or sizes was changed";
    }
    const std::string on = text(*own, "device");
    if (device.empty() || manifest.kind != Kind::plan || on == device) return "";
    return "verified in " + engine + " on " + (on.empty() ? "another GPU" : printable(on)) + ", not on this " + device;
  }
  std::vector<json> graph;
  bool failed = false, of_this = true;
  const auto source = manifest.source.find("onnx");
  for (const auto& [name, verdict] : found.items()) {
    if (!name.starts_with(kOfGraph)) continue;
    graph.push_back(verdict);
    failed |= !passed(verdict);
    of_this &= source != manifest.source.end() && source->second == "sha256:" + text(verdict, "sha256");
  }
  if (failed) return "the graph it was built from failed its verification: " + faults(graph);
  if (!graph.empty() && of_this) return "verified only as the graph it was built from, not in " + engine;
  return "not verified in " + engine;
}

bool passed_saturating(const Manifest& manifest, const std::string& engine) {
  if (!unverified(manifest, engine).empty()) return false;
  const json verdict = json::parse(manifest.verification)[engine];
  const auto flags = verdict.find("cpu_flags");
  if (flags == verdict.end() || !flags->is_array()) return false;
  const auto has = [&flags](const char* name) { return std::find(flags->begin(), flags->end(), name) != flags->end(); };
  return has("avx2") && std::none_of(std::begin(kExactInt8), std::end(kExactInt8), has);
}

}  // namespace segmenter_trt
