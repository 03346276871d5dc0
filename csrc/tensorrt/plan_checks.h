// What is checked of a plan before TensorRT sees it: plans and plugin libraries are code that will be run. The same as
// in engines/segmenter_engines/plan_checks.py, which says where a plan's first bytes tell what wrote it.
#pragma once

#include <cstddef>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "segmenter_trt/manifest.h"

namespace segmenter_trt::tensorrt {

// A plan is for the version that built it, by its manifest and by its own header. engine: of this library. version: of
// the runtime, as major.minor.patch.build. Throws ArtifactError.
void require_version(const Manifest& manifest, const std::string& artifact, std::span<const std::byte> plan,
                     const std::string& engine, const std::string& version);

// A plugin library runs its code when it is loaded: it must be the file the plan was built with. library: empty where
// none was found. Throws ArtifactError, and Unavailable where there is no such file.
void require_plugin_library(const Manifest& manifest, const std::string& artifact,
                            const std::filesystem::path& library);

std::string joined(const std::vector<std::string>& parts, const char* between = ", ");

}  // namespace segmenter_trt::tensorrt
