// TensorRT's own library, opened when a plan is, and held against the headers this backend was compiled with.
#pragma once

#include <NvInferRuntime.h>

#include <filesystem>
#include <memory>
#include <mutex>
#include <string>

#include "segmenter_trt/engine.h"

namespace segmenter_trt::tensorrt {

#ifdef SEGMENTER_TRT_RTX
inline constexpr char kEngine[] = "tensorrt-rtx";
inline constexpr char kPackage[] = "tensorrt-rtx";
#else
inline constexpr char kEngine[] = "tensorrt";
inline constexpr char kPackage[] = "tensorrt";
#endif

// Keeps what TensorRT said last, for the error that follows; TensorRT calls it from any thread.
class Log final : public nvinfer1::ILogger {
 public:
  // The one there is, never destroyed: TensorRT keeps the logger of its first runtime for those made while that lives,
  // so that one of an engine's own could be called after the engine is gone.
  static Log& of_process();

  void log(Severity severity, nvinfer1::AsciiChar const* text) noexcept override;
  // What was told as an error since the last call, in one line.
  std::string take();

 private:
  Log() = default;

  std::mutex mutex_;
  std::string told_;
};

class Library {
 public:
  // Opens it: `place` is the library or its folder; empty asks the environment variable SEGMENTER_TRT_TENSORRT, then
  // the system. Throws Unavailable where there is none, or one of another version than the headers.
  explicit Library(const std::filesystem::path& place);

  // major.minor.patch.build
  const std::string& version() const noexcept { return version_; }

  // Throws Unavailable when TensorRT gives none.
  std::unique_ptr<nvinfer1::IRuntime> make_runtime(Log& log) const;

 private:
  void* handle_;  // never closed: TensorRT leaves threads and handlers behind
  std::string version_;
};

}  // namespace segmenter_trt::tensorrt
