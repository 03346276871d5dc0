// Images in, labels out: the same for every runtime.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "segmenter_trt/engine.h"
#include "segmenter_trt/normalize.h"
#include "segmenter_trt/upsample_argmax.h"

namespace segmenter_trt {

struct DeviceWindows;

struct SessionOptions {
  int threads = 0;                // of the CPU, around the network; 0 takes the engine's
  bool graphs = true;             // GPU: replay each shape as a CUDA graph
  bool shared_workspace = false;  // GPU: one workspace for all sessions that ask for it, which then take turns
};

// [B, 3, H, W] network input, contiguous, as `normalize` writes it.
struct NormalizedView {
  const float* data;
  std::int64_t B, H, W;
};

// One per thread; it keeps the engine alive. After the first call of a shape, calls allocate nothing. A child of fork()
// has none of the threads its parent's engines and sessions work with: it may let go of them, no more. It opens its
// own, but none in OpenVINO where its parent had opened one.
class Session {
 public:
  explicit Session(const Engine& engine, const SessionOptions& options = {});
  Session(Session&&) noexcept;
  Session& operator=(Session&&) noexcept;
  ~Session();

  // Labels of images of a size and number the engine takes; labels.size is the images'. Bytes for up to 256 classes,
  // int16 for more.
  // Throws InputError for other images or labels, and RunError when the network fails or its scores are no numbers:
  // unseen where the graph gives labels and no masks.
  void run(const ImagesView& pixels, const LabelsView<std::uint8_t>& labels);
  void run(const ImagesView& pixels, const LabelsView<std::int16_t>& labels);

  // Labels of pictures of any sizes, [1, H, W, 3] each, resized first, as `resize` does, to labels.size, which is one
  // that the engine takes. On a GPU that happens there, see Description::resized_by: pictures pass through two buffers
  // on the host, so that each waits there until the one before the last is uploaded. On the CPU it allocates. Throws as
  // `run` does.
  void run_resized(std::span<const ImagesView> pictures, const LabelsView<std::uint8_t>& labels);
  void run_resized(std::span<const ImagesView> pictures, const LabelsView<std::int16_t>& labels);

  // Class masks [B, K, h, w] on the patch grid of the images, padded to whole patches; in memory of the session's own,
  // until its next call. Of normalised images only where the network is given those: see Description::input. Scores
  // that are no numbers are given as they are, here and by `logits`.
  MasksView masks(const ImagesView& pixels);
  MasksView masks(const NormalizedView& images);

  // Writes scores [B, K, H, W] of every pixel: the masks upsampled, values as upsample_argmax compares them.
  void logits(const ImagesView& pixels, float* logits);

  // On a GPU: labels of images that lie on the device, into memory there, enqueued on a CUstream of the caller's (null:
  // the default one) and not waited for. Both begin at a multiple of 256 bytes and stay in place until the stream has
  // passed them; the stream is not being captured. Bytes or int16 as in run. Scores that are no numbers go unseen.
  // Throws Unavailable where the engine runs on the CPU.
  void enqueue(const ImagesView& device_pixels, void* device_labels, void* stream);

  const Engine& engine() const noexcept;
  int threads() const noexcept;  // of the CPU, around the network
  Description describe() const;

 private:
  friend struct DeviceWindows;
  struct State;
  std::shared_ptr<State> state_;
};

}  // namespace segmenter_trt
