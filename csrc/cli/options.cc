#include "options.h"

#include <algorithm>
#include <charconv>
#include <iterator>
#include <string_view>
#include <vector>

#include "pictures.h"

namespace segmenter_trt::cli {
namespace {

constexpr std::int64_t kMost = std::int64_t{1} << 24;

// An option as it was passed.
struct Given {
  std::string_view name, text;
};

template <class Number>
Number number(Given given, Number least, Number most) {
  const auto [name, text] = given;
  Number value = 0;
  const auto [end, fault] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (fault != std::errc() || end != text.data() + text.size() || !(value >= least && value <= most)) {
    std::string limits = std::to_string(least);
    limits += " to " + std::to_string(most);
    throw Mistake(std::string(name) + " " + std::string(text) + ": wanted a number from " + limits);
  }
  return value;
}

std::int64_t side(Given given) { return number<std::int64_t>(given, 1, kMost); }

void read_size(std::string_view text, Options& options) {
  const std::size_t cross = text.find('x');
  if (cross == std::string_view::npos) {
    throw Mistake("--raw " + std::string(text) + ": wanted WIDTHxHEIGHT, such as 1280x720");
  }
  options.raw_width = side({"--raw: width", text.substr(0, cross)});
  options.raw_height = side({"--raw: height", text.substr(cross + 1)});
  if (options.raw_width * options.raw_height > kMostPixels) {
    throw Mistake("--raw " + std::string(text) + ": wanted at most " + std::to_string(kMostPixels) + " pixels");
  }
}

struct Option {
  std::string_view name;
  void (*take)(Options& options, Given given);
};

constexpr Option kWithValues[] = {
    {"--out", [](Options& options, Given given) { options.out = given.text; }},
    {"--alpha", [](Options& options, Given given) { options.alpha = number<float>(given, 0, 1); }},
    {"--raw", [](Options& options, Given given) { read_size(given.text, options); }},
    {"--time", [](Options& options, Given given) { options.runs = number<std::int64_t>(given, 1, 1'000'000'000); }},
    {"--batch", [](Options& options, Given given) { options.batch = side(given); }},
    {"--window", [](Options& options, Given given) { options.window = side(given); }},
    {"--stride", [](Options& options, Given given) { options.stride = side(given); }},
    {"--window-batch", [](Options& options, Given given) { options.window_batch = side(given); }},
    {"--backend", [](Options& options, Given given) { options.runtime.backend = given.text; }},
    {"--precision", [](Options& options, Given given) { options.runtime.precision = given.text; }},
    {"--threads", [](Options& options, Given given) { options.runtime.threads = number<int>(given, 0, 4096); }},
    {"--device", [](Options& options, Given given) { options.runtime.device = number<int>(given, 0, 4096); }},
    {"--runtime", [](Options& options, Given given) { options.runtime.runtime = given.text; }},
    {"--plugins", [](Options& options, Given given) { options.runtime.plugins = given.text; }},
};

void check(const Options& options, std::size_t positions) {
  if (options.help || options.version) return;
  if (positions == 0) throw Mistake("no engine given; see segmenter_trt_cli --help");
  if (positions > 2) throw Mistake("more than an engine and a picture or folder given; name a folder of pictures");
  if (options.raw_width != 0 && !options.images.empty()) {
    throw Mistake("--raw reads frames from stdin, and " + options.images.string() + " is named too; leave one out");
  }
  if (options.window == 0 && (options.stride != 0 || options.window_batch != 1)) {
    throw Mistake("--stride and --window-batch are of windows: pass --window too");
  }
  if (options.window != 0 && options.batch != 1) {
    throw Mistake("--batch is of whole pictures, and --window cuts them: pass --window-batch instead");
  }
  if (options.stride > options.window) {
    throw Mistake("--stride " + std::to_string(options.stride) + " leaves gaps between windows of " +
                  std::to_string(options.window) + "; wanted at most that");
  }
  if (options.runs != 0 || options.raw_width != 0) return;
  if (options.images.empty()) throw Mistake("no picture or folder given; name one, or pass --raw or --time");
  if (options.out.empty()) throw Mistake("nowhere to write labels to; pass --out FOLDER, or --time N");
}

}  // namespace

std::string help() {
  return "usage: segmenter_trt_cli ENGINE [IMAGES] [OPTIONS]\n"
         "\n"
         "Labels pictures or video frames by an engine of Segmenter.\n"
         "\n"
         "  ENGINE              an exported .onnx, or a plan, with its manifest beside it\n"
         "  IMAGES              a picture, or a folder of them; this build reads " +
         formats() +
         "\n"
         "  --out FOLDER        for labels/NAME" +
         std::string(label_suffix()) +
         ": class indices, of the picture's own size\n"
         "  --overlay           also overlays/NAME" +
         std::string(picture_suffix()) +
         ": the picture with its classes in their colours\n"
         "  --alpha A           share of the class colour in overlays, 0 to 1 (0.5)\n"
         "  --raw WxH           frames from stdin instead of IMAGES, as `ffmpeg -i VIDEO -f rawvideo -pix_fmt rgb24 "
         "-`\n"
         "                      pipes them. Without --out, labels go to stdout, a byte a pixel (two, the lower first, "
         "of\n"
         "                      more than 256 classes), or with --overlay rgb24 frames\n"
         "  --time N            label the first picture (or noise) N times, after a tenth of that unmeasured, and "
         "print\n"
         "                      p50, p90, p99 of a call and images/s: from pixels in memory to labels in memory,\n"
         "                      files and resizing left out\n"
         "  --batch N           pictures, or frames, in one call of the network (1, or the least the engine takes)\n"
         "  --window S          label through windows of side S, which the engine must take; without it, pictures are\n"
         "                      resized to the nearest size the engine takes, and labels back to theirs\n"
         "  --stride S          pixels from one window to the next (the window's side)\n"
         "  --window-batch N    windows in one call of the network (1)\n"
         "  --backend NAME      openvino, tensorrt or tensorrt-rtx (the one the engine is for)\n"
         "  --precision NAME    of OpenVINO's floating-point layers: fp32 or bf16 (chosen by the engine and the CPU)\n"
         "  --threads N         of the CPU (0: every core this process may use)\n"
         "  --device N          GPU (0)\n"
         "  --runtime PATH      library of the runtime, or its folder (searched, OpenVINO's first\n"
         "                      in the folder SEGMENTER_TRT_OPENVINO names)\n"
         "  --plugins PATH      library of the plugins a plan asks for (searched)\n"
         "  --require-verified  refuse an engine whose manifest does not say that it passed `segmenter verify`\n"
         "  --version, --help\n"
         "\n"
         "Exits with 0; with 1 when a picture could not be read, the others being labelled; with 2 otherwise.\n";
}

Options parse(int count, const char* const* arguments) {
  Options options;
  std::vector<std::filesystem::path> positions;
  for (int i = 1; i < count; ++i) {
    const std::string_view argument = arguments[i];
    if (argument.size() < 2 || argument[0] != '-') {
      positions.emplace_back(argument);
    } else if (argument == "--help" || argument == "-h") {
      options.help = true;
    } else if (argument == "--version") {
      options.version = true;
    } else if (argument == "--overlay") {
      options.overlay = true;
    } else if (argument == "--require-verified") {
      options.runtime.require_verified = true;
    } else {
      const std::size_t equals = argument.find('=');
      const std::string_view name = argument.substr(0, equals);
      const Option* const option = std::find_if(std::begin(kWithValues), std::end(kWithValues),
                                                [&](const Option& known) { return known.name == name; });
      if (option == std::end(kWithValues)) {
        throw Mistake("no option " + std::string(name) + "; see segmenter_trt_cli --help");
      }
      if (equals == std::string_view::npos && i + 1 == count) {
        throw Mistake(std::string(name) + ": wanted a value after it; see segmenter_trt_cli --help");
      }
      option->take(options, {name, equals == std::string_view::npos ? arguments[++i] : argument.substr(equals + 1)});
    }
  }
  if (!positions.empty()) options.engine = positions[0];
  if (positions.size() > 1) options.images = positions[1];
  check(options, positions.size());
  return options;
}

}  // namespace segmenter_trt::cli
