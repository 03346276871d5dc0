// The one exception of launching and of the plugins: its message is one line that names the thing, what was wanted and
// the next step.
#pragma once

#include <stdexcept>

namespace segmenter_launch {

class Failure : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

}  // namespace segmenter_launch
