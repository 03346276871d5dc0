// Files as they are on a disk, and not what only has a file's name.
#pragma once

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <optional>
#include <system_error>
#include <utility>

namespace segmenter_trt {

struct RegularFile {
  std::ifstream stream;
  std::uintmax_t bytes;
};

// None where there is no file, where it cannot be opened, and for a pipe: opening one would wait for who writes to it.
inline std::optional<RegularFile> open_regular_file(const std::filesystem::path& path) {
  std::error_code missing;
  if (!std::filesystem::is_regular_file(path, missing)) return std::nullopt;
  const std::uintmax_t bytes = std::filesystem::file_size(path, missing);
  std::ifstream stream(path, std::ios::binary);
  if (missing || !stream.is_open()) return std::nullopt;
  return RegularFile{std::move(stream), bytes};
}

}  // namespace segmenter_trt
