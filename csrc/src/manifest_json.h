// The JSON of a manifest, as strictly as Python's reader takes it.
#pragma once

#include <cstddef>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace segmenter_trt {

inline constexpr std::size_t kMostManifestBytes = std::size_t{4} << 20;

// Why a text is no manifest; its reader adds which.
struct Refused {
  std::string why;
};

// Throws Refused for what is no JSON in UTF-8, for a byte order mark, more than 4 MiB, a name twice in an object, more
// than 32 lists and objects within each other, a number beyond a double, and a lone surrogate.
nlohmann::json read_json(std::string_view text);

// A value as an error shows it: ASCII, one line, short.
std::string shown(const nlohmann::json& value);

}  // namespace segmenter_trt
