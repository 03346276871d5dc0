// The CUDA driver's library, opened when it is first needed: a machine without one loads everything else.
#pragma once

#include <dlfcn.h>

#include <cstdint>
#include <string>

namespace segmenter_trt::cuda {

class DriverLibrary {
 public:
  // Never closed: what it loaded stays as long as the process.
  explicit DriverLibrary(const std::string& file) : handle_(dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL)) {
    if (handle_ == nullptr) {
      const char* const reason = dlerror();
      missing_ = reason == nullptr ? file : reason;
    } else {
      finder_ = reinterpret_cast<Finder*>(dlsym(handle_, "cuGetProcAddress_v2"));
    }
  }

  // Why it could not be opened; empty when it was.
  const std::string& missing() const noexcept { return missing_; }

  // The function of a version of CUDA, 12000 for 12.0; false where the driver has none. A plain dlsym of these names
  // would get the versions of CUDA's first years.
  template <class Function>
  bool find(const char* name, int version, Function*& function) const {
    void* found = nullptr;
    if (finder_ == nullptr || finder_(name, &found, version, 0, nullptr) != 0 || found == nullptr) return false;
    function = reinterpret_cast<Function*>(found);
    return true;
  }

 private:
  using Finder = int(const char* name, void** function, int version, std::uint64_t flags, int* status);

  void* handle_;
  Finder* finder_ = nullptr;
  std::string missing_;
};

}  // namespace segmenter_trt::cuda
