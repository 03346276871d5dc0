// What this library is and how it was built.
#pragma once

namespace segmenter_trt {

struct BuildInfo {
  const char* version;   // of the whole project, as in segmenter/version.py
  const char* compiler;  // name and version
  const char* standard;  // of C++
  const char* simd;      // the instruction set the routines use on this machine
  bool tensorrt;         // whether a backend for plans lies where engines look for it
};

BuildInfo build_info() noexcept;

}  // namespace segmenter_trt
