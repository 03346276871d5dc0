#include "pictures.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <fstream>
#include <map>
#include <random>
#include <system_error>

namespace segmenter_trt::cli {
namespace {

namespace fs = std::filesystem;

constexpr std::uintmax_t kMostBytes = std::uintmax_t{1} << 30;  // of one file
constexpr std::int64_t kLongestSide = std::int64_t{1} << 24;

#ifdef SEGMENTER_TRT_HAVE_PNG
constexpr bool kPng = true;
#else
constexpr bool kPng = false;
#endif
#ifdef SEGMENTER_TRT_HAVE_JPEG
constexpr bool kJpeg = true;
#else
constexpr bool kJpeg = false;
#endif

bool named_as_picture(const fs::path& path) {
  std::string suffix = path.extension().string();
  std::transform(suffix.begin(), suffix.end(), suffix.begin(),
                 [](char letter) { return static_cast<char>(std::tolower(static_cast<unsigned char>(letter))); });
  return suffix == ".ppm" || suffix == ".pgm" || suffix == ".png" || suffix == ".jpg" || suffix == ".jpeg";
}

Bytes read_file(const fs::path& path) {
  std::error_code fault;
  const std::uintmax_t size = fs::is_regular_file(path, fault) ? fs::file_size(path, fault) : 0;
  if (fault || !fs::is_regular_file(path, fault)) throw PictureError("no such file; check the path");
  if (size > kMostBytes) throw PictureError("it has " + std::to_string(size) + " bytes; wanted at most 1 GiB");
  Bytes file(size);
  std::ifstream stream(path, std::ios::binary);
  stream.read(reinterpret_cast<char*>(file.data()), static_cast<std::streamsize>(size));
  if (!stream || static_cast<std::uintmax_t>(stream.gcount()) != size) {
    throw PictureError("it cannot be read; check its permissions");
  }
  return file;
}

Picture decode(const Bytes& file) {
  if (is_netpbm(file)) return read_netpbm(file);
#ifdef SEGMENTER_TRT_HAVE_PNG
  if (is_png(file)) return read_png(file);
#endif
#ifdef SEGMENTER_TRT_HAVE_JPEG
  if (is_jpeg(file)) return read_jpeg(file);
#endif
  if (is_png(file) || is_jpeg(file)) {
    const std::string library = is_png(file) ? "libpng" : "libjpeg";
    throw PictureError("this segmenter_trt_cli was built without " + library + ", which reads it; install " + library +
                       "-dev and build it again, or convert the picture to ppm");
  }
  throw PictureError("not of a format this build reads (" + formats() + "); convert it");
}

// A new file in a folder, nobody else's: of who writes there from containers, numbers of processes tell nothing apart.
fs::path temporary_in(const fs::path& folder) {
  std::random_device random;
  for (;;) {
    // a name of its own: the picture's may be as long as names get
    fs::path path = folder / (".segmenter_trt." + std::to_string(random()) + ".tmp");
    const int file = open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (file >= 0) {
      close(file);
      return path;
    }
    if (errno != EEXIST) return {};
  }
}

void write_file(const fs::path& path, const Bytes& bytes) {
  std::error_code fault;
  fs::create_directories(path.parent_path(), fault);
  if (fault) {
    throw PictureError(path.parent_path().string() + ": no folder can be made there (" + fault.message() +
                       "); choose another --out");
  }
  const fs::path temporary = temporary_in(path.parent_path());
  std::ofstream stream(temporary, std::ios::binary);
  stream.write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
  stream.close();
  if (stream) fs::rename(temporary, path, fault);
  if (!stream || fault) {
    std::error_code ignored;
    fs::remove(temporary, ignored);
    throw PictureError(path.string() + ": cannot be written" + (fault ? " (" + fault.message() + ")" : "") +
                       "; make room, or choose another --out");
  }
}

}  // namespace

std::string formats() { return std::string(kPng ? "png, " : "") + (kJpeg ? "jpeg, " : "") + "ppm, pgm"; }

bool is_png(const Bytes& file) noexcept {
  constexpr std::array<std::uint8_t, 8> kStart = {0x89, 'P', 'N', 'G', '\r', '\n', 0x1A, '\n'};
  return file.size() >= kStart.size() && std::equal(kStart.begin(), kStart.end(), file.begin());
}

bool is_jpeg(const Bytes& file) noexcept {
  return file.size() >= 3 && file[0] == 0xFF && file[1] == 0xD8 && file[2] == 0xFF;
}

std::string_view label_suffix() noexcept { return kPng ? ".png" : ".pgm"; }

std::string_view picture_suffix() noexcept { return kPng ? ".png" : ".ppm"; }

std::vector<fs::path> find_pictures(const fs::path& path) {
  std::error_code ignored;
  if (!fs::exists(path, ignored)) throw PictureError(path.string() + ": no such file or folder; check the path");
  if (!fs::is_directory(path, ignored)) return {path};
  std::vector<fs::path> found;
  for (const fs::directory_entry& entry : fs::directory_iterator(path)) {
    const fs::path& file = entry.path();
    if (named_as_picture(file) && file.filename().string()[0] != '.') found.push_back(file);
  }
  if (found.empty()) {
    throw PictureError(path.string() + ": holds no pictures (" + formats() + "); name a folder that does");
  }
  std::sort(found.begin(), found.end());
  std::map<fs::path, const fs::path*> stems;
  for (const fs::path& file : found) {
    const auto [other, first] = stems.emplace(file.stem(), &file);
    if (!first) {
      throw PictureError(file.string() + " and " + other->second->filename().string() +
                         " would both become one file; rename one");
    }
  }
  return found;
}

Picture read_picture(const fs::path& path) {
  try {
    return decode(read_file(path));
  } catch (const PictureError& error) {
    throw PictureError(path.string() + ": " + error.what());
  }
}

void write_picture(const fs::path& path, const Picture& picture) {
#ifdef SEGMENTER_TRT_HAVE_PNG
  write_file(path, png_of(picture));
#else
  write_file(path, netpbm_of(picture));
#endif
}

void write_labels(const fs::path& path, const Labels& labels, Palette palette) {
#ifdef SEGMENTER_TRT_HAVE_PNG
  write_file(path, png_of(labels, palette));
#else
  write_file(path, netpbm_of(labels, palette.size()));
#endif
}

void require_sides(std::int64_t H, std::int64_t W) {
  if (H < 1 || W < 1) throw PictureError("it has no pixels");
  if (H > kLongestSide || W > kLongestSide || H * W > kMostPixels) {
    throw PictureError("it has " + std::to_string(W) + "x" + std::to_string(H) + " pixels; wanted at most " +
                       std::to_string(kMostPixels) + " in all, shrink it first");
  }
}

}  // namespace segmenter_trt::cli
