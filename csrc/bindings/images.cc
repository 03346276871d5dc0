#include "images.h"

#include <pybind11/numpy.h>

#include <functional>

#include "segmenter_trt/errors.h"

namespace segmenter_trt::bindings {

Batch batch_of(const Memory& memory, std::size_t channels, const char* wanted) {
  const bool single = memory.shape.size() == 3;
  if ((!single && memory.shape.size() != 4) || memory.shape[channels + (single ? 0 : 1)] != 3) {
    throw InputError(memory.describe() + ": wanted " + wanted);
  }
  return {single ? 1 : memory.shape[0], memory.shape.data() + (single ? 0 : 1), single};
}

ImagesView pixels_of(const Memory& memory, const char* wanted) {
  require_dtype(memory, "uint8", wanted);
  const Batch batch = batch_of(memory, 2, wanted);
  require_contiguous(memory);
  return {static_cast<const std::uint8_t*>(memory.data), batch.B, batch.rest[0], batch.rest[1]};
}

bool single(const Memory& memory) { return memory.shape.size() == 3; }

std::vector<py::ssize_t> shaped(bool single, std::int64_t B, std::initializer_list<std::int64_t> rest) {
  std::vector<py::ssize_t> shape(rest.begin(), rest.end());
  if (!single) shape.insert(shape.begin(), B);
  return shape;
}

std::string wanted_labels(const Memory& input, const ImagesView& view, bool wide) {
  std::vector<std::int64_t> shape = {view.H, view.W};
  if (!single(input)) shape.insert(shape.begin(), view.B);
  return std::string(wide ? "int16 " : "uint8 ") + shape_text(shape);
}

void require_labels(const Memory& labels, const Memory& input, const ImagesView& view, bool wide) {
  const std::string wanted = wanted_labels(input, view, wide);
  if (labels.dtype + " " + shape_text(labels.shape) != wanted) {
    throw InputError(labels.describe() + ": wanted " + wanted + " for these images");
  }
  require_contiguous(labels);
  require_writable(labels);
  const auto* const from = static_cast<const std::uint8_t*>(input.data);
  const auto* const to = static_cast<const std::uint8_t*>(labels.data);
  const std::less<const std::uint8_t*> before;
  if (before(to, from + input.bytes()) && before(from, to + labels.bytes())) {
    throw InputError("out shares memory with images: wanted memory of its own");
  }
}

Labels labels_for(const Memory& input, const ImagesView& view, bool wide, const py::object& out) {
  if (!out.is_none()) {
    const Memory labels = on_host(out, "out", wanted_labels(input, view, wide));
    require_labels(labels, input, view, wide);
    return {out, labels.data, labels.owner};
  }
  py::array labels(py::dtype(wide ? "int16" : "uint8"), shaped(single(input), view.B, {view.H, view.W}));
  void* const data = labels.mutable_data();
  return {labels, data, py::none()};
}

}  // namespace segmenter_trt::bindings
