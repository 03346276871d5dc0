#include "device_pictures.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "checks.h"
#include "failure.h"
#include "library.h"
#include "resize_filter.h"
#include "segmenter_trt/normalize.h"

namespace segmenter_trt::tensorrt {
namespace {

namespace launch = segmenter_launch;

using cuda::pointer;

constexpr std::size_t kMostMaskBytes = std::size_t{1} << 30;
constexpr std::int64_t kMostPixels = std::int64_t{1} << 31;
constexpr std::size_t kMostFilters = 16;  // two a size
constexpr std::size_t kFilterAlignment = 256;

std::size_t mask_bytes(const WindowGrid& grid) { return static_cast<std::size_t>(grid.K * grid.h * grid.w) * 4; }

std::size_t label_bytes(const WindowGrid& grid) {
  return static_cast<std::size_t>(grid.H * grid.W) * (grid.K <= kMostByteClasses ? 1 : 2);
}

launch::MergeWindowsCall merge_call(const WindowGrid& grid, cuda::Address masks, cuda::Address labels,
                                    cuda::Address odd) {
  return {grid.K,      grid.h,      grid.w,      grid.padded.height, grid.padded.width, grid.H,          grid.W,
          grid.window, grid.stride, grid.rows(), grid.columns(),     pointer(masks),    pointer(labels), pointer(odd)};
}

// One pass: along the rows of an image, or along its columns.
launch::ResizeCall pass(bool along_rows, std::int64_t H, std::int64_t W, std::int64_t to) {
  if (along_rows) return {H, W, to, 3, 1, nullptr, nullptr, nullptr, nullptr};
  return {1, H, to, W * 3, 1, nullptr, nullptr, nullptr, nullptr};
}

}  // namespace

bool DevicePictures::merges(const WindowGrid& grid) const {
  const std::int64_t windows = grid.rows() * grid.columns();
  if (grid.W >= kMostPixels / grid.H || static_cast<std::size_t>(windows) > kMostMaskBytes / mask_bytes(grid)) {
    return false;
  }
  try {
    launcher_.require(merge_call(grid, 0, 0, 0));
    if (input_ == Input::normalized) launcher_.require(launch::NormalizeCall{1, grid.H * grid.W, {}, {}, {}});
  } catch (const launch::Failure&) {
    return false;
  }
  return true;
}

bool DevicePictures::resizes(const ImagesView& picture, Size size) const {
  try {
    // whichever side is first: the larger of both is what counts
    launcher_.require(pass(true, std::max(picture.H, size.height), picture.W, size.width));
    launcher_.require(pass(false, picture.H, std::max(picture.W, size.width), size.height));
    if (input_ == Input::normalized) launcher_.require(launch::NormalizeCall{1, size.height * size.width, {}, {}, {}});
  } catch (const launch::Failure&) {
    return false;
  }
  return true;
}

void DevicePictures::put(const launch::Call& call) {
  try {
    launcher_.launch(call, stream_);
  } catch (const launch::Failure& failure) {
    throw RunError(std::string(kEngine) + ": " + failure.what());
  }
}

// Memory on the device that nothing is under way in where it had to grow.
cuda::Address DevicePictures::memory(Device& kept, std::size_t bytes) {
  if (kept.replaces(bytes)) cuda::check(driver_, driver_.StreamSynchronize(stream_), "the last pictures");
  return kept.get(driver_, bytes);
}

void* DevicePictures::stage(std::int64_t H, std::int64_t W) {
  const std::size_t bytes = 2 * static_cast<std::size_t>(H * W * 3);
  const auto wait = [&](std::size_t half) {
    cuda::check(driver_, driver_.EventSynchronize(uploaded_[half].get()), "the last pictures");
  };
  half_ = 1 - half_;
  wait(half_);
  if (on_host_.replaces(bytes)) wait(1 - half_);
  auto* const both = static_cast<std::byte*>(on_host_.get(driver_, bytes));
  staged_ = both + half_ * (on_host_.bytes() / 2);
  return staged_;
}

// The staged picture.
void DevicePictures::upload(std::int64_t H, std::int64_t W) {
  const auto bytes = static_cast<std::size_t>(H * W * 3);
  picture_at_ = memory(picture_, bytes);
  cuda::check(driver_, driver_.MemcpyHtoDAsync(picture_at_, staged_, bytes, stream_), "a picture to the GPU");
  cuda::check(driver_, driver_.EventRecord(uploaded_[half_].get(), stream_), "marking an upload");
}

// uint8 [count, 3] to float32 [3, count].
void DevicePictures::normalize(cuda::Address pixels, std::int64_t count, cuda::Address planes) {
  constexpr std::size_t kBytes = 3 * 256 * sizeof(float);
  if (!tabled_) {
    // what each value of each colour becomes: an image of all of them, normalised
    std::array<std::uint8_t, 3 * 256> values{};
    for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<std::uint8_t>(i / 3);
    auto* const table = static_cast<float*>(table_on_host_.get(driver_, kBytes));
    segmenter_trt::normalize({values.data(), 1, 1, 256}, preprocess_.scale.data(), preprocess_.shift.data(),
                             {table, 1, 256}, 1);
    cuda::check(driver_, driver_.MemcpyHtoDAsync(table_.get(driver_, kBytes), table, kBytes, stream_),
                "a table to the GPU");
    tabled_ = true;
  }
  put(launch::NormalizeCall{1, count, pointer(pixels), pointer(table_.get(driver_, kBytes)), pointer(planes)});
}

void DevicePictures::begin(const WindowGrid& grid) {
  const auto windows = static_cast<std::size_t>(grid.rows() * grid.columns());
  masks_at_ = memory(masks_, windows * mask_bytes(grid));
  memory(found_, label_bytes(grid));
  labels_on_host_ = labels_.get(driver_, label_bytes(grid));
  auto* const flags = static_cast<std::int32_t*>(odd_.get(driver_, 2 * sizeof(std::int32_t)));
  flags[0] = 0;
  odd_on_host_ = flags + 1;
  cuda::check(driver_, driver_.MemcpyHtoDAsync(flag_.get(driver_, sizeof *flags), flags, sizeof *flags, stream_),
              "a flag to the GPU");
  upload(grid.H, grid.W);
  source_at_ = picture_at_;
  if (input_ == Input::pixels) return;
  source_at_ = memory(planes_, static_cast<std::size_t>(grid.H * grid.W * 3) * sizeof(float));
  normalize(picture_at_, grid.H * grid.W, source_at_);
}

void DevicePictures::cut(const WindowGrid& grid, std::int64_t index, cuda::Address to) const {
  const std::int64_t y = std::min(index / grid.columns() * grid.stride, grid.H - grid.window);
  const std::int64_t x = std::min(index % grid.columns() * grid.stride, grid.W - grid.window);
  const bool pixels = input_ == Input::pixels;
  const auto element = static_cast<std::size_t>(pixels ? 3 : sizeof(float));
  const auto window = static_cast<std::size_t>(grid.window);
  // planes are a third axis; colours lie together
  cuda::Copy3D copy;
  copy.from.memory = copy.to.memory = cuda::kDeviceMemory;
  copy.from.device = source_at_;
  copy.from.x_bytes = static_cast<std::size_t>(x) * element;
  copy.from.y = static_cast<std::size_t>(y);
  copy.from.pitch_bytes = static_cast<std::size_t>(grid.W) * element;
  copy.from.height = static_cast<std::size_t>(grid.H);
  copy.to.device = to;
  copy.to.pitch_bytes = copy.width_bytes = window * element;
  copy.to.height = copy.height = window;
  copy.depth = pixels ? 1 : 3;
  cuda::check(driver_, driver_.Memcpy3DAsync(&copy, stream_), "cutting a window");
}

void DevicePictures::keep(const WindowGrid& grid, std::int64_t first, std::int64_t count, cuda::Address masks) const {
  const std::size_t bytes = mask_bytes(grid);
  const cuda::Address to = masks_at_ + static_cast<std::size_t>(first) * bytes;
  cuda::check(driver_, driver_.MemcpyDtoDAsync(to, masks, static_cast<std::size_t>(count) * bytes, stream_),
              "keeping masks");
}

void DevicePictures::merge(const WindowGrid& grid) {
  const std::size_t bytes = label_bytes(grid);
  const cuda::Address labels = found_.get(driver_, bytes), odd = flag_.get(driver_, sizeof(std::int32_t));
  put(merge_call(grid, masks_at_, labels, odd));
  cuda::check(driver_, driver_.MemcpyDtoHAsync(labels_on_host_, labels, bytes, stream_), "labels from the GPU");
  cuda::check(driver_, driver_.MemcpyDtoHAsync(odd_on_host_, odd, sizeof(std::int32_t), stream_),
              "a flag from the GPU");
}

const DevicePictures::Filter& DevicePictures::filter(std::int64_t from, std::int64_t to) {
  const auto same = [&](const Filter& one) { return one.from == from && one.to == to; };
  const auto found = std::find_if(filters_.begin(), filters_.end(), same);
  if (found != filters_.end()) {
    filters_.splice(filters_.begin(), filters_, found);
    return filters_.front();
  }
  const ResizeFilter made(from, to);
  const std::size_t first = made.first().size() * sizeof(std::int32_t);
  const std::size_t behind = (first + kFilterAlignment - 1) / kFilterAlignment * kFilterAlignment;
  const std::size_t bytes = behind + made.weights().size() * sizeof(std::int32_t);
  Filter kept{from, to, made.taps(), cuda::device_memory(driver_, bytes), cuda::pinned_memory(driver_, bytes), 0};
  kept.weights = kept.device.get() + behind;
  auto* const host = static_cast<std::byte*>(kept.host.get());
  std::memset(host, 0, behind);
  std::memcpy(host, made.first().data(), first);
  std::memcpy(host + behind, made.weights().data(), bytes - behind);
  if (filters_.size() >= kMostFilters) {
    cuda::check(driver_, driver_.StreamSynchronize(stream_), "the last pictures");
    filters_.pop_back();
  }
  cuda::check(driver_, driver_.MemcpyHtoDAsync(kept.device.get(), host, bytes, stream_), "a filter to the GPU");
  filters_.push_front(std::move(kept));
  return filters_.front();
}

void DevicePictures::resize(const ImagesView& picture, Size size, cuda::Address to) {
  std::memcpy(stage(picture.H, picture.W), picture.data, static_cast<std::size_t>(picture.H * picture.W * 3));
  upload(picture.H, picture.W);
  cuda::Address at = picture_at_;
  std::int64_t H = picture.H, W = picture.W;
  const bool rows_last = columns_first(picture, size);
  for (const bool along_rows : {!rows_last, rows_last}) {
    std::int64_t& side = along_rows ? W : H;
    const std::int64_t wanted = along_rows ? size.width : size.height;
    if (side == wanted) continue;  // not touched: no rounding then
    launch::ResizeCall call = pass(along_rows, H, W, wanted);
    const Filter& weights = filter(side, wanted);
    side = wanted;
    call.taps = weights.taps;
    call.images = pointer(at);
    call.first = pointer(weights.device.get());
    call.weights = pointer(weights.weights);
    at = memory(passes_[along_rows ? 0 : 1], static_cast<std::size_t>(H * W * 3));
    call.resized = pointer(at);
    put(call);
  }
  if (input_ == Input::normalized) {
    normalize(at, H * W, to);
    return;
  }
  cuda::check(driver_, driver_.MemcpyDtoDAsync(to, at, static_cast<std::size_t>(H * W * 3), stream_),
              "a resized picture");
}

}  // namespace segmenter_trt::tensorrt
