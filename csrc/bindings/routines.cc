// upsample_argmax, normalize and resize for Python: checks arrays, releases the GIL, calls the core.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <optional>
#include <string>

#include "gil.h"
#include "parts.h"
#include "segmenter_trt/normalize.h"
#include "segmenter_trt/resize.h"
#include "segmenter_trt/simd.h"
#include "segmenter_trt/upsample_argmax.h"

namespace segmenter_trt::bindings {
namespace {

namespace py = pybind11;
namespace trt = segmenter_trt;

std::string describe(const py::array& array) {
  return py::str("{} {}").format(array.dtype(), array.attr("shape")).cast<std::string>();
}

// `object` as an array of Element that can be read in place; nothing is ever copied behind the caller's back.
template <class Element>
py::array_t<Element> checked(const py::object& object, const std::string& name, const std::string& wanted,
                             py::ssize_t dimensions) {
  if (!py::isinstance<py::array>(object)) {
    const std::string type = py::str(py::type::of(object).attr("__name__"));
    throw py::type_error(name + " is a " + type + ": wanted a numpy array, " + wanted +
                         (type == "Tensor" ? "; pass tensor.numpy()" : "; pass numpy.asarray(...)"));
  }
  const auto array = py::reinterpret_borrow<py::array>(object);
  if (!py::isinstance<py::array_t<Element>>(array)) {
    throw py::type_error(name + " " + describe(array) + ": wanted " + wanted + "; convert with .astype()");
  }
  if (array.ndim() != dimensions) throw py::value_error(name + " " + describe(array) + ": wanted " + wanted);
  const py::object flags = array.attr("flags");
  if (!flags.attr("c_contiguous").cast<bool>() || !flags.attr("aligned").cast<bool>()) {
    throw py::value_error(name + " " + describe(array) +
                          ": wanted contiguous memory in C order; copy with numpy.ascontiguousarray()");
  }
  return py::reinterpret_borrow<py::array_t<Element>>(array);
}

// A pair of integers, in words of our own: pybind11's would print the whole array passed beside it.
trt::Size sides(const py::object& object, const std::string& name) {
  if (py::isinstance<py::sequence>(object) && py::len(object) == 2) {
    try {
      return {object[py::int_(0)].cast<std::int64_t>(), object[py::int_(1)].cast<std::int64_t>()};
    } catch (const py::cast_error&) {
      // no integer: told below
    }
  }
  throw py::type_error(name + " " + py::repr(object).cast<std::string>() +
                       ": wanted a pair of integers (height, width)");
}

trt::Simd simd_named(const std::string& name) {
  for (const trt::Simd simd : {trt::Simd::automatic, trt::Simd::baseline, trt::Simd::avx2}) {
    if (name == trt::name(simd)) return simd;
  }
  throw py::value_error("simd '" + name + "': wanted 'automatic', 'baseline' or 'avx2'");
}

template <class Label>
py::array labels_of(const trt::MasksView& masks, trt::Size size, trt::Size kept, int threads, trt::Simd simd) {
  trt::check_sizes(masks, size, kept);
  py::array_t<Label> labels({masks.B, kept.height, kept.width});
  Label* const data = labels.mutable_data();
  {
    const WithoutGil release;
    trt::upsample_argmax<Label>(masks, size, {data, kept}, threads, simd);
  }
  return labels;
}

py::array upsample_argmax(const py::object& masks, const py::object& size, const py::object& crop, int threads,
                          const std::string& simd) {
  const auto scores = checked<float>(masks, "masks", "float32 [B, K, h, w]", 4);
  const trt::MasksView view = {scores.data(), scores.shape(0), scores.shape(1), scores.shape(2), scores.shape(3)};
  const trt::Size full = sides(size, "size");
  const trt::Size kept = crop.is_none() ? full : sides(crop, "crop");
  const auto labels = view.K <= 256 ? labels_of<std::uint8_t> : labels_of<std::int16_t>;
  return labels(view, full, kept, threads, simd_named(simd));
}

py::array_t<float> normalize(const py::object& images, const py::object& scale, const py::object& shift,
                             std::optional<std::int64_t> out_height, std::optional<std::int64_t> out_width, int threads,
                             const std::string& simd) {
  const auto pixels = checked<std::uint8_t>(images, "images", "uint8 [B, H, W, 3]", 4);
  if (pixels.shape(3) != 3) throw py::value_error("images " + describe(pixels) + ": wanted uint8 [B, H, W, 3]");
  const auto scales = checked<float>(scale, "scale", "float32 [3]", 1);
  const auto shifts = checked<float>(shift, "shift", "float32 [3]", 1);
  if (scales.size() != 3) throw py::value_error("scale " + describe(scales) + ": wanted float32 [3]");
  if (shifts.size() != 3) throw py::value_error("shift " + describe(shifts) + ": wanted float32 [3]");
  const trt::ImagesView view = {pixels.data(), pixels.shape(0), pixels.shape(1), pixels.shape(2)};
  const std::int64_t height = out_height.value_or(view.H);
  const std::int64_t width = out_width.value_or(view.W);
  const trt::Simd chosen = simd_named(simd);
  trt::check_sizes(view, height, width);
  py::array_t<float> planes({view.B, std::int64_t{3}, height, width});
  float* const data = planes.mutable_data();
  {
    const WithoutGil release;
    trt::normalize(view, scales.data(), shifts.data(), {data, height, width}, threads, chosen);
  }
  return planes;
}

py::array_t<std::uint8_t> resize(const py::object& image, std::int64_t height, std::int64_t width, int threads) {
  const auto pixels = checked<std::uint8_t>(image, "image", "uint8 [H, W, 3]", 3);
  if (pixels.shape(2) != 3) throw py::value_error("image " + describe(pixels) + ": wanted uint8 [H, W, 3]");
  const trt::ImagesView view = {pixels.data(), 1, pixels.shape(0), pixels.shape(1)};
  trt::check_sizes(view, trt::Size{height, width});
  py::array_t<std::uint8_t> resized({height, width, std::int64_t{3}});
  std::uint8_t* const data = resized.mutable_data();
  {
    const WithoutGil release;
    trt::resize(view, {data, height, width}, threads);
  }
  return resized;
}

}  // namespace

void add_routines(py::module_& module) {
  module.def(
      "upsample_argmax", &upsample_argmax, py::arg("masks"), py::arg("size"), py::arg("crop") = py::none(),
      py::arg("threads") = 0, py::kw_only(), py::arg("simd") = "automatic",
      R"(Class masks on the patch grid to labels on pixels: bilinear (align_corners=False), then the first largest.

masks: float32 [B, K, h, w], C-contiguous; size: (H, W) to upsample to; crop: (H', W') of the top-left part to keep;
threads: 0 chooses by size and machine; simd: "automatic", "baseline" or "avx2", which give the same labels.
Returns [B, H', W'] uint8, or int16 when K > 256. Full-resolution logits are never stored.
Raises TypeError for another type or dtype; ValueError for another shape, memory that is not contiguous, and a score
that is NaN, infinite or beyond 8e37.)");
  module.def("normalize", &normalize, py::arg("images"), py::arg("scale"), py::arg("shift"),
             py::arg("out_height") = py::none(), py::arg("out_width") = py::none(), py::arg("threads") = 0,
             py::kw_only(), py::arg("simd") = "automatic",
             R"(uint8 RGB images to the network's input, `x * scale + shift`, product and sum each rounded to float32.

images: uint8 [B, H, W, 3], C-contiguous; scale, shift: float32 [3]; out_height, out_width: the images' by default,
larger ones are filled with zeros below and to the right; threads and simd as in upsample_argmax.
Returns float32 [B, 3, out_height, out_width]. Raises TypeError and ValueError as upsample_argmax does.)");
  module.def("resize", &resize, py::arg("image"), py::arg("height"), py::arg("width"), py::arg("threads") = 0,
             R"(A uint8 RGB image resized bilinearly, bit for bit as Pillow 13's Image.resize(..., BILINEAR) does it.

image: uint8 [H, W, 3], C-contiguous; height, width: pixels; threads as in upsample_argmax.
Returns uint8 [height, width, 3]. Raises TypeError and ValueError as upsample_argmax does.)");
}

}  // namespace segmenter_trt::bindings
