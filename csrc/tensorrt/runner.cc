#include "runner.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string>

#include "dims.h"
#include "segmenter_trt/errors.h"

namespace segmenter_trt::tensorrt {
namespace {

using cuda::pointer;

constexpr std::size_t kMostShapes = 8;      // each keeps its memory and its graph
constexpr std::uintptr_t kAlignment = 256;  // of every address a plan is given, as TensorRT demands

void require_aligned(const void* address, const char* what) {
  const std::uintptr_t past = reinterpret_cast<std::uintptr_t>(address) % kAlignment;
  if (past == 0) return;
  throw InputError(std::string(what) + " on the GPU begin " + std::to_string(past) + " bytes past a multiple of " +
                   std::to_string(kAlignment) + ", which TensorRT does not take; copy them to memory of their own");
}

// TensorRT-RTX can tell, from 1.2 on; TensorRT cannot.
template <class Context>
bool can_be_captured(const Context& context, [[maybe_unused]] cudaStream_t stream) {
  if constexpr (requires { context.isStreamCapturable(stream); }) return context.isStreamCapturable(stream);
  return true;
}

}  // namespace

PlanRunner::PlanRunner(const Plan& plan, const SessionOptions& options)
    : plan_(plan), driver_(plan.driver()), graphs_(options.graphs) {
  const cuda::Current current(driver_, plan_.context());
  try {
    if (options.shared_workspace) {
      shared_ = &plan_.shared_workspace();
    } else {
      scratch_ = plan_.make_scratch();
    }
    context_ = make_context();
    stream_ = cuda::stream(driver_);
    passed_ = cuda::event(driver_);
    if (plan_.launcher() != nullptr) make_pictures();
  } catch (...) {
    // here, for members go after `current`
    release();
    throw;
  }
}

PlanRunner::~PlanRunner() {
  const bool pushed = driver_.CtxPushCurrent(plan_.context().get()) == 0;
  // nothing may be given back that a stream still reads
  if (outside_) driver_.EventSynchronize(passed_.get());
  driver_.StreamSynchronize(stream_.get());
  release();
  if (cuda::Context popped = nullptr; pushed) driver_.CtxPopCurrent(&popped);
}

void PlanRunner::release() noexcept {
  pictures_.reset();
  places_.clear();
  context_.reset();
  scratch_ = {};
  stream_ = {};
  passed_ = {};
}

// All contexts of a session compute in one scratch memory, for its work is kept in order.
std::unique_ptr<nvinfer1::IExecutionContext> PlanRunner::make_context() const {
  auto made = plan_.make_context(graphs_);
  const cuda::DeviceMemory& memory = shared_ == nullptr ? scratch_ : shared_->memory;
  made->setDeviceMemoryV2(pointer(memory.get()), plan_.scratch_bytes());
  return made;
}

void PlanRunner::require(bool done, const char* what) const {
  if (!done) throw RunError(std::string(kEngine) + ": " + what + " failed: " + plan_.log().take());
}

void PlanRunner::set_shape(nvinfer1::IExecutionContext& context, const ImageShape& shape) const {
  if (context.setInputShape(kImages, dims_of(shape, plan_.input()))) return;
  throw InputError(text(shape) + ": outside this plan's profile (" + plan_.log().take() + "); build it for that shape");
}

void PlanRunner::set_shape(const ImageShape& shape) {
  if (shape == shape_) return;
  shape_ = {};
  set_shape(*context_, shape);
  shape_ = shape;
}

Port PlanRunner::port(const Tensor& tensor, const ImageShape& shape) {
  Port made{&tensor, context_->getTensorShape(tensor.name.c_str()), 0, {}, {}};
  made.bytes = count(made.dims) * tensor.element_bytes;
  // what reads and writes them goes by the images' size, so that others would be passed the end of
  const bool fits = (tensor.name != kLabels || same(made.dims, {shape.B, shape.H, shape.W})) &&
                    (tensor.name != kMasks || (made.dims.nbDims == 4 && made.dims.d[0] == shape.B));
  if (made.bytes == 0 || !fits) {
    throw RunError(std::string(kEngine) + ": tensor " + tensor.name + " is " + text(made.dims) + " of images " +
                   text(dims_of(shape, plan_.input())) + "; build the plan again");
  }
  made.device = cuda::device_memory(driver_, made.bytes);
  if (tensor.input || tensor.name == kLabels || tensor.name == kMasks)
    made.host = cuda::pinned_memory(driver_, made.bytes);
  return made;
}

Place& PlanRunner::place(const ImageShape& shape) {
  const auto found = std::find_if(places_.begin(), places_.end(), [&](const Place& one) { return one.shape == shape; });
  if (found != places_.end()) {
    places_.splice(places_.begin(), places_, found);
    return places_.front();
  }
  set_shape(shape);
  if (places_.size() >= kMostShapes) drop_oldest();
  Place made{};
  made.shape = shape;
  while (made.ports.size() < plan_.tensors().size()) {
    try {
      made.ports.push_back(port(plan_.tensors()[made.ports.size()], shape));
    } catch (const cuda::OutOfMemory&) {
      if (places_.empty()) throw;
      drop_oldest();
    }
  }
  places_.push_front(std::move(made));
  return places_.front();
}

// The place that was not used for longest, once no stream works in it.
void PlanRunner::drop_oldest() {
  if (outside_) {
    cuda::check(driver_, driver_.EventSynchronize(passed_.get()), "waiting for the caller's stream");
    outside_ = false;
  }
  settle();
  places_.pop_back();
}

void PlanRunner::bind(nvinfer1::IExecutionContext& context, const Place& place, const void* pixels,
                      void* labels) const {
  for (const Port& one : place.ports) {
    void* address = pointer(one.device.get());
    if (one.tensor->input && pixels != nullptr) address = const_cast<void*>(pixels);
    if (one.tensor->name == kLabels && labels != nullptr) address = labels;
    require(context.setTensorAddress(one.tensor->name.c_str(), address), "binding memory");
  }
}

void PlanRunner::network(nvinfer1::IExecutionContext& context, cuda::StreamHandle stream) const {
  require(context.enqueueV3(reinterpret_cast<cudaStream_t>(stream)), "the network");
}

// The network, and around it images to the device and what the host sees back.
void PlanRunner::submit(nvinfer1::IExecutionContext& context, const Place& place, Work work) const {
  for (const Port& one : place.ports) {
    if (!one.tensor->input || work == Work::network) continue;
    cuda::check(driver_, driver_.MemcpyHtoDAsync(one.device.get(), one.host.get(), one.bytes, stream_.get()),
                "images to the GPU");
  }
  network(context, stream_.get());
  if (work == Work::whole) download(place);
}

void PlanRunner::download(const Place& place) const {
  for (const Port& one : place.ports) {
    if (one.tensor->input || !one.host) continue;
    cuda::check(driver_, driver_.MemcpyDtoHAsync(one.host.get(), one.device.get(), one.bytes, stream_.get()),
                "results from the GPU");
  }
}

// A graph of the place's work, in a context of its own.
cuda::GraphExec PlanRunner::captured(const Place& place, Replay& replay, Work work) const {
  const cuda::StreamHandle stream = stream_.get();
  replay.context = make_context();
  set_shape(*replay.context, place.shape);
  bind(*replay.context, place, nullptr, nullptr);
  // the first call prepares what a graph must not hold: it may allocate, and computes what follows from the shape
  network(*replay.context, stream);
  if (!can_be_captured(*replay.context, reinterpret_cast<cudaStream_t>(stream))) {
    throw RunError(std::string(kEngine) + " says that this plan cannot be captured");
  }
  cuda::check(driver_, driver_.StreamBeginCapture(stream, cuda::kCaptureThreadLocal), "beginning a capture");
  std::string failure;
  try {
    submit(*replay.context, place, work);
  } catch (const std::exception& error) {
    failure = error.what();
  }
  // whatever failed: a stream that goes on capturing does no work
  cuda::GraphHandle handle = nullptr;
  const cuda::Status ended = driver_.StreamEndCapture(stream, &handle);
  const cuda::Graph graph(driver_, handle);
  if (!failure.empty()) throw RunError(failure);
  cuda::check(driver_, ended, "ending a capture");
  cuda::GraphExecHandle exec = nullptr;
  cuda::check(driver_, driver_.GraphInstantiateWithFlags(&exec, graph.get(), 0), "making a graph");
  return {driver_, exec};
}

// Leaves the place without a graph where its work cannot be captured; it then goes on without.
void PlanRunner::capture(const Place& place, Replay& replay, Work work) {
  replay.capturable = false;
  try {
    replay.graph = captured(place, replay, work);
  } catch (const Error& error) {
    driver_.StreamSynchronize(stream_.get());  // the first call of the context that goes
    replay.context.reset();
    plan_.log().take();
    const std::lock_guard lock(told_);
    no_graphs_ = text(place.shape) + ": " + error.what();
  }
}

std::string PlanRunner::no_graphs() const {
  if (!graphs_) return "opened without them";
  const std::lock_guard lock(told_);
  return no_graphs_;
}

void* PlanRunner::stage(const ImageShape& shape) {
  const cuda::Current current(driver_, plan_.context());
  return place(shape).port(kImages).host.get();
}

// Has the session's stream wait for whoever computes in its memory; the lock is held until the stream has passed.
std::unique_lock<std::mutex> PlanRunner::take_turn() {
  std::unique_lock<std::mutex> turn;
  if (shared_ != nullptr) {
    turn = std::unique_lock(shared_->mutex);
    cuda::check(driver_, driver_.StreamWaitEvent(stream_.get(), shared_->last.get(), 0), "taking turns");
  }
  if (outside_) {
    cuda::check(driver_, driver_.StreamWaitEvent(stream_.get(), passed_.get(), 0), "waiting for the caller's stream");
    outside_ = false;
  }
  return turn;
}

// Lets others compute in that memory, behind what the session's stream was given.
void PlanRunner::leave_turn(std::unique_lock<std::mutex>& turn) {
  if (shared_ == nullptr) return;
  cuda::check(driver_, driver_.EventRecord(shared_->last.get(), stream_.get()), "taking turns");
  turn.unlock();
}

void PlanRunner::compute(Place& place, Work work) {
  Replay& replay = work == Work::whole ? place.whole : place.network;
  if (graphs_ && place.seen && replay.capturable && !replay.graph) capture(place, replay, work);
  if (replay.graph) {
    cuda::check(driver_, driver_.GraphLaunch(replay.graph.get(), stream_.get()), "the network's graph");
  } else {
    set_shape(place.shape);
    bind(*context_, place, nullptr, nullptr);
    submit(*context_, place, work);
  }
  place.seen = true;
}

// Waits until memory that the stream works in may go.
void PlanRunner::settle() const { cuda::check(driver_, driver_.StreamSynchronize(stream_.get()), "the last pictures"); }

HostOutputs PlanRunner::run(const ImageShape& shape, const void* input, Wanted) {
  const cuda::Current current(driver_, plan_.context());
  Place& here = place(shape);
  Port& images = here.port(kImages);
  if (input != nullptr && input != images.host.get()) std::memcpy(images.host.get(), input, images.bytes);
  const std::unique_lock<std::mutex> turn = take_turn();
  try {
    if (input != nullptr) {
      compute(here, Work::whole);
    } else {
      compute(here, Work::network);
      download(here);
    }
    cuda::check(driver_, driver_.StreamSynchronize(stream_.get()), "the network");
  } catch (...) {
    // before others take their turn in the memory it computes in
    driver_.StreamSynchronize(stream_.get());
    throw;
  }

  HostOutputs outputs{};
  if (plan_.gives(kMasks)) {
    const Port& masks = here.port(kMasks);
    outputs.masks = {static_cast<const float*>(masks.host.get()), masks.dims.d[0], masks.dims.d[1], masks.dims.d[2],
                     masks.dims.d[3]};
  }
  if (plan_.gives(kLabels)) {
    const Port& labels = here.port(kLabels);
    outputs.labels = labels.host.get();
    if (labels.tensor->type == nvinfer1::DataType::kINT32) {
      const auto* const wide = static_cast<const std::int32_t*>(labels.host.get());
      here.labels.resize(labels.bytes / sizeof(std::int32_t));
      std::transform(wide, wide + here.labels.size(), here.labels.begin(),
                     [](std::int32_t label) { return static_cast<std::int16_t>(label); });
      outputs.labels = here.labels.data();
    }
  }
  return outputs;
}

void PlanRunner::enqueue(const ImageShape& shape, const void* device_pixels, void* device_labels, void* stream) {
  if (plan_.input() != Input::pixels || !plan_.gives(kLabels)) {
    throw InputError(std::string("this plan cannot run on images on the GPU: it wants ") +
                     (plan_.gives(kLabels) ? "normalised images" : "its labels made on the CPU") +
                     "; export with --input pixels and labels, and build again");
  }
  require_aligned(device_pixels, "images");
  require_aligned(device_labels, "labels");
  const cuda::Current current(driver_, plan_.context());
  Place& here = place(shape);
  if (here.port(kLabels).tensor->type != nvinfer1::DataType::kUINT8) {
    throw InputError("labels of more than 256 classes leave a plan as int32, and are made int16 on the CPU; call run");
  }
  const auto theirs = static_cast<cuda::StreamHandle>(stream);
  std::unique_lock<std::mutex> turn;
  if (shared_ != nullptr) {
    turn = std::unique_lock(shared_->mutex);
    cuda::check(driver_, driver_.StreamWaitEvent(theirs, shared_->last.get(), 0), "taking turns");
  }
  // another stream of the caller's may still be at this context's memory
  if (outside_) cuda::check(driver_, driver_.StreamWaitEvent(theirs, passed_.get(), 0), "the session's last call");
  set_shape(shape);
  bind(*context_, here, device_pixels, device_labels);
  try {
    network(*context_, theirs);
  } catch (...) {
    // it may have put some of its work there
    mark(theirs);
    throw;
  }
  cuda::check(driver_, mark(theirs), "marking the caller's stream");
}

// Has whoever computes in the same memory next wait for what a stream of the caller's was given.
cuda::Status PlanRunner::mark(cuda::StreamHandle theirs) {
  cuda::Status status = shared_ == nullptr ? 0 : driver_.EventRecord(shared_->last.get(), theirs);
  if (status == 0) status = driver_.EventRecord(passed_.get(), theirs);
  if (status == 0) {
    outside_ = true;
  } else {
    // without marks nobody could wait later
    driver_.StreamSynchronize(theirs);
  }
  return status;
}

}  // namespace segmenter_trt::tensorrt
