#include "openvino_api.h"

#include <dlfcn.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <string_view>
#include <vector>

#include "environment.h"
#include "process.h"
#include "segmenter_trt/errors.h"

namespace segmenter_trt {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kLibrary = "libopenvino_c.so";
constexpr char kVariable[] = "SEGMENTER_TRT_OPENVINO";
constexpr std::size_t kLongestMessage = 300;

// Where packages of systems put it, with the release in its name and no plain name beside it.
constexpr const char* kSystemFolders[] = {
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/usr/lib64",
    "/usr/local/lib",
    "/opt/intel/openvino/runtime/lib/intel64",
};

// The library in a folder, the newest by name when there are several; empty when there is none.
fs::path library_in(const fs::path& folder) {
  fs::path newest;
  std::error_code failed;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder, failed)) {
    const fs::path& path = entry.path();
    if (path.filename().string().starts_with(kLibrary) && path.filename() > newest.filename()) newest = path;
  }
  return newest;
}

// A folder that was named must hold the library: another one is not taken in its place.
fs::path named_library(const fs::path& named) {
  std::error_code failed;
  if (!fs::is_directory(named, failed)) return named;
  const fs::path found = library_in(named);
  return found.empty() ? named / kLibrary : found;
}

std::vector<fs::path> candidates(const fs::path& runtime) {
  if (!runtime.empty()) return {named_library(runtime)};
  if (const fs::path named = environment(kVariable); !named.empty()) return {named_library(named)};
  std::vector<fs::path> paths = {fs::path(kLibrary)};
  for (const char* folder : kSystemFolders) {
    if (const fs::path found = library_in(folder); !found.empty()) paths.push_back(found);
  }
  return paths;
}

void* open_library(const fs::path& runtime) {
  std::string told;
  for (const fs::path& path : candidates(runtime)) {
    // never closed: its threads outlive every engine
    if (void* const library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL)) return library;
    told = dlerror();
  }
  throw Unavailable("engine openvino: its C library cannot be opened (" + told +
                    "); pip install openvino, and name its folder openvino/libs in " + kVariable);
}

template <class Function>
void find(void* library, const char* name, Function& function) {
  function = reinterpret_cast<Function>(dlsym(library, name));
  if (function == nullptr) {
    throw Unavailable(std::string("engine openvino: its library lacks ") + name + "; use OpenVINO 2025.0 or newer");
  }
}

}  // namespace

OpenVino::OpenVino(const fs::path& runtime) : library_(open_library(runtime)) {
  find(library_, "ov_core_create", core_create);
  find(library_, "ov_core_get_property", core_get_property);
  find(library_, "ov_core_read_model_from_memory_buffer", core_read_model_from_memory_buffer);
  find(library_, "ov_core_compile_model", core_compile_model);
  find(library_, "ov_model_free", model_free);
  find(library_, "ov_model_const_input_by_index", model_const_input_by_index);
  find(library_, "ov_port_get_partial_shape", port_get_partial_shape);
  find(library_, "ov_output_const_port_free", output_const_port_free);
  find(library_, "ov_partial_shape_free", partial_shape_free);
  find(library_, "ov_compiled_model_create_infer_request", compiled_model_create_infer_request);
  find(library_, "ov_compiled_model_free", compiled_model_free);
  find(library_, "ov_infer_request_get_input_tensor_by_index", infer_request_get_input_tensor_by_index);
  find(library_, "ov_infer_request_set_input_tensor_by_index", infer_request_set_input_tensor_by_index);
  find(library_, "ov_infer_request_get_output_tensor_by_index", infer_request_get_output_tensor_by_index);
  find(library_, "ov_infer_request_start_async", infer_request_start_async);
  find(library_, "ov_infer_request_wait", infer_request_wait);
  find(library_, "ov_infer_request_free", infer_request_free);
  find(library_, "ov_tensor_create_from_host_ptr", tensor_create_from_host_ptr);
  find(library_, "ov_tensor_get_element_type", tensor_get_element_type);
  find(library_, "ov_tensor_set_shape", tensor_set_shape);
  find(library_, "ov_tensor_get_shape", tensor_get_shape);
  find(library_, "ov_tensor_get_byte_size", tensor_get_byte_size);
  find(library_, "ov_tensor_data", tensor_data);
  find(library_, "ov_tensor_free", tensor_free);
  find(library_, "ov_shape_free", shape_free);
  find(library_, "ov_free", free);
  find(library_, "ov_get_openvino_version", get_openvino_version);
  find(library_, "ov_version_free", version_free);
  find(library_, "ov_get_last_err_msg", get_last_err_msg);
}

const ov_core* OpenVino::core() const {
  static const Process opener;
  static std::mutex lock;
  static auto& cores = *new std::map<void*, ov_core*>;  // by library
  if (!opener.is_this()) {
    throw Unavailable(
        "engine openvino: this process was forked from one that had opened OpenVINO, whose threads it has not; open"
        " engines after the fork alone, or start processes by spawn");
  }
  const std::lock_guard<std::mutex> guard(lock);
  ov_core*& core = cores[library_];
  if (core == nullptr && core_create(&core) != 0) core = nullptr;
  return core;
}

std::string OpenVino::version() const {
  ov_version version = {};
  if (get_openvino_version(&version) != 0 || version.build_number == nullptr) return "unknown";
  const std::string full = version.build_number;
  version_free(&version);
  return full.substr(0, full.find('-'));
}

std::string OpenVino::told() const {
  const char* const message = get_last_err_msg();
  std::string line = message == nullptr ? "" : message;
  if (message != nullptr) free(message);  // a copy, the caller's
  std::replace_if(
      line.begin(), line.end(), [](char c) { return c >= 0 && c < ' '; }, ' ');
  const auto twice = [](char a, char b) { return a == ' ' && b == ' '; };
  line.erase(std::unique(line.begin(), line.end(), twice), line.end());
  if (line.ends_with(' ')) line.pop_back();
  return line.substr(0, kLongestMessage);
}

}  // namespace segmenter_trt
