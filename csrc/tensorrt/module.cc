// What segmenter_trt asks this library for.
#include "plan.h"

namespace {

std::unique_ptr<segmenter_trt::Backend> make(const segmenter_trt::BackendRequest& request) {
  return std::make_unique<segmenter_trt::tensorrt::Plan>(request);
}

}  // namespace

extern "C" __attribute__((visibility("default"))) const segmenter_trt::BackendModule* segmenter_trt_backend_module() {
  static const segmenter_trt::BackendModule module = {segmenter_trt::kBackendAbi, &make};
  return &module;
}
