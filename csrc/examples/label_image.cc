// Labels one picture: label_image ENGINE PICTURE.ppm LABELS.pgm
//
// The picture is resized to the size the engine takes, and so are the labels; they are class indices.
#include <cstdint>
#include <cstdio>
#include <exception>
#include <fstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "segmenter_trt/resize.h"
#include "segmenter_trt/session.h"

namespace trt = segmenter_trt;

int main(int count, char** arguments) {
  try {
    if (count != 4) throw std::runtime_error("usage: label_image ENGINE PICTURE.ppm LABELS.pgm");
    trt::Session session(trt::Engine::open(arguments[1]));
    const trt::Manifest& manifest = session.engine().manifest();
    if (manifest.K() > 256) throw std::runtime_error("more than 256 classes: pass run a LabelsView<std::int16_t>");

    std::ifstream file(arguments[2], std::ios::binary);
    std::string magic;
    std::size_t width = 0, height = 0, most = 0;
    file >> magic >> width >> height >> most;
    if (!file || magic != "P6" || most != 255 || width > 16384 || height > 16384 || file.get() == EOF)
      throw std::runtime_error(std::string(arguments[2]) + ": wanted a binary PPM of at most 16384x16384 pixels");
    std::vector<std::uint8_t> picture(height * width * 3);
    if (!file.read(reinterpret_cast<char*>(picture.data()), static_cast<std::streamsize>(picture.size())))
      throw std::runtime_error(std::string(arguments[2]) + ": is cut short");

    const std::int64_t H = manifest.height.opt, W = manifest.width.opt;
    std::vector<std::uint8_t> pixels(static_cast<std::size_t>(H * W * 3)), labels(static_cast<std::size_t>(H * W));
    trt::resize({picture.data(), 1, static_cast<std::int64_t>(height), static_cast<std::int64_t>(width)},
                {pixels.data(), H, W});
    session.run({pixels.data(), 1, H, W}, trt::LabelsView<std::uint8_t>{labels.data(), {H, W}});

    std::ofstream out(arguments[3], std::ios::binary);
    out << "P5\n" << W << " " << H << "\n255\n";
    out.write(reinterpret_cast<const char*>(labels.data()), static_cast<std::streamsize>(labels.size()));
    if (!out.flush()) throw std::runtime_error(std::string(arguments[3]) + ": cannot be written");
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 2;
  }
  return 0;
}
