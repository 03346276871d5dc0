// An artifact opened in a runtime of this machine: an exported ONNX on the CPU, a plan on a GPU.
#pragma once

#include <filesystem>
#include <memory>
#include <string>

#include "segmenter_trt/manifest.h"

namespace segmenter_trt {

struct EngineOptions {
  std::string backend = {};            // openvino, tensorrt or tensorrt-rtx; empty takes the one the artifact is for
  std::string precision = {};          // of OpenVINO's floating-point layers: fp32 or bf16; empty chooses
  int threads = 0;                     // of the CPU; 0 takes every core this process may use
  int streams = 1;                     // sessions the CPU serves at the same moment, which share the threads
  int device = 0;                      // GPU
  std::filesystem::path runtime = {};  // library of the runtime, or its folder; empty searches
  std::filesystem::path plugins = {};  // library of the plugins a plan asks for; empty searches
  bool require_verified = false;       // refuse what Description::warning would tell is not verified
};

// Facts for people and reports.
struct Description {
  std::string engine;     // openvino, tensorrt or tensorrt-rtx
  std::string runtime;    // with its version: "openvino 2026.1.0"
  std::string device;     // cpu, or the GPU's name
  std::string precision;  // of the artifact
  std::string floats;     // what floating-point layers compute in; empty where the artifact settles it
  std::string model;
  std::string labels_by;  // the graph, or segmenter_trt's upsample_argmax
  // Where windows are cut and merged, and pictures of other sizes resized: the GPU or the CPU, and where a GPU leaves
  // it to the CPU, why; of a session also that the GPU was short of memory for the last picture.
  std::string windows_by, resized_by;
  Input input;            // what the network is given; pixels too where the runtime normalises them itself
  std::string warning;    // that the artifact is not verified in this engine, or failed, or what may make labels here
                          // differ from those it was verified with; empty when there is nothing to tell
  std::string no_graphs;  // of a session on a GPU: why it launches kernel by kernel what it would replay as a CUDA
                          // graph; empty where nothing stands against that, and of the CPU
  int threads;            // of the CPU; 0 where the network does not run on it
  Range height, width, batch;
};

// Immutable: copies share one engine, and any number of threads may make sessions of it.
class Engine {
 public:
  // Reads the manifest, then sees that the artifact is the file it vouches for (SHA-256) and that this machine has what
  // it needs, before any runtime reads a byte of it.
  // Throws ManifestError, ArtifactError (also when it is not verified, and must be), Unavailable, and InputError for
  // options that are none.
  static Engine open(const std::filesystem::path& artifact, const EngineOptions& options = {});

  const Manifest& manifest() const noexcept;
  Description describe() const;

 private:
  friend class Session;
  struct State;
  explicit Engine(std::shared_ptr<const State> state) noexcept;

  std::shared_ptr<const State> state_;
};

}  // namespace segmenter_trt
