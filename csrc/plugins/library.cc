// What TensorRT asks a plugin library for: its creators, and to take a logger. Without the second it is not loaded.
#include <NvInferRuntime.h>

#include <array>
#include <cstdint>
#include <memory>

#include "launcher.h"
#include "message.h"
#include "operations.h"
#include "plugin.h"

#define SEGMENTER_PLUGINS_EXPORT extern "C" __attribute__((visibility("default")))

SEGMENTER_PLUGINS_EXPORT nvinfer1::IPluginCreatorInterface* const* getCreators(std::int32_t& count) {
  using segmenter_plugins::Creator;
  static const auto launcher = std::make_shared<segmenter_plugins::Launcher>();
  static const auto& makers = segmenter_plugins::makers();
  static std::array<Creator, 4> creators = {Creator(makers[0], launcher), Creator(makers[1], launcher),
                                            Creator(makers[2], launcher), Creator(makers[3], launcher)};
  static nvinfer1::IPluginCreatorInterface* const all[] = {&creators[0], &creators[1], &creators[2], &creators[3]};
  count = static_cast<std::int32_t>(creators.size());
  return all;
}

SEGMENTER_PLUGINS_EXPORT void setLoggerFinder(nvinfer1::ILoggerFinder* finder) {
  segmenter_plugins::set_logger_finder(finder);
}
