// The few functions of OpenVINO's C interface that are used, found in its library when a program runs: no header or
// library of OpenVINO is needed to build, and any release that has these functions serves.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>

namespace segmenter_trt {

// As OpenVINO declares them; those without members are its own affair.
struct ov_core;
struct ov_model;
struct ov_compiled_model;
struct ov_infer_request;
struct ov_output_const_port;
struct ov_tensor;
struct ov_dimension {
  std::int64_t min, max;  // the same for a fixed one; max -1 for any
};
struct ov_partial_shape {
  ov_dimension rank;
  ov_dimension* dims;
};
struct ov_shape {
  std::int64_t rank;
  std::int64_t* dims;
};
struct ov_version {
  const char* build_number;
  const char* description;
};

class OpenVino {
 public:
  // `runtime`: the library or its folder; empty looks at SEGMENTER_TRT_OPENVINO, then where systems keep libraries.
  // Throws Unavailable when it cannot be opened or lacks a function.
  explicit OpenVino(const std::filesystem::path& runtime);

  std::string version() const;

  // What went wrong in the last call, in one line.
  std::string told() const;

  // The one core this library has in the process; nullptr when it cannot be made, and told() says why. Throws
  // Unavailable in a child of fork() whose parent had it: OpenVINO would wait for threads of the parent's. It is never
  // freed: a core leads the signals of the thread that first asks it for the CPU (a property, a compilation) to a
  // stack of its own and unmaps that when it goes, and of two cores that do not go in the reverse of the order they
  // came in the thread keeps an unmapped one, so that its next signal ends the process.
  const ov_core* core() const;

  int (*core_get_property)(const ov_core*, const char* device, const char* key, char** value);
  int (*core_read_model_from_memory_buffer)(const ov_core*, const char* model, std::size_t size,
                                            const ov_tensor* weights, ov_model**);
  // count: of keys and values together
  int (*core_compile_model)(const ov_core*, const ov_model*, const char* device, std::size_t count, ov_compiled_model**,
                            ...);
  void (*model_free)(ov_model*);
  int (*model_const_input_by_index)(const ov_model*, std::size_t, ov_output_const_port**);
  int (*port_get_partial_shape)(const ov_output_const_port*, ov_partial_shape*);
  void (*output_const_port_free)(ov_output_const_port*);
  void (*partial_shape_free)(ov_partial_shape*);
  int (*compiled_model_create_infer_request)(const ov_compiled_model*, ov_infer_request**);
  void (*compiled_model_free)(ov_compiled_model*);
  int (*infer_request_get_input_tensor_by_index)(const ov_infer_request*, std::size_t, ov_tensor**);
  int (*infer_request_set_input_tensor_by_index)(ov_infer_request*, std::size_t, const ov_tensor*);
  int (*infer_request_get_output_tensor_by_index)(const ov_infer_request*, std::size_t, ov_tensor**);
  // with one thread, ov_infer_request_infer says that all went well where it did not (2026.4); waiting does not
  int (*infer_request_start_async)(ov_infer_request*);
  int (*infer_request_wait)(ov_infer_request*);
  void (*infer_request_free)(ov_infer_request*);
  // numbers of element types differ between releases: they are asked for, never written
  int (*tensor_create_from_host_ptr)(int element_type, ov_shape, void*, ov_tensor**);
  int (*tensor_get_element_type)(const ov_tensor*, int*);
  int (*tensor_set_shape)(ov_tensor*, ov_shape);
  int (*tensor_get_shape)(const ov_tensor*, ov_shape*);
  int (*tensor_get_byte_size)(const ov_tensor*, std::size_t*);
  int (*tensor_data)(const ov_tensor*, void**);
  void (*tensor_free)(ov_tensor*);
  int (*shape_free)(ov_shape*);
  void (*free)(const char*);

 private:
  void* library_;
  int (*core_create)(ov_core**);
  int (*get_openvino_version)(ov_version*);
  void (*version_free)(ov_version*);
  const char* (*get_last_err_msg)();
};

}  // namespace segmenter_trt
