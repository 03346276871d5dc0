// Threads kept for work that is shared again and again. Started when first needed; starting none is no error.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace segmenter_trt {

// Threads for `tasks` pieces of work: as many as asked for, or with 0 one for every `pixels_per_thread`, at most
// the cores this process may use. Throws std::invalid_argument for a negative number.
int choose_threads(int wanted, std::int64_t tasks, std::int64_t pixels, std::int64_t pixels_per_thread);

// Used by one thread at a time.
class Workers {
 public:
  Workers() = default;
  Workers(const Workers&) = delete;
  Workers& operator=(const Workers&) = delete;
  ~Workers();

  // Calls work(0), work(1), ... at most `threads` of them at the same time, one of them here, until each returns;
  // rethrows the first exception. After a call with as many threads, nothing is allocated.
  template <class Work>
  void run(int threads, const Work& work) {
    run(
        threads, [](const void* context, int index) { (*static_cast<const Work*>(context))(index); }, &work);
  }

 private:
  using Call = void (*)(const void* context, int index);

  void run(int threads, Call call, const void* context);
  void serve(int index);
  void guarded(Call call, const void* context, int index) noexcept;

  std::mutex lock_;
  std::condition_variable begun_, ended_;
  std::vector<std::thread> threads_;
  Call call_ = nullptr;
  const void* context_ = nullptr;
  std::uint64_t round_ = 0;
  int wanted_ = 0;   // threads_ that take part in this round
  int pending_ = 0;  // of them, those that have not returned
  bool closing_ = false;
  std::exception_ptr failure_;
};

}  // namespace segmenter_trt
