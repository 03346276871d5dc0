// JPEG through libjpeg. Its errors leave by longjmp, so functions that call setjmp hold nothing with a destructor.
#include <csetjmp>
#include <cstdio>
#include <cstring>
#include <string>

// after <cstdio>, which it needs and does not include
#include <jerror.h>
#include <jpeglib.h>

#include "pictures.h"

namespace segmenter_trt::cli {
namespace {

// A progressive picture of a few kilobytes can ask for thousands of passes over all its pixels.
constexpr int kMostScans = 500;

struct Faults {
  jpeg_error_mgr manager;
  std::jmp_buf place;
  char message[JMSG_LENGTH_MAX];
};

void fail(j_common_ptr decoder) {
  auto* const faults = reinterpret_cast<Faults*>(decoder->err);
  decoder->err->format_message(decoder, faults->message);
  std::longjmp(faults->place, 1);  // NOLINT(cert-err52-cpp): libjpeg's way
}

// libjpeg fills what is missing with grey and only warns.
void warn(j_common_ptr decoder, int level) {
  const int code = decoder->err->msg_code;
  if (level == -1 && (code == JWRN_JPEG_EOF || code == JWRN_HIT_MARKER)) fail(decoder);
}

void watch(j_common_ptr decoder) {
  if (!decoder->is_decompressor) return;
  if (reinterpret_cast<j_decompress_ptr>(decoder)->input_scan_number > kMostScans) {
    auto* const faults = reinterpret_cast<Faults*>(decoder->err);
    static_cast<void>(std::snprintf(faults->message, sizeof(faults->message), "it has more than %d scans", kMostScans));
    std::longjmp(faults->place, 1);  // NOLINT(cert-err52-cpp): libjpeg's way
  }
}

class Decoder {
 public:
  Decoder() {
    decoder_.err = jpeg_std_error(&faults_.manager);
    faults_.manager.error_exit = fail;
    faults_.manager.emit_message = warn;
    faults_.message[0] = '\0';
    progress_.progress_monitor = watch;
  }
  Decoder(const Decoder&) = delete;
  Decoder& operator=(const Decoder&) = delete;
  ~Decoder() { jpeg_destroy_decompress(&decoder_); }

  const jpeg_decompress_struct& header(const Bytes& file) {
    if (!try_header(file.data(), file.size())) refuse();
    return decoder_;
  }

  void rows(std::uint8_t* pixels, std::size_t stride) {
    if (!try_rows(pixels, stride)) refuse();
  }

 private:
  bool try_header(const std::uint8_t* data, std::size_t size) {
    if (setjmp(faults_.place) != 0) return false;  // NOLINT(cert-err52-cpp): libjpeg's way
    jpeg_create_decompress(&decoder_);
    decoder_.progress = &progress_;
    jpeg_mem_src(&decoder_, data, static_cast<unsigned long>(size));
    jpeg_read_header(&decoder_, TRUE);
    return true;
  }

  bool try_rows(std::uint8_t* pixels, std::size_t stride) {
    if (setjmp(faults_.place) != 0) return false;  // NOLINT(cert-err52-cpp): libjpeg's way
    decoder_.out_color_space = JCS_RGB;
    jpeg_start_decompress(&decoder_);
    while (decoder_.output_scanline < decoder_.output_height) {
      JSAMPROW row = pixels + decoder_.output_scanline * stride;
      jpeg_read_scanlines(&decoder_, &row, 1);
    }
    jpeg_finish_decompress(&decoder_);
    return true;
  }

  [[noreturn]] void refuse() const { throw PictureError(std::string(faults_.message) + kNextStep); }

  jpeg_decompress_struct decoder_ = {};
  Faults faults_ = {};
  jpeg_progress_mgr progress_ = {};
};

}  // namespace

Picture read_jpeg(const Bytes& file) {
  Decoder decoder;
  const jpeg_decompress_struct& facts = decoder.header(file);
  require_sides(facts.image_height, facts.image_width);
  if (facts.num_components != 1 && facts.num_components != 3) {
    throw PictureError("it has " + std::to_string(facts.num_components) + " channels; wanted RGB, convert it first");
  }
  Picture picture = {facts.image_height, facts.image_width, {}};
  picture.pixels.resize(static_cast<std::size_t>(picture.H * picture.W) * 3);
  decoder.rows(picture.pixels.data(), static_cast<std::size_t>(picture.W) * 3);
  return picture;
}

}  // namespace segmenter_trt::cli
