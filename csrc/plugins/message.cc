#include "message.h"

#include <dlfcn.h>

#include <atomic>
#include <cstdint>
#include <cstdio>

namespace segmenter_plugins {
namespace {

std::atomic<nvinfer1::ILoggerFinder*> kept{nullptr};

// The major version of the TensorRT in the library that holds an object's class; 0 when it is none.
int major_version(const void* object) noexcept {
  const void* const virtual_table = *static_cast<const void* const*>(object);
  Dl_info place{};
  if (dladdr(virtual_table, &place) == 0 || !place.dli_fname) return 0;
  void* handle = dlopen(place.dli_fname, RTLD_LAZY | RTLD_NOLOAD);
  if (!handle) handle = dlopen(nullptr, RTLD_LAZY);  // the program itself
  if (!handle) return 0;
  const auto version = reinterpret_cast<std::int32_t (*)()>(dlsym(handle, "getInferLibVersion"));
  const int major = version ? version() / 10000 : 0;
  dlclose(handle);
  return major;
}

}  // namespace

void set_logger_finder(nvinfer1::ILoggerFinder* finder) noexcept {
  kept.store(finder && major_version(finder) == NV_TENSORRT_MAJOR ? finder : nullptr);
}

void error(const std::string& message) noexcept {
  try {
    nvinfer1::ILoggerFinder* const finder = kept.load();
    if (nvinfer1::ILogger* const logger = finder ? finder->findLogger() : nullptr) {
      logger->log(nvinfer1::ILogger::Severity::kERROR, message.c_str());
      return;
    }
  } catch (...) {
    // told below
  }
  // nobody is left to tell when this fails
  (void)std::fprintf(stderr, "segmenter_trt_plugin: %s\n", message.c_str());
}

}  // namespace segmenter_plugins
