// What a program's environment says.
#pragma once

#include <cstdlib>
#include <string>

namespace segmenter_trt {

// The value of a variable; empty too where it is not set, for a name that is empty names nothing.
inline std::string environment(const char* variable) {
  const char* const value = std::getenv(variable);
  return value == nullptr ? "" : value;
}

}  // namespace segmenter_trt
