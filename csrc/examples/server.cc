// A server's loop: server ENGINE THREADS < frames, one session a thread and one queue for all.
//
// Frames of the engine's size come from stdin as rgb24 (the place of a camera or a socket). Each is answered by a line,
// "FRAME CLASS": its most frequent class, in the order they are done.
#include <algorithm>
#include <array>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <exception>
#include <mutex>
#include <stdexcept>
#include <thread>
#include <utility>
#include <vector>

#include "segmenter_trt/errors.h"
#include "segmenter_trt/session.h"

namespace trt = segmenter_trt;

struct Job {
  long frame;
  std::vector<std::uint8_t> pixels;
};

// Jobs for whoever comes first; `put` waits while as many wait as there are places.
class Queue {
 public:
  explicit Queue(std::size_t places) : places_(places) {}

  void put(Job job) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return jobs_.size() < places_; });
    jobs_.push_back(std::move(job));
    changed_.notify_all();
  }

  void close() {
    const std::lock_guard lock(mutex_);
    closed_ = true;
    changed_.notify_all();
  }

  bool take(Job& job) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return closed_ || !jobs_.empty(); });
    if (jobs_.empty()) return false;
    job = std::move(jobs_.front());
    jobs_.pop_front();
    changed_.notify_all();
    return true;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Job> jobs_;
  std::size_t places_;
  bool closed_ = false;
};

void serve(trt::Session& session, Queue& queue) {
  const trt::Engine& engine = session.engine();
  const std::int64_t H = engine.manifest().height.opt, W = engine.manifest().width.opt;
  std::vector<std::uint8_t> labels(static_cast<std::size_t>(H * W));
  for (Job job; queue.take(job);) {
    try {
      session.run({job.pixels.data(), 1, H, W}, trt::LabelsView<std::uint8_t>{labels.data(), {H, W}});
    } catch (const trt::Error& error) {  // of this frame alone: the next may be served
      std::fprintf(stderr, "frame %ld: %s\n", job.frame, error.what());
      continue;
    }
    std::array<std::size_t, 256> count = {};
    for (const std::uint8_t label : labels) ++count[label];
    const auto most = static_cast<std::size_t>(std::max_element(count.begin(), count.end()) - count.begin());
    std::printf("%ld %s\n", job.frame, engine.manifest().classes[most].c_str());
  }
}

int main(int arguments, char** argument) try {
  if (arguments != 3) throw std::runtime_error("usage: server ENGINE THREADS < frames");
  const int threads = std::clamp(std::atoi(argument[2]), 1, 64);
  const trt::Engine engine = trt::Engine::open(argument[1], {.streams = threads});
  const trt::Manifest& manifest = engine.manifest();
  if (manifest.K() > 256) throw std::runtime_error("more than 256 classes: pass run a LabelsView<std::int16_t>");
  Queue queue(static_cast<std::size_t>(2 * threads));
  std::vector<trt::Session> sessions;  // made here, where an error ends the program in words
  for (int i = 0; i < threads; ++i) sessions.emplace_back(engine);
  std::vector<std::thread> workers;
  for (trt::Session& session : sessions) workers.emplace_back([&] { serve(session, queue); });

  Job job = {0, std::vector<std::uint8_t>(static_cast<std::size_t>(manifest.height.opt * manifest.width.opt * 3))};
  for (; std::fread(job.pixels.data(), 1, job.pixels.size(), stdin) == job.pixels.size(); ++job.frame) queue.put(job);
  queue.close();
  for (std::thread& worker : workers) worker.join();
  return 0;
} catch (const std::exception& error) {
  std::fprintf(stderr, "error: %s\n", error.what());
  return 2;
}
