// Which backend an engine is for, and opening those that are libraries of their own.
#include <dlfcn.h>

#include <algorithm>
#include <string>
#include <string_view>
#include <vector>

#include "backend.h"
#include "environment.h"
#include "openvino_backend.h"

namespace segmenter_trt {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kOpenVino = "openvino";
constexpr char kFolderVariable[] = "SEGMENTER_TRT_BACKENDS";

// The program or library this code was linked into.
fs::path own_folder() {
  Dl_info info;
  if (dladdr(reinterpret_cast<const void*>(&make_backend), &info) == 0 || info.dli_fname == nullptr) return {};
  std::error_code ignored;
  return fs::absolute(info.dli_fname, ignored).parent_path();
}

std::string file_of(std::string_view name) {
  std::string file = "libsegmenter_trt_" + std::string(name) + ".so";
  std::replace(file.begin(), file.end(), '-', '_');
  return file;
}

// Places to look for a backend's library, the last of them left to the system.
std::vector<fs::path> candidates(const std::string& file) {
  if (const fs::path folder = environment(kFolderVariable); !folder.empty()) return {folder / file};
  std::vector<fs::path> found;
  if (const fs::path folder = own_folder(); !folder.empty()) {
    for (const fs::path& path : {folder / file, folder.parent_path() / SEGMENTER_TRT_LIBRARIES / file}) {
      std::error_code ignored;
      if (fs::exists(path, ignored)) found.push_back(path);
    }
  }
  found.emplace_back(file);
  return found;
}

const BackendModule& open_module(const std::string& name) {
  const std::string file = file_of(name);
  std::string told;
  for (const fs::path& path : candidates(file)) {
    // never closed: errors and runners of it may outlive any engine
    void* const library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) {
      // of the one that is there, if one is: the last is only not found
      if (const char* const reason = dlerror(); told.empty()) told = reason;
      continue;
    }
    const auto function = reinterpret_cast<BackendModuleFunction*>(dlsym(library, kBackendModuleFunction));
    if (function == nullptr) throw Unavailable(path.string() + ": is no backend of segmenter_trt; build it again");
    const BackendModule* const module = function();
    if (module == nullptr || std::string_view(module->abi) != kBackendAbi) {
      throw Unavailable(path.string() + ": made for '" + (module == nullptr ? "" : module->abi) + "', wanted '" +
                        kBackendAbi + "'; build it with this version of segmenter_trt");
    }
    return *module;
  }
  const std::string headers = name == "tensorrt-rtx" ? "-DTENSORRT_RTX_INCLUDE_DIR" : "-DTENSORRT_INCLUDE_DIR";
  throw Unavailable("engine " + name + ": " + file + " cannot be opened (" + told + "); build it with " + headers +
                    " (csrc/tensorrt), or name its folder in " + kFolderVariable);
}

// The name of the backend a request asks for. Throws InputError for one that cannot open the artifact.
std::string chosen(const BackendRequest& request) {
  std::string fitting = request.manifest.kind == Kind::onnx ? std::string(kOpenVino) : request.manifest.engine;
  const std::string& wanted = request.options.backend;
  if (!wanted.empty() && wanted != fitting) {
    throw InputError(request.artifact.string() + ": backend '" + wanted + "' cannot open it; it is for " + fitting);
  }
  return fitting;
}

}  // namespace

std::unique_ptr<Backend> make_backend(const BackendRequest& request) {
  const std::string name = chosen(request);
  return name == kOpenVino ? make_openvino_backend(request) : open_module(name).make(request);
}

bool has_tensorrt() noexcept {
  for (const std::string_view name : {"tensorrt", "tensorrt-rtx"}) {
    for (const fs::path& path : candidates(file_of(name))) {
      std::error_code ignored;
      if (path.has_parent_path() && fs::exists(path, ignored)) return true;
    }
  }
  return false;
}

}  // namespace segmenter_trt
