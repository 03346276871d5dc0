// segmenter_trt_cli: pictures or video frames in, labels out, and how long that takes.
#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <exception>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "labeller.h"
#include "options.h"
#include "pictures.h"
#include "segmenter_trt/errors.h"
#include "segmenter_trt/version.h"

namespace segmenter_trt::cli {
namespace {

namespace fs = std::filesystem;

constexpr int kSomeFailed = 1, kFailed = 2;

void say(const char* kind, const char* line) {
  // where not even this can be written, nobody is left to be told
  static_cast<void>(std::fprintf(stderr, "%s: %s\n", kind, line));
}

void tell(const std::exception& error) {
  std::string line = error.what();
  std::replace(line.begin(), line.end(), '\n', ' ');
  say("error", line.c_str());
}

void write(const Options& options, const Labeller& labeller, const std::string& name, const Picture& picture,
           const Labels& labels) {
  const Palette palette = labeller.manifest().palette;
  write_labels(options.out / "labels" / (name + std::string(label_suffix())), labels, palette);
  if (options.overlay) {
    write_picture(options.out / "overlays" / (name + std::string(picture_suffix())),
                  overlay(picture, labels, palette, options.alpha));
  }
}

int label_files(const Options& options, Labeller& labeller) {
  const std::vector<fs::path> files = find_pictures(options.images);
  std::size_t failed = 0;
  std::vector<Picture> pictures;
  std::vector<std::string> names;
  const auto write_all = [&] {
    const std::vector<Labels>& labels = labeller.label(pictures);
    for (std::size_t i = 0; i < labels.size(); ++i) write(options, labeller, names[i], pictures[i], labels[i]);
    pictures.clear();
    names.clear();
  };
  for (const fs::path& file : files) {
    Picture picture;
    try {
      picture = read_picture(file);
      labeller.require(picture);
    } catch (const PictureError& error) {
      tell(error);
      ++failed;
      continue;
    } catch (const InputError& error) {
      say("error", (file.string() + ": " + error.what()).c_str());
      ++failed;
      continue;
    }
    pictures.push_back(std::move(picture));
    names.push_back(file.stem().string());
    if (pictures.size() == labeller.batch()) write_all();
  }
  write_all();
  std::printf("%zu of %zu pictures labelled into %s\n", files.size() - failed, files.size(), options.out.c_str());
  return failed == 0 ? 0 : kSomeFailed;
}

void put(const void* data, std::size_t bytes) {
  if (std::fwrite(data, 1, bytes, stdout) != bytes || std::fflush(stdout) != 0) {
    throw Mistake("stdout: cannot be written; is what reads it still there?");
  }
}

void put_labels(const Labels& labels, bool wide) {
  Bytes bytes;
  bytes.reserve(labels.classes.size() * (wide ? 2 : 1));
  for (const std::int16_t label : labels.classes) {
    bytes.push_back(static_cast<std::uint8_t>(label & 0xFF));
    if (wide) bytes.push_back(static_cast<std::uint8_t>(label >> 8));
  }
  put(bytes.data(), bytes.size());
}

void put_frame(const Options& options, const Labeller& labeller, long number, const Picture& frame,
               const Labels& labels) {
  if (!options.out.empty()) {
    char name[32];
    static_cast<void>(std::snprintf(name, sizeof(name), "frame_%06ld", number));  // any number fits
    write(options, labeller, name, frame, labels);
  } else if (options.overlay) {
    const Picture drawn = overlay(frame, labels, labeller.manifest().palette, options.alpha);
    put(drawn.pixels.data(), drawn.pixels.size());
  } else {
    put_labels(labels, labeller.manifest().K() > 256);
  }
}

// Fills `bytes` from stdin, waiting where it does not; how many came before its end.
std::size_t read_frame(Bytes& bytes) {
  std::size_t got = 0;
  while (got < bytes.size()) {
    const ssize_t more = read(STDIN_FILENO, bytes.data() + got, bytes.size() - got);
    if (more == 0) break;
    if (more > 0) {
      got += static_cast<std::size_t>(more);
    } else if (errno == EAGAIN) {
      pollfd input = {STDIN_FILENO, POLLIN, 0};
      static_cast<void>(poll(&input, 1, -1));  // an error of its own is told by the next read
    } else if (errno != EINTR) {
      throw Mistake(std::string("stdin: cannot be read (") + std::strerror(errno) + "); pipe the frames in");
    }
  }
  return got;
}

int label_frames(const Options& options, Labeller& labeller) {
  if (options.out.empty() && isatty(STDOUT_FILENO) != 0) {
    throw Mistake("stdout is a terminal: pipe the labels somewhere, or pass --out FOLDER");
  }
  Picture frame = {options.raw_height, options.raw_width, {}};
  frame.pixels.resize(static_cast<std::size_t>(frame.H * frame.W) * 3);
  std::vector<Picture> frames;
  long done = 0;
  const auto put_all = [&] {
    const std::vector<Labels>& labels = labeller.label(frames);
    for (std::size_t i = 0; i < labels.size(); ++i) put_frame(options, labeller, done++, frames[i], labels[i]);
    frames.clear();
  };
  for (long count = 0;; ++count) {
    const std::size_t bytes = read_frame(frame.pixels);
    if (bytes == 0 && count > 0) {
      put_all();
      return 0;
    }
    if (bytes != frame.pixels.size()) {
      put_all();
      throw Mistake("stdin: frame " + std::to_string(count) + " ends after " + std::to_string(bytes) + " of " +
                    std::to_string(frame.pixels.size()) + " bytes; is --raw the size of the frames?");
    }
    frames.push_back(frame);
    if (frames.size() == labeller.batch()) put_all();
  }
}

// Noise of the size the engine is tuned for, or of four windows.
Picture noise(const Options& options, const Manifest& manifest) {
  Picture picture = {manifest.height.opt, manifest.width.opt, {}};
  if (options.window != 0) picture.H = picture.W = 2 * options.window;
  picture.pixels.resize(static_cast<std::size_t>(picture.H * picture.W) * 3);
  std::minstd_rand random(1);
  for (std::uint8_t& value : picture.pixels) value = static_cast<std::uint8_t>(random() >> 8);
  return picture;
}

// Of sorted times: the smallest that at least `share` of them do not pass.
double quantile(const std::vector<double>& sorted, double share) {
  const auto rank = static_cast<std::size_t>(share * static_cast<double>(sorted.size()) + 0.999999);
  return sorted[std::clamp<std::size_t>(rank, 1, sorted.size()) - 1];
}

int time_runs(const Options& options, Labeller& labeller) {
  using Clock = std::chrono::steady_clock;
  const Picture picture = options.images.empty() ? noise(options, labeller.manifest())
                                                 : read_picture(find_pictures(options.images).front());
  const std::vector<Picture> input(labeller.batch(), labeller.fitted(picture));
  for (std::int64_t i = 0; i <= options.runs / 10; ++i) labeller.run(input);
  std::vector<double> ms(static_cast<std::size_t>(options.runs));
  const Clock::time_point start = Clock::now();
  Clock::time_point before = start;
  for (double& each : ms) {
    labeller.run(input);
    const Clock::time_point now = Clock::now();
    each = std::chrono::duration<double, std::milli>(now - before).count();
    before = now;
  }
  const double seconds = std::chrono::duration<double>(before - start).count();
  std::sort(ms.begin(), ms.end());
  const Description facts = labeller.describe();
  if (!facts.warning.empty()) say("warning", facts.warning.c_str());
  const std::string together = input.size() == 1 ? "" : std::to_string(input.size()) + " of ";
  std::printf("%s, %s, %s, %d threads, %s%ldx%ld: p50 %.3f ms, p90 %.3f ms, p99 %.3f ms, %.2f images/s\n",
              facts.runtime.c_str(), facts.device.c_str(), facts.precision.c_str(), facts.threads, together.c_str(),
              static_cast<long>(input[0].H), static_cast<long>(input[0].W), quantile(ms, 0.5), quantile(ms, 0.9),
              quantile(ms, 0.99), static_cast<double>(options.runs) * static_cast<double>(input.size()) / seconds);
  return 0;
}

int run(const Options& options) {
  if (options.help) {
    std::printf("%s", help().c_str());
    return 0;
  }
  if (options.version) {
    std::printf("segmenter_trt_cli %s\n", build_info().version);
    return 0;
  }
  Labeller labeller(options);
  if (options.runs != 0) return time_runs(options, labeller);
  return options.raw_width != 0 ? label_frames(options, labeller) : label_files(options, labeller);
}

}  // namespace
}  // namespace segmenter_trt::cli

int main(int count, char** arguments) {
  try {
    return segmenter_trt::cli::run(segmenter_trt::cli::parse(count, arguments));
  } catch (const std::bad_alloc&) {
    segmenter_trt::cli::say("error", "not enough memory");
  } catch (const std::exception& error) {
    segmenter_trt::cli::tell(error);
  }
  return segmenter_trt::cli::kFailed;
}
