// Pictures of other sizes than the network's, on the GPU from the first pixel to the last label.
#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

#include "checks.h"
#include "dims.h"
#include "runner.h"

namespace segmenter_trt::tensorrt {

void PlanRunner::make_pictures() {
  pictures_.emplace(driver_, *plan_.launcher(), stream_.get(), plan_.input(), plan_.preprocess());
}

void PlanRunner::tell(std::string& left, std::string why) {
  const std::lock_guard lock(told_);
  left = std::move(why);
}

std::string PlanRunner::windows_left() const {
  const std::lock_guard lock(told_);
  return windows_left_;
}

std::string PlanRunner::resizing_left() const {
  const std::lock_guard lock(told_);
  return resizing_left_;
}

// All memory of pictures, which the CPU's way does without: there may be enough for that.
void PlanRunner::give_back(std::string& left, const cuda::OutOfMemory& error) {
  settle();  // whatever was put on the stream before memory was short
  make_pictures();
  tell(left, std::string(error.what()) + "; the next picture is tried there again");
}

void* PlanRunner::stage_picture(const WindowGrid& grid) {
  if (!pictures_ || !plan_.merges_windows() || !pictures_->merges(grid)) return nullptr;
  const cuda::Current current(driver_, plan_.context());
  try {
    return pictures_->stage(grid.H, grid.W);
  } catch (const cuda::OutOfMemory& error) {
    give_back(windows_left_, error);
    return nullptr;
  }
}

bool PlanRunner::label_windows(const WindowGrid& grid, const std::function<void()>& between, void* labels) {
  const cuda::Current current(driver_, plan_.context());
  std::unique_lock<std::mutex> turn = take_turn();
  bool promised = false;
  try {
    pictures_->begin(grid);
    promised = window_calls(grid, between, turn);
    if (promised) pictures_->merge(grid);
  } catch (const cuda::OutOfMemory& error) {
    give_back(windows_left_, error);
    return false;
  } catch (...) {
    // before others take their turn in the memory it computes in
    driver_.StreamSynchronize(stream_.get());
    throw;
  }
  settle();
  tell(windows_left_, {});
  const void* const found = promised ? pictures_->labels() : nullptr;
  if (found == nullptr) return false;
  std::memcpy(labels, found, static_cast<std::size_t>(grid.H * grid.W) * (grid.K <= kMostByteClasses ? 1 : 2));
  return true;
}

// The network on all windows; false where its masks are others than the grid says. Masks are kept outside of the memory
// it computes in, so that others may have their turn in that whenever the caller is called back.
bool PlanRunner::window_calls(const WindowGrid& grid, const std::function<void()>& between,
                              std::unique_lock<std::mutex>& turn) {
  const std::int64_t windows = grid.rows() * grid.columns();
  for (std::int64_t first = 0; first < windows; first += grid.batch) {
    if (between && first != 0) {
      leave_turn(turn);
      between();
      turn = take_turn();
    }
    const std::int64_t count = std::min(grid.batch, windows - first);
    Place& here = place({std::max(count, grid.least), grid.window, grid.window});
    const Port &images = here.port(kImages), &masks = here.port(kMasks);
    if (!same(masks.dims, {here.shape.B, grid.K, grid.h, grid.w})) return false;
    const auto bytes = images.bytes / static_cast<std::size_t>(here.shape.B);
    for (std::int64_t i = 0; i < count; ++i) {
      pictures_->cut(grid, first + i, images.device.get() + static_cast<std::size_t>(i) * bytes);
    }
    compute(here, Work::network);
    pictures_->keep(grid, first, count, masks.device.get());
  }
  return true;
}

bool PlanRunner::place_resized(const ImageShape& shape, std::int64_t b, const ImagesView& picture) {
  const Size size = {shape.H, shape.W};
  if (!pictures_ || !plan_.resizes_pictures() || !pictures_->resizes(picture, size)) return false;
  const cuda::Current current(driver_, plan_.context());
  try {
    const Port& images = place(shape).port(kImages);
    const std::size_t bytes = images.bytes / static_cast<std::size_t>(shape.B);
    pictures_->resize(picture, size, images.device.get() + static_cast<std::size_t>(b) * bytes);
  } catch (const cuda::OutOfMemory& error) {
    give_back(resizing_left_, error);
    return false;
  }
  tell(resizing_left_, {});
  return true;
}

}  // namespace segmenter_trt::tensorrt
