// What the command line asks for.
#pragma once

#include <cstdint>
#include <filesystem>
#include <stdexcept>
#include <string>

#include "segmenter_trt/engine.h"

namespace segmenter_trt::cli {

// A mistake of the user's, in one line.
class Mistake : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

struct Options {
  std::filesystem::path engine, images, out;
  EngineOptions runtime;
  std::int64_t raw_width = 0, raw_height = 0;  // of frames from stdin; 0 for none
  std::int64_t batch = 1;
  std::int64_t window = 0, stride = 0, window_batch = 1;
  std::int64_t runs = 0;  // to time; 0 for none
  bool overlay = false, help = false, version = false;
  float alpha = 0.5F;
};

std::string help();

// Throws Mistake for arguments that are none, or do not go together.
Options parse(int count, const char* const* arguments);

}  // namespace segmenter_trt::cli
