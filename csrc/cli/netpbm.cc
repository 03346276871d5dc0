// PPM and PGM, binary: the formats every build reads and writes.
#include <string>

#include "pictures.h"

namespace segmenter_trt::cli {
namespace {

class Header {
 public:
  explicit Header(const Bytes& file) : file_(file) {}

  // The next number, after blanks and comments.
  std::int64_t number() {
    while (at_ < file_.size() && (blank(file_[at_]) || file_[at_] == '#')) {
      if (file_[at_++] == '#') {
        while (at_ < file_.size() && file_[at_] != '\n') ++at_;
      }
    }
    const std::size_t start = at_;
    std::int64_t value = 0;
    while (at_ < file_.size() && file_[at_] >= '0' && file_[at_] <= '9' && at_ - start < 10) {
      value = value * 10 + (file_[at_++] - '0');
    }
    if (at_ == start) throw PictureError(std::string("its header is cut short") + kNextStep);
    return value;
  }

  // Where the pixels start: one blank after the last number.
  std::size_t end() const {
    if (at_ >= file_.size() || !blank(file_[at_]))
      throw PictureError(std::string("its header is cut short") + kNextStep);
    return at_ + 1;
  }

 private:
  static bool blank(std::uint8_t byte) { return byte == ' ' || (byte >= '\t' && byte <= '\r'); }

  const Bytes& file_;
  std::size_t at_ = 2;
};

Bytes with_header(const char* magic, std::int64_t H, std::int64_t W, int most) {
  const std::string header =
      std::string(magic) + "\n" + std::to_string(W) + " " + std::to_string(H) + "\n" + std::to_string(most) + "\n";
  return {header.begin(), header.end()};
}

}  // namespace

bool is_netpbm(const Bytes& file) noexcept {
  return file.size() > 2 && file[0] == 'P' && (file[1] == '5' || file[1] == '6');
}

Picture read_netpbm(const Bytes& file) {
  Header header(file);
  const std::int64_t W = header.number(), H = header.number(), most = header.number();
  require_sides(H, W);
  if (most != 255) throw PictureError("its values end at " + std::to_string(most) + ", wanted 255");
  const std::size_t start = header.end();
  const std::size_t channels = file[1] == '6' ? 3 : 1;
  const std::size_t wanted = static_cast<std::size_t>(H * W) * channels;
  if (file.size() - start < wanted) throw PictureError(std::string("it is cut short") + kNextStep);
  Picture picture = {H, W, Bytes(static_cast<std::size_t>(H * W) * 3)};
  for (std::size_t i = 0; i < picture.pixels.size(); ++i) {
    picture.pixels[i] = file[start + (channels == 3 ? i : i / 3)];
  }
  return picture;
}

Bytes netpbm_of(const Picture& picture) {
  Bytes file = with_header("P6", picture.H, picture.W, 255);
  file.insert(file.end(), picture.pixels.begin(), picture.pixels.end());
  return file;
}

Bytes netpbm_of(const Labels& labels, std::size_t classes) {
  const bool wide = classes > 256;
  Bytes file = with_header("P5", labels.H, labels.W, wide ? 65535 : 255);
  for (const std::int16_t label : labels.classes) {
    if (wide) file.push_back(static_cast<std::uint8_t>(label >> 8));
    file.push_back(static_cast<std::uint8_t>(label & 0xFF));
  }
  return file;
}

}  // namespace segmenter_trt::cli
