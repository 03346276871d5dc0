// What is of one process, and is none of its children's made by fork(), which have none of its threads.
#pragma once

#include <unistd.h>

#include <memory>
#include <utility>

namespace segmenter_trt {

// The process that made it, as long as no child of it asks.
class Process {
 public:
  bool is_this() const noexcept { return made_by_ == getpid(); }

 private:
  pid_t made_by_ = getpid();
};

// An object that only the process that made it takes apart: in a child, that would wait for threads it has not.
template <class Object>
std::shared_ptr<Object> of_this_process(std::unique_ptr<Object> object) {
  const auto free = [maker = Process()](Object* held) {
    if (maker.is_this()) std::default_delete<Object>()(held);
  };
  return {object.release(), free};
}

}  // namespace segmenter_trt
