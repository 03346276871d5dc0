#include "rebuild.h"

#include <algorithm>
#include <filesystem>
#include <string_view>
#include <vector>

namespace segmenter_trt {

std::string rebuild_advice(const Manifest& manifest, const std::string& artifact) {
  const bool graph = manifest.kind == Kind::onnx;
  const std::vector<std::string_view> steps =
      graph ? std::vector<std::string_view>{"segmenter export ", "segmenter quantize ", "segmenter pipeline "}
            : std::vector<std::string_view>{"segmenter build ", "segmenter pipeline "};
  const bool made = std::any_of(steps.begin(), steps.end(),
                                [&](std::string_view step) { return manifest.command.starts_with(step); });
  const std::string usual = graph ? "segmenter export CHECKPOINT" : "segmenter build GRAPH.onnx";
  const std::string name = std::filesystem::path(artifact).filename().string();
  return "make it again: `" + (made ? manifest.command : usual + " --out " + name) + "`";
}

}  // namespace segmenter_trt
