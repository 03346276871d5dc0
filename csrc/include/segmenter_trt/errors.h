// What goes wrong with an engine, as types; every message is one line: the thing, what was wanted, what came, what to
// do.
#pragma once

#include <stdexcept>

namespace segmenter_trt {

// Visible everywhere, so that a backend in a library of its own throws what its caller catches.
#define SEGMENTER_TRT_THROWN __attribute__((visibility("default")))

// Base of every error an engine or a session throws on purpose.
class SEGMENTER_TRT_THROWN Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// The JSON beside an artifact is missing, is no manifest, or is of another format.
class SEGMENTER_TRT_THROWN ManifestError : public Error {
 public:
  using Error::Error;
};

// The artifact is missing, is not the file its manifest vouches for, or a runtime cannot open it.
class SEGMENTER_TRT_THROWN ArtifactError : public Error {
 public:
  using Error::Error;
};

// This machine lacks the library, the driver or the device: nothing is wrong with the engine.
class SEGMENTER_TRT_THROWN Unavailable : public Error {
 public:
  using Error::Error;
};

// Images, labels or options that this engine does not take.
class SEGMENTER_TRT_THROWN InputError : public Error {
 public:
  using Error::Error;
};

// The network failed while it ran, or gave scores that are no numbers.
class SEGMENTER_TRT_THROWN RunError : public Error {
 public:
  using Error::Error;
};

#undef SEGMENTER_TRT_THROWN

}  // namespace segmenter_trt
