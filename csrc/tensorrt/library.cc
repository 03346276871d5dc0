#include "library.h"

#include <dlfcn.h>

#include <cstdint>
#include <vector>

#include "environment.h"
#include "segmenter_trt/errors.h"

namespace segmenter_trt::tensorrt {
namespace {

namespace fs = std::filesystem;

constexpr char kVariable[] = "SEGMENTER_TRT_TENSORRT";
constexpr std::size_t kLongest = 600;  // of what is quoted

#ifdef SEGMENTER_TRT_RTX
constexpr char kHeaders[] = "-DTENSORRT_RTX_INCLUDE_DIR";
std::vector<std::string> file_names() { return {"libtensorrt_rtx.so.1", "libtensorrt_rtx.so"}; }
#else
constexpr char kHeaders[] = "-DTENSORRT_INCLUDE_DIR";
std::vector<std::string> file_names() {
  return {"libnvinfer.so." + std::to_string(NV_TENSORRT_MAJOR), "libnvinfer.so"};
}
#endif

std::vector<fs::path> candidates(fs::path place) {
  if (place.empty()) place = environment(kVariable);
  std::error_code ignored;
  if (!place.empty() && !fs::is_directory(place, ignored)) return {place};
  std::vector<fs::path> found;
  for (const std::string& name : file_names()) found.push_back(place.empty() ? fs::path(name) : place / name);
  return found;
}

template <class Function>
Function* function(void* library, const char* name) {
  return reinterpret_cast<Function*>(dlsym(library, name));
}

std::int32_t part(void* library, const char* name) {
  const auto ask = function<std::int32_t()>(library, name);
  return ask == nullptr ? -1 : ask();
}

}  // namespace

Log& Log::of_process() {
  static Log* const log = new Log;
  return *log;
}

void Log::log(Severity severity, nvinfer1::AsciiChar const* text) noexcept {
  if (severity > Severity::kERROR) return;
  try {
    const std::lock_guard lock(mutex_);
    if (told_.size() > kLongest) return;
    if (!told_.empty()) told_ += "; ";
    for (const char* letter = text; *letter != '\0'; ++letter) told_ += *letter == '\n' ? ' ' : *letter;
  } catch (...) {
    // out of memory: the message is lost, the failure itself is reported by the call that failed
  }
}

std::string Log::take() {
  const std::lock_guard lock(mutex_);
  std::string told = told_.empty() ? "no reason given" : told_.substr(0, kLongest);
  told_.clear();
  return told;
}

Library::Library(const fs::path& place) : handle_(nullptr) {
  std::string told;
  for (const fs::path& path : candidates(place)) {
    handle_ = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (handle_ != nullptr) break;
    if (told.empty()) told = dlerror();
  }
  if (handle_ == nullptr) {
    throw Unavailable(std::string("engine ") + kEngine + ": " + told + "; pip install " + kPackage +
                      ", or name its library in " + kVariable);
  }
  const std::int32_t major = part(handle_, "getInferLibMajorVersion");
  const std::int32_t minor = part(handle_, "getInferLibMinorVersion");
  version_ = std::to_string(major) + "." + std::to_string(minor) + "." +
             std::to_string(part(handle_, "getInferLibPatchVersion")) + "." +
             std::to_string(part(handle_, "getInferLibBuildVersion"));
  // interfaces grow within a major version, at their ends
  if (major != NV_TENSORRT_MAJOR || minor < NV_TENSORRT_MINOR) {
    throw Unavailable(std::string("engine ") + kEngine + ": the library is " + version_ +
                      ", and this backend was compiled for " + std::to_string(NV_TENSORRT_MAJOR) + "." +
                      std::to_string(NV_TENSORRT_MINOR) + "; compile it with the headers of that library (" + kHeaders +
                      ")");
  }
}

std::unique_ptr<nvinfer1::IRuntime> Library::make_runtime(Log& log) const {
  const auto make = function<void*(void*, std::int32_t)>(handle_, "createInferRuntime_INTERNAL");
  auto* const runtime = make == nullptr ? nullptr : static_cast<nvinfer1::IRuntime*>(make(&log, NV_TENSORRT_VERSION));
  if (runtime == nullptr)
    throw Unavailable(std::string("engine ") + kEngine + " " + version_ + " does not start: " + log.take());
  return std::unique_ptr<nvinfer1::IRuntime>(runtime);
}

}  // namespace segmenter_trt::tensorrt
