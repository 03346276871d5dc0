// Arrays of Python: where they lie and what they hold, read in place and never copied.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace segmenter_trt::bindings {

namespace py = pybind11;

struct Memory {
  void* data = nullptr;
  std::string dtype;  // as NumPy calls it: uint8, int16, float32, ...
  std::vector<std::int64_t> shape;
  bool contiguous = false;  // C order, aligned
  bool writable = false;
  int device = 0;                        // GPU; of device memory only, -1 where the array does not say
  std::optional<std::uintptr_t> stream;  // that its contents are made on, where the array says so
  std::string name;                      // what messages call it
  py::object owner;                      // keeps the memory

  std::int64_t bytes() const;
  std::string describe() const;  // "images float64 [4, 6, 3]"
};

// Memory of a NumPy array, of an object with the buffer protocol, or of a DLPack tensor on the CPU. `wanted` is the
// type and shape a message asks for. Throws InputError for anything else.
Memory on_host(const py::object& object, const std::string& name, const std::string& wanted);

// Memory of a DLPack tensor or of an array with __cuda_array_interface__, on a GPU and ready on `stream`.
Memory on_device(const py::object& object, const std::string& name, const std::string& wanted, std::uintptr_t stream);

// Address of a stream of PyTorch, CuPy or PyCUDA, or of a number that is one; 0, the default stream, of None.
std::uintptr_t stream_of(const py::object& stream);

void require_dtype(const Memory& memory, const std::string& dtype, const std::string& wanted);
void require_contiguous(const Memory& memory);
void require_writable(const Memory& memory);

// "[4, 6, 3]"
std::string shape_text(const std::vector<std::int64_t>& shape);

}  // namespace segmenter_trt::bindings
