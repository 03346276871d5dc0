// One line to the program that loaded the plugins: through its TensorRT logger, or to the standard error output.
#pragma once

#include <NvInferRuntime.h>

#include <string>

namespace segmenter_plugins {

// Keeps the finder if its library is of the TensorRT these plugins were compiled for: between major versions the tables
// of virtual functions of loggers differ (those of plugins do not), so that others get the standard error output.
void set_logger_finder(nvinfer1::ILoggerFinder* finder) noexcept;

void error(const std::string& message) noexcept;

}  // namespace segmenter_plugins
