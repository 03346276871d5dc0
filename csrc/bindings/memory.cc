#include "memory.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <iterator>
#include <stdexcept>
#include <utility>

#include "dlpack.h"
#include "segmenter_trt/errors.h"

namespace segmenter_trt::bindings {
namespace {

constexpr char kVersioned[] = "dltensor_versioned", kUnversioned[] = "dltensor";

std::string type_of(const py::object& object) { return py::str(py::type::of(object).attr("__name__")); }

// What a call of the protocol's raised, as an error of ours: the array's owner refuses, and says why.
[[noreturn]] void refuse(const std::string& name, const py::object& object, const py::error_already_set& error,
                         const std::string& wanted) {
  if (!error.matches(PyExc_Exception)) throw error;  // Ctrl-C
  std::string why = py::str(error.value());
  why = why.substr(0, why.find('\n'));
  throw InputError(name + ": this " + type_of(object) + " does not give its memory (" + why + "); wanted " + wanted);
}

bool c_contiguous(const std::vector<std::int64_t>& shape, const std::int64_t* strides, std::int64_t unit) {
  if (strides == nullptr) return true;
  std::int64_t expected = unit;
  for (std::size_t axis = shape.size(); axis-- > 0;) {
    if (shape[axis] == 0) return true;
    if (shape[axis] != 1 && strides[axis] != expected) return false;
    if (__builtin_mul_overflow(expected, shape[axis], &expected)) return false;
  }
  return true;
}

Memory of_numpy(const py::array& array, const std::string& name) {
  Memory memory;
  memory.data = const_cast<void*>(array.data());
  memory.dtype = py::str(array.dtype());
  memory.shape.assign(array.shape(), array.shape() + array.ndim());
  const auto item = static_cast<std::uintptr_t>(std::max<py::ssize_t>(array.itemsize(), 1));
  memory.contiguous =
      (array.flags() & py::array::c_style) != 0 && reinterpret_cast<std::uintptr_t>(memory.data) % item == 0;
  memory.writable = array.writeable();
  memory.name = name;
  memory.owner = array;
  return memory;
}

std::string dtype_of(const dlpack::DataType& type) {
  static constexpr const char* kNames[] = {"int", "uint", "float", "opaque", "bfloat", "complex", "bool"};
  if (type.lanes != 1) return "vector";
  if (type.code == 6) return "bool";
  return (type.code < std::size(kNames) ? kNames[type.code] : "unknown") + std::to_string(type.bits);
}

bool on_cpu(std::int32_t type) {
  return type == dlpack::kCpu || type == dlpack::kCudaHost || type == dlpack::kRocmHost;
}

// The tensor of a capsule that is kept and never renamed: memory is borrowed, and the capsule gives it back itself.
Memory of_capsule(const py::object& capsule, const std::string& name) {
  const dlpack::Tensor* tensor = nullptr;
  Memory memory;
  if (PyCapsule_IsValid(capsule.ptr(), kVersioned)) {
    const auto* const managed =
        static_cast<const dlpack::ManagedVersioned*>(PyCapsule_GetPointer(capsule.ptr(), kVersioned));
    if (managed->major != 1) {
      throw InputError(name + ": DLPack version " + std::to_string(managed->major) + ", wanted 1");
    }
    tensor = &managed->tensor;
    memory.writable = (managed->flags & dlpack::kReadOnly) == 0;
  } else if (PyCapsule_IsValid(capsule.ptr(), kUnversioned)) {
    tensor = &static_cast<const dlpack::Managed*>(PyCapsule_GetPointer(capsule.ptr(), kUnversioned))->tensor;
    memory.writable = true;  // such a capsule has no way to say otherwise
  } else {
    throw InputError(name + ": __dlpack__() gave no DLPack capsule; pass a numpy array");
  }
  memory.data = static_cast<std::uint8_t*>(tensor->data) + tensor->byte_offset;
  memory.dtype = dtype_of(tensor->dtype);
  memory.shape.assign(tensor->shape, tensor->shape + tensor->dimensions);
  const std::uintptr_t item = std::max<std::uintptr_t>(tensor->dtype.bits / 8, 1);
  memory.contiguous =
      c_contiguous(memory.shape, tensor->strides, 1) && reinterpret_cast<std::uintptr_t>(memory.data) % item == 0;
  memory.device = tensor->device.index;
  memory.name = name;
  memory.owner = capsule;
  return memory;
}

// `object.__dlpack__(...)`, of exporters that know versions and of older ones.
py::object capsule_of(const py::object& object, const py::dict& options) {
  const py::object export_ = object.attr("__dlpack__");
  try {
    py::dict versioned = options.attr("copy")();
    versioned["max_version"] = py::make_tuple(1, 0);
    return export_(**versioned);
  } catch (const py::error_already_set& error) {
    if (!error.matches(PyExc_TypeError)) throw;
  }
  return export_(**options);
}

std::pair<std::int32_t, std::int32_t> dlpack_device(const py::object& object) {
  const auto device = object.attr("__dlpack_device__")().cast<std::pair<py::int_, py::int_>>();
  return {device.first.cast<std::int32_t>(), device.second.cast<std::int32_t>()};
}

bool has(const py::object& object, const char* attribute) { return py::hasattr(object, attribute); }

Memory of_cuda_interface(const py::object& object, const std::string& name) {
  const auto interface = object.attr("__cuda_array_interface__").cast<py::dict>();
  const auto [address, read_only] = interface["data"].cast<std::pair<std::uintptr_t, bool>>();
  const auto type = interface["typestr"].cast<std::string>();
  Memory memory;
  memory.data = reinterpret_cast<void*>(address);  // NOLINT(performance-no-int-to-ptr): Python's addresses are numbers
  memory.shape = interface["shape"].cast<std::vector<std::int64_t>>();
  memory.dtype = type == "|u1" ? "uint8" : type == "<i2" ? "int16" : type == "<f4" ? "float32" : type;
  const std::int64_t item = std::max(type.size() > 2 ? std::stoll(type.substr(2)) : 1LL, 1LL);
  memory.contiguous = true;
  if (interface.contains("strides") && !interface["strides"].is_none()) {
    const auto strides = interface["strides"].cast<std::vector<std::int64_t>>();
    memory.contiguous = strides.size() == memory.shape.size() && c_contiguous(memory.shape, strides.data(), item);
  }
  memory.contiguous = memory.contiguous && address % static_cast<std::uintptr_t>(item) == 0;
  memory.writable = !read_only;
  memory.device = -1;
  if (interface.contains("stream") && !interface["stream"].is_none()) {
    memory.stream = interface["stream"].cast<std::uintptr_t>();
  }
  memory.name = name;
  memory.owner = object;
  return memory;
}

// 0 and 1 both name the legacy default stream.
std::uintptr_t stream_number(std::uintptr_t stream) { return stream == 0 ? 1 : stream; }

}  // namespace

std::int64_t Memory::bytes() const {
  std::int64_t count = dtype == "uint8" ? 1 : dtype == "int16" ? 2 : 4;
  for (const std::int64_t side : shape) {
    // sides nothing can have, which the session refuses
    if (__builtin_mul_overflow(count, side, &count)) return 0;
  }
  return count;
}

std::string Memory::describe() const { return name + " " + dtype + " " + shape_text(shape); }

Memory on_host(const py::object& object, const std::string& name, const std::string& wanted) {
  try {
    if (py::isinstance<py::array>(object)) return of_numpy(py::reinterpret_borrow<py::array>(object), name);
    if (PyObject_CheckBuffer(object.ptr()) != 0) {
      const py::object view = py::module_::import("numpy").attr("asarray")(py::memoryview(object));
      return of_numpy(view.cast<py::array>(), name);
    }
    if (has(object, "__dlpack__") && has(object, "__dlpack_device__")) {
      const auto [type, index] = dlpack_device(object);
      if (!on_cpu(type)) {
        throw InputError(name + ": lies on a device; wanted CPU memory, " + wanted +
                         "; copy it to the CPU, or use run_async where the engine runs on a GPU");
      }
      return of_capsule(capsule_of(object, {}), name);
    }
  } catch (const py::error_already_set& error) {
    refuse(name, object, error, wanted);
  } catch (const py::cast_error&) {
    throw InputError(name + ": this " + type_of(object) + " does not describe its memory as DLPack asks; wanted " +
                     wanted);
  }
  if (has(object, "__cuda_array_interface__")) {
    throw InputError(name + ": lies on a GPU; wanted CPU memory, " + wanted +
                     "; copy it to the CPU, or use run_async where the engine runs on a GPU");
  }
  throw InputError(name + ": this " + type_of(object) + " is no array; wanted " + wanted +
                   " as a numpy array, a buffer or a DLPack tensor, such as numpy.asarray(...)");
}

Memory on_device(const py::object& object, const std::string& name, const std::string& wanted, std::uintptr_t stream) {
  try {
    if (has(object, "__dlpack__") && has(object, "__dlpack_device__")) {
      const auto [type, index] = dlpack_device(object);
      if (type == dlpack::kCuda || type == dlpack::kCudaManaged) {
        // by the protocol, the exporter makes this stream wait for what it has enqueued elsewhere
        py::dict options;
        options["stream"] = stream_number(stream);
        return of_capsule(capsule_of(object, options), name);
      }
    }
    if (has(object, "__cuda_array_interface__")) {
      Memory memory = of_cuda_interface(object, name);
      if (memory.stream && stream_number(*memory.stream) != stream_number(stream)) {
        throw InputError(name + ": made on stream " + std::to_string(*memory.stream) +
                         ", and labels are asked for on " + std::to_string(stream) +
                         "; pass that stream, or arrays made on this one");
      }
      return memory;
    }
  } catch (const py::error_already_set& error) {
    refuse(name, object, error, wanted);
  } catch (const py::cast_error&) {
    throw InputError(name + ": this " + type_of(object) +
                     " does not describe its memory as DLPack or __cuda_array_interface__ ask; wanted " + wanted);
  } catch (const std::logic_error&) {  // a number that is none, in a type's name
    throw InputError(name + ": this " + type_of(object) + " has a typestr that is none; wanted " + wanted);
  }
  throw InputError(name + ": this " + type_of(object) + " does not lie on a GPU; wanted " + wanted +
                   " as a DLPack tensor or with __cuda_array_interface__; use run for memory of the CPU");
}

std::uintptr_t stream_of(const py::object& stream) {
  if (stream.is_none()) return 0;
  py::object number = stream;
  // the protocol of CUDA's own Python packages, then the names PyTorch, CuPy and PyCUDA gave their handles
  if (py::hasattr(stream, "__cuda_stream__")) {
    number = stream.attr("__cuda_stream__")();
    if (py::isinstance<py::sequence>(number) && py::len(number) == 2) number = number[py::int_(1)];
  } else {
    for (const char* const name : {"cuda_stream", "ptr", "handle"}) {
      if (py::hasattr(stream, name)) {
        number = stream.attr(name);
        break;
      }
    }
  }
  try {
    if (py::isinstance<py::int_>(number)) return number.cast<std::uintptr_t>();
  } catch (const py::cast_error&) {
    // negative, or too large: told below
  }
  throw InputError("stream " + py::repr(stream).cast<std::string>() +
                   ": wanted a stream of PyTorch, CuPy or PyCUDA, its address, or None for the default stream");
}

void require_dtype(const Memory& memory, const std::string& dtype, const std::string& wanted) {
  if (memory.dtype != dtype) throw InputError(memory.describe() + ": wanted " + wanted + "; convert it first");
}

void require_contiguous(const Memory& memory) {
  if (!memory.contiguous) {
    throw InputError(memory.describe() +
                     ": wanted contiguous memory in C order; copy it first, as numpy.ascontiguousarray() does");
  }
}

void require_writable(const Memory& memory) {
  if (!memory.writable) throw InputError(memory.describe() + ": is read-only; wanted memory to write labels to");
}

std::string shape_text(const std::vector<std::int64_t>& shape) {
  std::string text = "[";
  for (std::size_t i = 0; i < shape.size(); ++i) {
    if (i != 0) text += ", ";
    text += std::to_string(shape[i]);
  }
  return text + "]";
}

}  // namespace segmenter_trt::bindings
