// A server's loop: server ENGINE THREADS < frames, one engine for all and one session a thread.
//
// Frames of the engine's size come from stdin as rgb24 (the place of a camera or a socket); the thread that is free
// takes the next and answers it with a line, "FRAME CLASS": its most frequent class.
#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <future>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

#include "segmenter_trt/errors.h"
#include "segmenter_trt/session.h"

namespace trt = segmenter_trt;

int main(int count, char** arguments) try {
  if (count != 3) throw std::runtime_error("usage: server ENGINE THREADS < frames");
  const int threads = std::clamp(std::atoi(arguments[2]), 1, 64);
  const trt::Engine engine = trt::Engine::open(arguments[1], {.streams = threads});
  const trt::Manifest& manifest = engine.manifest();
  const std::int64_t H = manifest.height.opt, W = manifest.width.opt;
  std::mutex input;
  long frames = 0;

  const auto serve = [&](trt::Session session) {
    std::vector<std::uint8_t> pixels(static_cast<std::size_t>(H * W * 3)), labels(static_cast<std::size_t>(H * W));
    for (;;) {
      std::unique_lock turn(input);
      const std::size_t bytes = std::fread(pixels.data(), 1, pixels.size(), stdin);
      if (bytes == 0) return;
      const long frame = frames++;
      if (bytes < pixels.size())
        throw std::runtime_error("frame " + std::to_string(frame) + ": is cut short, " + std::to_string(bytes) +
                                 " of " + std::to_string(pixels.size()) + " bytes");
      turn.unlock();
      try {
        session.run({pixels.data(), 1, H, W}, trt::LabelsView<std::uint8_t>{labels.data(), {H, W}});
      } catch (const trt::RunError& error) {  // of this frame alone: the next may be served
        std::fprintf(stderr, "frame %ld: %s\n", frame, error.what());
        continue;
      }
      std::array<long, 256> pixels_of = {};  // of any byte: a plan makes its labels itself
      for (const std::uint8_t label : labels) ++pixels_of[label];
      const auto most = std::max_element(pixels_of.begin(), pixels_of.end()) - pixels_of.begin();
      if (most >= manifest.K()) {
        std::fprintf(stderr, "frame %ld: class %ld, and the manifest names %ld; make the engine again\n", frame,
                     static_cast<long>(most), static_cast<long>(manifest.K()));
        continue;
      }
      std::printf("%ld %s\n", frame, manifest.classes[static_cast<std::size_t>(most)].c_str());
    }
  };

  std::vector<std::future<void>> served;
  for (int i = 0; i < threads; ++i) served.push_back(std::async(std::launch::async, serve, trt::Session(engine)));
  for (std::future<void>& each : served) each.get();
} catch (const std::exception& error) {
  std::fprintf(stderr, "error: %s\n", error.what());
  return 2;
}
