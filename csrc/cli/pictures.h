// Pictures and labels as files.
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace segmenter_trt::cli {

// Of one picture; Pillow's own limit, which the Python commands keep.
inline constexpr std::int64_t kMostPixels = 89'478'485;

// A picture that cannot be read, in one line.
class PictureError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Ends what is told of a file that cannot be decoded.
inline constexpr const char* kNextStep = "; convert it again, or replace it if it is damaged";

struct Picture {
  std::int64_t H = 0, W = 0;
  std::vector<std::uint8_t> pixels;  // [H, W, 3], R, G, B
};

struct Labels {
  std::int64_t H = 0, W = 0;
  std::vector<std::int16_t> classes;  // [H, W]
};

using Bytes = std::vector<std::uint8_t>;
using Palette = std::span<const std::array<std::uint8_t, 3>>;

// "png, jpeg, ppm, pgm": what this build reads, told by content.
std::string formats();
// Of the files written: .png, or .pgm and .ppm where there is no libpng.
std::string_view label_suffix() noexcept;
std::string_view picture_suffix() noexcept;

// Told by how they start, whatever this build reads.
bool is_png(const Bytes& file) noexcept;
bool is_jpeg(const Bytes& file) noexcept;

// The pictures of a folder (not below it) by their names' ends, sorted, those this build does not read too: each is
// refused for its own reason. Or the one file named.
// Throws PictureError when there is none.
std::vector<std::filesystem::path> find_pictures(const std::filesystem::path& path);

// 8 bits a channel, grey made RGB. Throws PictureError for whatever else a file holds, and for one that is cut short.
Picture read_picture(const std::filesystem::path& path);

// Atomically. Labels as class indices: palette colours up to 256 classes, 16-bit grey above.
void write_picture(const std::filesystem::path& path, const Picture& picture);
void write_labels(const std::filesystem::path& path, const Labels& labels, Palette palette);

// Sides a file claims, before memory is asked for. Throws PictureError.
void require_sides(std::int64_t H, std::int64_t W);

// One file each; all throw PictureError.
bool is_netpbm(const Bytes& file) noexcept;
Picture read_netpbm(const Bytes& file);
Bytes netpbm_of(const Picture& picture);
Bytes netpbm_of(const Labels& labels, std::size_t classes);
Picture read_png(const Bytes& file);
Bytes png_of(const Picture& picture);
Bytes png_of(const Labels& labels, Palette palette);
Picture read_jpeg(const Bytes& file);

}  // namespace segmenter_trt::cli
