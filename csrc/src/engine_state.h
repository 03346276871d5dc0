// What an engine holds; sessions share it.
#pragma once

#include <filesystem>
#include <memory>
#include <string>

#include "backend.h"
#include "process.h"
#include "segmenter_trt/engine.h"

namespace segmenter_trt {

struct Engine::State {
  std::filesystem::path artifact;
  Manifest manifest;
  int threads;
  std::unique_ptr<Backend> backend;
  std::string name;        // engine, precision and model, as messages begin: "openvino-int8, small"
  std::string unverified;  // why it may not be taken for verified; empty when it may
  Process opener = {};
};

}  // namespace segmenter_trt
