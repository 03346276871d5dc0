// One session of a plan: its execution contexts, its stream, and for each shape its memory and its CUDA graph.
#pragma once

#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "backend.h"
#include "device_pictures.h"
#include "owners.h"
#include "places.h"
#include "plan.h"

namespace segmenter_trt::tensorrt {

class PlanRunner final : public Runner {
 public:
  PlanRunner(const Plan& plan, const SessionOptions& options);
  ~PlanRunner() override;

  void* stage(const ImageShape& shape) override;
  HostOutputs run(const ImageShape& shape, const void* input, Wanted wanted) override;
  void enqueue(const ImageShape& shape, const void* device_pixels, void* device_labels, void* stream) override;
  void* stage_picture(const WindowGrid& grid) override;
  bool label_windows(const WindowGrid& grid, const std::function<void()>& between, void* labels) override;
  bool place_resized(const ImageShape& shape, std::int64_t b, const ImagesView& picture) override;
  std::string no_graphs() const override;
  std::string windows_left() const override;
  std::string resizing_left() const override;

 private:
  enum class Work { whole, network };  // with images from the host and results back there, or without

  void release() noexcept;
  std::unique_ptr<nvinfer1::IExecutionContext> make_context() const;
  Place& place(const ImageShape& shape);
  void drop_oldest();
  Port port(const Tensor& tensor, const ImageShape& shape);
  void set_shape(nvinfer1::IExecutionContext& context, const ImageShape& shape) const;
  void set_shape(const ImageShape& shape);
  void bind(nvinfer1::IExecutionContext& context, const Place& place, const void* pixels, void* labels) const;
  std::unique_lock<std::mutex> take_turn();
  void leave_turn(std::unique_lock<std::mutex>& turn);
  cuda::Status mark(cuda::StreamHandle theirs);
  void compute(Place& place, Work work);
  void submit(nvinfer1::IExecutionContext& context, const Place& place, Work work) const;
  void download(const Place& place) const;
  void capture(const Place& place, Replay& replay, Work work);
  cuda::GraphExec captured(const Place& place, Replay& replay, Work work) const;
  void settle() const;
  void make_pictures();
  void tell(std::string& left, std::string why);
  void give_back(std::string& left, const cuda::OutOfMemory& error);
  bool window_calls(const WindowGrid& grid, const std::function<void()>& between, std::unique_lock<std::mutex>& turn);
  void require(bool done, const char* what) const;
  void network(nvinfer1::IExecutionContext& context, cuda::StreamHandle stream) const;

  const Plan& plan_;
  const cuda::Driver& driver_;
  const bool graphs_;
  SharedWorkspace* shared_ = nullptr;  // null with scratch memory of its own
  cuda::DeviceMemory scratch_;
  std::unique_ptr<nvinfer1::IExecutionContext> context_;  // of what is not captured
  cuda::Stream stream_;
  cuda::Event passed_;    // behind the last call on a stream of the caller's
  bool outside_ = false;  // whether there was one that this session's own stream has not waited for
  std::optional<DevicePictures> pictures_;
  std::list<Place> places_;  // the last used in front
  ImageShape shape_{};       // that context_ is set to
  mutable std::mutex told_;  // of the next
  std::string no_graphs_;    // why a shape was not captured, the last one that was not
  std::string windows_left_, resizing_left_;
};

}  // namespace segmenter_trt::tensorrt
