// One session of a plan: its execution contexts, its stream, and for each shape its memory and its CUDA graph.
#pragma once

#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "backend.h"
#include "owners.h"
#include "plan.h"

namespace segmenter_trt::tensorrt {

class PlanRunner final : public Runner {
 public:
  PlanRunner(const Plan& plan, const SessionOptions& options);
  ~PlanRunner() override;

  void* stage(const ImageShape& shape) override;
  HostOutputs run(const ImageShape& shape, const void* input, Wanted wanted) override;
  void enqueue(const ImageShape& shape, const void* device_pixels, void* device_labels, void* stream) override;
  std::string no_graphs() const override;

 private:
  struct Port;   // a tensor of a shape: where it lies on the device and, where the host sees it, on the host
  struct Place;  // everything of one shape

  void release() noexcept;
  std::unique_ptr<nvinfer1::IExecutionContext> make_context() const;
  Place& place(const ImageShape& shape);
  Port port(const Tensor& tensor, const ImageShape& shape);
  void set_shape(nvinfer1::IExecutionContext& context, const ImageShape& shape) const;
  void set_shape(const ImageShape& shape);
  void bind(nvinfer1::IExecutionContext& context, const Place& place, const void* pixels, void* labels) const;
  void work(nvinfer1::IExecutionContext& context, const Place& place) const;
  void capture(Place& place);
  cuda::GraphExec captured(Place& place) const;
  void require(bool done, const char* what) const;
  void network(nvinfer1::IExecutionContext& context, cuda::StreamHandle stream) const;

  const Plan& plan_;
  const cuda::Driver& driver_;
  const bool graphs_;
  SharedWorkspace* shared_ = nullptr;  // null with scratch memory of its own
  cuda::DeviceMemory scratch_;
  std::unique_ptr<nvinfer1::IExecutionContext> context_;  // of what is not captured
  cuda::Stream stream_;
  cuda::Event passed_;       // behind the last call on a stream of the caller's
  bool outside_ = false;     // whether there was one that this session's own stream has not waited for
  std::list<Place> places_;  // the last used in front
  ImageShape shape_{};       // that context_ is set to
  mutable std::mutex told_;  // of the next
  std::string no_graphs_;    // why a shape was not captured, the last one that was not
};

}  // namespace segmenter_trt::tensorrt
