// PNG through libpng. Its errors leave by longjmp, so functions that call setjmp hold nothing with a destructor.
#include <png.h>

#include <csetjmp>
#include <cstring>
#include <string>

#include "pictures.h"

namespace segmenter_trt::cli {
namespace {

struct Source {
  const std::uint8_t* data;
  std::size_t size, at;
};

struct Fault {
  char message[200] = "";
};

void fail(png_structp png, png_const_charp message) {
  auto* const fault = static_cast<Fault*>(png_get_error_ptr(png));
  std::strncpy(fault->message, message, sizeof(fault->message) - 1);
  png_longjmp(png, 1);
}

void ignore(png_structp, png_const_charp) {}

void take(png_structp png, png_bytep to, png_size_t count) {
  auto* const source = static_cast<Source*>(png_get_io_ptr(png));
  if (count > source->size - source->at) png_error(png, "it is cut short");
  std::memcpy(to, source->data + source->at, count);
  source->at += count;
}

void append(png_structp png, png_bytep from, png_size_t count) {
  auto* const file = static_cast<Bytes*>(png_get_io_ptr(png));
  bool full = false;
  try {
    file->insert(file->end(), from, from + count);
  } catch (...) {  // nothing may be thrown through libpng
    full = true;
  }
  if (full) png_error(png, "not enough memory");
}

class Reader {
 public:
  explicit Reader(const Bytes& file) : source_{file.data(), file.size(), 0} {
    png_ = png_create_read_struct(PNG_LIBPNG_VER_STRING, &fault_, fail, ignore);
    if (png_ != nullptr) info_ = png_create_info_struct(png_);
  }
  Reader(const Reader&) = delete;
  Reader& operator=(const Reader&) = delete;
  ~Reader() { png_destroy_read_struct(&png_, &info_, nullptr); }

  struct Facts {
    png_uint_32 W, H;
    int depth, colours;
    bool transparent;
  };

  Facts header() {
    Facts facts = {};
    if (info_ == nullptr || !try_header(facts)) refuse();
    return facts;
  }

  void rows(png_bytepp rows) {
    if (!try_rows(rows)) refuse();
  }

 private:
  [[noreturn]] void refuse() const {
    throw PictureError(fault_.message[0] == '\0' ? "not enough memory" : std::string(fault_.message) + kNextStep);
  }

  bool try_header(Facts& facts) {
    if (setjmp(png_jmpbuf(png_)) != 0) return false;  // NOLINT(cert-err52-cpp): libpng's way
    png_set_read_fn(png_, &source_, take);
    png_read_info(png_, info_);
    facts.W = png_get_image_width(png_, info_);
    facts.H = png_get_image_height(png_, info_);
    facts.depth = png_get_bit_depth(png_, info_);
    facts.colours = png_get_color_type(png_, info_);
    facts.transparent = (facts.colours & PNG_COLOR_MASK_ALPHA) != 0 || png_get_valid(png_, info_, PNG_INFO_tRNS) != 0;
    return true;
  }

  bool try_rows(png_bytepp rows) {
    if (setjmp(png_jmpbuf(png_)) != 0) return false;  // NOLINT(cert-err52-cpp): libpng's way
    png_set_expand(png_);
    png_set_gray_to_rgb(png_);
    png_set_interlace_handling(png_);
    png_read_update_info(png_, info_);
    png_read_image(png_, rows);
    png_read_end(png_, nullptr);
    return true;
  }

  Source source_;
  Fault fault_;
  png_structp png_ = nullptr;
  png_infop info_ = nullptr;
};

bool try_write(png_structp png, png_infop info, Bytes* file, std::int64_t H, std::int64_t W, int depth, int colours,
               png_const_colorp palette, int entries, png_bytepp rows) {
  if (setjmp(png_jmpbuf(png)) != 0) return false;  // NOLINT(cert-err52-cpp): libpng's way
  png_set_write_fn(png, file, append, nullptr);
  png_set_IHDR(png, info, static_cast<png_uint_32>(W), static_cast<png_uint_32>(H), depth, colours, PNG_INTERLACE_NONE,
               PNG_COMPRESSION_TYPE_DEFAULT, PNG_FILTER_TYPE_DEFAULT);
  if (entries != 0) png_set_PLTE(png, info, palette, entries);
  png_write_info(png, info);
  png_write_image(png, rows);
  png_write_end(png, nullptr);
  return true;
}

Bytes written(std::int64_t H, std::int64_t W, int depth, int colours, const std::vector<png_color>& palette,
              std::vector<png_bytep>& rows) {
  Bytes file;
  Fault fault;
  png_structp png = png_create_write_struct(PNG_LIBPNG_VER_STRING, &fault, fail, ignore);
  png_infop info = png == nullptr ? nullptr : png_create_info_struct(png);
  const bool done = info != nullptr && try_write(png, info, &file, H, W, depth, colours, palette.data(),
                                                 static_cast<int>(palette.size()), rows.data());
  png_destroy_write_struct(&png, &info);
  if (!done) throw PictureError(fault.message[0] == '\0' ? "not enough memory" : fault.message);
  return file;
}

std::vector<png_bytep> rows_of(std::uint8_t* data, std::int64_t H, std::int64_t bytes) {
  std::vector<png_bytep> rows(static_cast<std::size_t>(H));
  for (std::size_t y = 0; y < rows.size(); ++y) rows[y] = data + y * static_cast<std::size_t>(bytes);
  return rows;
}

}  // namespace

Picture read_png(const Bytes& file) {
  Reader reader(file);
  const Reader::Facts facts = reader.header();
  require_sides(facts.H, facts.W);
  if (facts.depth == 16) throw PictureError("it has 16 bits a channel; wanted 8-bit RGB, convert it first");
  if (facts.transparent) {
    throw PictureError("it has an alpha channel; wanted RGB, flatten it onto a background first");
  }
  Picture picture = {facts.H, facts.W, Bytes(std::size_t{facts.H} * facts.W * 3)};
  std::vector<png_bytep> rows = rows_of(picture.pixels.data(), picture.H, picture.W * 3);
  reader.rows(rows.data());
  return picture;
}

Bytes png_of(const Picture& picture) {
  // libpng takes rows it does not change as if it might
  auto rows = rows_of(const_cast<std::uint8_t*>(picture.pixels.data()), picture.H, picture.W * 3);
  return written(picture.H, picture.W, 8, PNG_COLOR_TYPE_RGB, {}, rows);
}

Bytes png_of(const Labels& labels, Palette palette) {
  const bool wide = palette.size() > 256;
  Bytes values;
  values.reserve(labels.classes.size() * (wide ? 2 : 1));
  for (const std::int16_t label : labels.classes) {
    if (wide) values.push_back(static_cast<std::uint8_t>(label >> 8));
    values.push_back(static_cast<std::uint8_t>(label & 0xFF));
  }
  std::vector<png_color> colours;
  for (const auto& [red, green, blue] : palette) {
    if (!wide) colours.push_back({red, green, blue});
  }
  auto rows = rows_of(values.data(), labels.H, labels.W * (wide ? 2 : 1));
  return written(labels.H, labels.W, wide ? 16 : 8, wide ? PNG_COLOR_TYPE_GRAY : PNG_COLOR_TYPE_PALETTE, colours, rows);
}

}  // namespace segmenter_trt::cli
