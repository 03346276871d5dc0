// A program of an engine's user, driven by tests/test_cpp_session.py: raw images in, raw results out.
//
//   session_program labels  ENGINE RUNTIME B H W IMAGES RESULT [THREADS PRECISION]
//   session_program logits  ENGINE RUNTIME B H W IMAGES RESULT
//   session_program windows ENGINE RUNTIME 1 H W IMAGES RESULT WINDOW STRIDE BATCH
//   session_program many    ENGINE RUNTIME B H W IMAGES RESULT THREADS RUNS   each thread's own session, all bit-equal
//   session_program speed   ENGINE RUNTIME B H W IMAGES RESULT THREADS SECONDS
//   session_program memory  ENGINE RUNTIME B H W IMAGES RESULT RUNS           growth after a tenth of the runs
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <string>
#include <thread>
#include <vector>

#include "segmenter_trt/errors.h"
#include "segmenter_trt/session.h"
#include "segmenter_trt/sliding_window.h"

namespace trt = segmenter_trt;

namespace {

struct Arguments {
  std::string task, engine, runtime;
  std::int64_t B, H, W;
  std::string images, result;
  std::vector<std::string> more;

  long number(std::size_t index) const { return std::stol(more.at(index)); }
};

std::vector<std::uint8_t> read(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

template <class Element>
void write(const std::string& path, const std::vector<Element>& values) {
  std::ofstream(path, std::ios::binary)
      .write(reinterpret_cast<const char*>(values.data()),
             static_cast<std::streamsize>(values.size() * sizeof(Element)));
}

long resident_kib() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with("VmRSS:")) return std::stol(line.substr(6));
  }
  return -1;
}

template <class Label>
int perform(const Arguments& given, const trt::Engine& engine) {
  const std::vector<std::uint8_t> pixels = read(given.images);
  const trt::ImagesView images = {pixels.data(), given.B, given.H, given.W};
  const auto area = static_cast<std::size_t>(given.B * given.H * given.W);
  std::vector<Label> labels(area);
  const trt::LabelsView<Label> view = {labels.data(), {given.H, given.W}};
  trt::Session session(engine);
  if (given.task == "logits") {
    std::vector<float> logits(area * static_cast<std::size_t>(engine.manifest().K()));
    session.logits(images, logits.data());
    write(given.result, logits);
    return 0;
  }
  if (given.task == "windows") {
    trt::run_sliding_window(session, images, view, {given.number(0), given.number(1), given.number(2)});
  } else {
    session.run(images, view);
  }
  if (given.task == "many") {
    std::atomic<int> different = 0;
    std::vector<std::thread> threads;
    for (long i = 0; i < given.number(0); ++i) {
      threads.emplace_back([&] {
        trt::Session own(engine);
        std::vector<Label> again(area);
        for (long run = 0; run < given.number(1); ++run) {
          std::fill(again.begin(), again.end(), Label{77});
          own.run(images, {again.data(), {given.H, given.W}});
          different += again == labels ? 0 : 1;
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    std::printf("%d\n", different.load());
  }
  if (given.task == "memory") {
    long before = 0;
    for (long run = 0; run < given.number(0); ++run) {
      if (run == given.number(0) / 10) before = resident_kib();
      session.run(images, view);
    }
    std::printf("%ld\n", resident_kib() - before);
  }
  if (given.task == "speed") {
    using Clock = std::chrono::steady_clock;
    const auto seconds = std::chrono::seconds(given.number(1));
    const auto begin = Clock::now();
    long runs = 0;
    for (; Clock::now() - begin < seconds; ++runs) session.run(images, view);
    const std::chrono::duration<double> taken = Clock::now() - begin;
    std::printf("%.3f\n", static_cast<double>(runs * given.B) / taken.count());
  }
  write(given.result, labels);
  return 0;
}

}  // namespace

int main(int count, char** values) {
  if (count < 9) {
    std::fprintf(stderr, "usage: session_program TASK ENGINE RUNTIME B H W IMAGES RESULT ...\n");
    return 2;
  }
  const Arguments given = {values[1],
                           values[2],
                           values[3],
                           std::atoll(values[4]),
                           std::atoll(values[5]),
                           std::atoll(values[6]),
                           values[7],
                           values[8],
                           {values + 9, values + count}};
  try {
    trt::EngineOptions options;
    options.runtime = given.runtime;
    options.threads = 1;
    if (given.task == "labels" && given.more.size() == 2) {
      options.threads = static_cast<int>(given.number(0));
      options.precision = given.more[1];
    }
    if (given.task == "speed") options.threads = static_cast<int>(given.number(0));
    const trt::Engine engine = trt::Engine::open(given.engine, options);
    return engine.manifest().K() <= 256 ? perform<std::uint8_t>(given, engine) : perform<std::int16_t>(given, engine);
  } catch (const trt::Error& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 1;
  }
}
