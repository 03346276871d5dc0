// Streams, events and graphs of the fake driver: streams work at once or when they are waited for, and graphs keep what
// was captured, addresses and all, to do it again.
#include <cstdint>
#include <deque>
#include <memory>
#include <utility>
#include <vector>

#include "fake_state.h"

namespace fake_cuda {
namespace {

bool deferred = false;

struct Graph {
  std::vector<Work> works;
};

struct Stream {
  std::unique_ptr<Graph> capturing;
  bool broken = false;  // a capture that met what it cannot hold
  std::deque<Work> waiting;

  void step() {
    const Work work = std::move(waiting.front());
    waiting.pop_front();
    --counts.waiting;
    work();
  }
  void drain() {
    while (!waiting.empty()) step();
  }
};

struct Event {
  Stream* stream = nullptr;  // that it was last recorded on
  std::shared_ptr<const bool> passed = std::make_shared<bool>(true);
};

int StreamCreate(void** stream, unsigned) {
  GUARD("StreamCreate");
  *stream = new Stream;
  ++counts.streams;
  return 0;
}
int StreamDestroy(void* stream) {
  GUARD("StreamDestroy");
  if (device() < 0) return kInvalidContext;
  static_cast<Stream*>(stream)->drain();
  delete static_cast<Stream*>(stream);
  --counts.streams;
  return 0;
}
int StreamSynchronize(void* stream) {
  GUARD("StreamSynchronize");
  ++counts.stream_waits;
  static_cast<Stream*>(stream)->drain();
  return static_cast<Stream*>(stream)->capturing ? kInvalidValue : 0;
}
// Steps the stream an event was recorded on until it has passed that.
bool pass(const Event& recorded) {
  while (!*recorded.passed && !recorded.stream->waiting.empty()) recorded.stream->step();
  return *recorded.passed;
}
int StreamWaitEvent(void* stream, void* event, unsigned) {
  GUARD("StreamWaitEvent");
  if (event == nullptr) return kInvalidValue;
  return submit(stream, [recorded = *static_cast<Event*>(event)] { pass(recorded); });
}
int StreamBeginCapture(void* stream, int) {
  GUARD("StreamBeginCapture");
  static_cast<Stream*>(stream)->capturing = std::make_unique<Graph>();
  ++counts.captures;
  return 0;
}
int StreamEndCapture(void* stream, void** graph) {
  auto* const there = static_cast<Stream*>(stream);
  const int status = failing("StreamEndCapture");
  const std::lock_guard lock(mutex);
  if (status != 0 || there->broken) {
    there->capturing.reset();
    there->broken = false;
    *graph = nullptr;
    return status != 0 ? status : kInvalidValue;
  }
  *graph = there->capturing.release();
  ++counts.graphs;
  return 0;
}
int EventCreate(void** event, unsigned) {
  GUARD("EventCreate");
  *event = new Event;
  ++counts.events;
  return 0;
}
int EventRecord(void* event, void* stream) {
  GUARD("EventRecord");
  if (event == nullptr) return kInvalidValue;
  const auto passed = std::make_shared<bool>(false);
  *static_cast<Event*>(event) = {static_cast<Stream*>(stream), passed};
  return submit(stream, [passed] { *passed = true; });
}
int EventSynchronize(void* event) {
  GUARD("EventSynchronize");
  if (event == nullptr) return kInvalidValue;
  return pass(*static_cast<Event*>(event)) ? 0 : kInvalidValue;
}
int EventDestroy(void* event) {
  GUARD("EventDestroy");
  if (device() < 0) return kInvalidContext;
  delete static_cast<Event*>(event);
  --counts.events;
  return 0;
}
int GraphInstantiateWithFlags(void** exec, void* graph, unsigned long long) {
  GUARD("GraphInstantiateWithFlags");
  *exec = new Graph(*static_cast<Graph*>(graph));
  ++counts.execs;
  return 0;
}
int GraphLaunch(void* exec, void* stream) {
  GUARD("GraphLaunch");
  ++counts.launches;
  for (const Work& work : static_cast<Graph*>(exec)->works) submit(stream, work);
  return 0;
}
int GraphExecDestroy(void* exec) {
  GUARD("GraphExecDestroy");
  if (device() < 0) return kInvalidContext;
  delete static_cast<Graph*>(exec);
  --counts.execs;
  return 0;
}
int GraphDestroy(void* graph) {
  GUARD("GraphDestroy");
  delete static_cast<Graph*>(graph);
  --counts.graphs;
  return 0;
}

}  // namespace

int submit(void* stream, Work work) {
  const std::lock_guard lock(mutex);
  auto* const there = static_cast<Stream*>(stream);
  if (there != nullptr && there->capturing) {
    there->capturing->works.push_back(std::move(work));
  } else if (there != nullptr && deferred) {
    there->waiting.push_back(std::move(work));
    ++counts.waiting;
  } else {
    work();
  }
  return 0;
}

const Functions& of_streams() {
  static const Functions found = {NAMED(StreamCreate),
                                  NAMED(StreamDestroy),
                                  NAMED(StreamSynchronize),
                                  NAMED(StreamWaitEvent),
                                  NAMED(StreamBeginCapture),
                                  NAMED(StreamEndCapture),
                                  NAMED(EventCreate),
                                  NAMED(EventRecord),
                                  NAMED(EventSynchronize),
                                  NAMED(EventDestroy),
                                  NAMED(GraphInstantiateWithFlags),
                                  NAMED(GraphLaunch),
                                  NAMED(GraphExecDestroy),
                                  NAMED(GraphDestroy)};
  return found;
}

}  // namespace fake_cuda

using fake_cuda::mutex;
using fake_cuda::Stream;

EXPORTED void fake_cuda_defer(int wanted) {
  const std::lock_guard lock(mutex);
  fake_cuda::deferred = wanted != 0;
}

EXPORTED int fake_cuda_submit(void* stream, void (*work)(void*), void* data, void (*drop)(void*)) {
  const std::shared_ptr<void> held(data, drop);
  if (const int status = fake_cuda::failing("submit")) {
    const std::lock_guard lock(mutex);
    if (auto* const there = static_cast<Stream*>(stream); there != nullptr && there->capturing) there->broken = true;
    return status;
  }
  return fake_cuda::submit(stream, [=] { work(held.get()); });
}

EXPORTED int fake_cuda_capturing(void* stream) {
  const std::lock_guard lock(mutex);
  const auto* const there = static_cast<const Stream*>(stream);
  return there != nullptr && there->capturing != nullptr;
}
