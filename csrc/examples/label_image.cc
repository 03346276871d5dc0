// Labels one picture: label_image ENGINE PICTURE.ppm LABELS.pgm
//
// The picture is resized to the size the engine takes, and so are the labels; they are class indices.
#include <cstdint>
#include <cstdio>
#include <exception>
#include <fstream>
#include <iostream>
#include <stdexcept>
#include <string>
#include <vector>

#include "segmenter_trt/resize.h"
#include "segmenter_trt/session.h"

namespace trt = segmenter_trt;

int main(int count, char** arguments) try {
  if (count != 4) throw std::runtime_error("usage: label_image ENGINE PICTURE.ppm LABELS.pgm");
  trt::Session session(trt::Engine::open(arguments[1]));
  const std::int64_t H = session.engine().manifest().height.opt, W = session.engine().manifest().width.opt;

  std::ifstream file(arguments[2], std::ios::binary);
  std::string magic;
  unsigned width = 0, height = 0, most = 0;
  file >> magic >> width >> height >> most;
  const bool known = magic == "P6" && most == 255 && width <= 16384 && height <= 16384 && file.get() != EOF;
  std::vector<char> picture(known ? std::size_t{3} * height * width : 0);
  if (!known || !file.read(picture.data(), static_cast<std::streamsize>(picture.size())))
    throw std::runtime_error(std::string(arguments[2]) + ": wanted a whole binary PPM of at most 16384x16384 pixels");

  std::vector<std::uint8_t> pixels(static_cast<std::size_t>(H * W * 3)), labels(static_cast<std::size_t>(H * W));
  trt::resize({reinterpret_cast<const std::uint8_t*>(picture.data()), 1, height, width}, {pixels.data(), H, W});
  session.run({pixels.data(), 1, H, W}, trt::LabelsView<std::uint8_t>{labels.data(), {H, W}});

  std::ofstream out(arguments[3], std::ios::binary);
  out << "P5\n" << W << " " << H << "\n255\n" << std::string(labels.begin(), labels.end());
  if (!out.flush()) throw std::runtime_error(std::string(arguments[3]) + ": cannot be written; name another file");
} catch (const std::exception& error) {
  std::cerr << "error: " << error.what() << "\n";
  return 2;
}
