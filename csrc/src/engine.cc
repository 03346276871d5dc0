#include "segmenter_trt/engine.h"

#include <algorithm>
#include <cstddef>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "backend.h"
#include "cpu.h"
#include "engine_state.h"
#include "process.h"
#include "rebuild.h"
#include "regular_file.h"
#include "segmenter_trt/errors.h"
#include "sha256.h"
#include "verified.h"

namespace segmenter_trt {
namespace {

namespace fs = std::filesystem;

// The runtime that opens an artifact; empty for what is none, or is only built from.
std::string opened_by(const fs::path& artifact) {
  try {
    const Manifest manifest = read_manifest(artifact);
    if (manifest.kind == Kind::plan) return manifest.engine;
    return manifest.engine == "any" ? "openvino" : "";
  } catch (const ManifestError&) {
    return {};
  }
}

// Who names a folder, such as the one that `segmenter pipeline` fills, is told what to open in it.
void require_file(const fs::path& path) {
  std::error_code unreadable;
  if (!fs::is_directory(path, unreadable)) return;
  std::vector<std::string> found;
  for (fs::directory_iterator entry(path, unreadable), end; entry != end; entry.increment(unreadable)) {
    const std::string runtime = opened_by(entry->path());
    if (!runtime.empty()) found.push_back(entry->path().filename().string() + " (" + runtime + ")");
  }
  if (unreadable) throw ArtifactError(path.string() + ": is a folder, and cannot be listed: " + unreadable.message());
  if (found.empty()) {
    throw ArtifactError(path.string() + ": is a folder, and no engine lies in it; wanted an .onnx or .plan file with" +
                        " its manifest beside it; make it with `segmenter export` or `segmenter build`");
  }
  std::sort(found.begin(), found.end());
  std::string files = found.front();
  for (std::size_t i = 1; i < found.size(); ++i) files += ", " + found[i];
  throw ArtifactError(path.string() + ": is a folder of engines, wanted one of them; open its file " + files);
}

// A whole file. Reading it once, and giving runtimes what was read, leaves no moment to swap the file in.
class Contents {
 public:
  explicit Contents(const fs::path& path) {
    std::optional<RegularFile> file = open_regular_file(path);
    if (!file) {
      throw ArtifactError(path.string() +
                          ": no such engine file; make it with `segmenter export` or `segmenter build`");
    }
    size_ = static_cast<std::size_t>(file->bytes);
    data_ = std::make_unique_for_overwrite<std::byte[]>(size_);
    file->stream.read(reinterpret_cast<char*>(data_.get()), static_cast<std::streamsize>(size_));
    if (static_cast<std::size_t>(file->stream.gcount()) != size_) {
      throw ArtifactError(path.string() + ": " + std::to_string(file->stream.gcount()) + " of " +
                          std::to_string(size_) + " bytes could be read; copy it again");
    }
  }

  std::span<const std::byte> bytes() const { return {data_.get(), size_}; }

 private:
  std::unique_ptr<std::byte[]> data_;
  std::size_t size_ = 0;
};

void check_options(const EngineOptions& options) {
  if (options.threads < 0) throw InputError(std::to_string(options.threads) + " threads: wanted 0 (all cores) or more");
  if (options.streams < 1) throw InputError(std::to_string(options.streams) + " streams: wanted at least 1");
  if (options.device < 0) throw InputError("device " + std::to_string(options.device) + ": wanted 0 or more");
}

}  // namespace

Engine::Engine(std::shared_ptr<const State> state) noexcept : state_(std::move(state)) {}

Engine Engine::open(const fs::path& artifact, const EngineOptions& options) {
  check_options(options);
  EngineOptions definite = options;
  if (definite.threads == 0) definite.threads = usable_cores();

  require_file(artifact);
  const Contents contents(artifact);
  Manifest manifest = read_manifest(artifact);
  if (const std::string found = sha256(contents.bytes()); found != manifest.sha256) {
    throw ArtifactError(artifact.string() + ": is not the file its manifest vouches for (expected SHA-256 " +
                        manifest.sha256 + ", it has " + found + "); copy both files again, or " +
                        rebuild_advice(manifest, artifact.string()));
  }
  auto backend = make_backend({manifest, artifact, contents.bytes(), definite});
  const Description facts = backend->describe();
  const bool narrowed = manifest.precision == "fp32" && facts.floats == "bf16";
  const std::string engine = facts.engine + "-" + (narrowed ? facts.floats : manifest.precision);
  std::string unsure = unverified(manifest, engine, facts.device);
  if (!unsure.empty()) unsure += "; run `segmenter verify --engine " + facts.engine + "` on this machine";
  if (options.require_verified && !unsure.empty()) throw ArtifactError(artifact.string() + ": " + unsure);
  std::string name = engine + ", " + manifest.model;
  return Engine(of_this_process(std::make_unique<const State>(
      State{artifact, std::move(manifest), definite.threads, std::move(backend), std::move(name), std::move(unsure)})));
}

const Manifest& Engine::manifest() const noexcept { return state_->manifest; }

Description Engine::describe() const {
  Description facts = state_->backend->describe();
  const Manifest& manifest = state_->manifest;
  facts.precision = manifest.precision;
  facts.model = manifest.model;
  facts.labels_by = state_->backend->gives_labels() ? "the graph" : "segmenter_trt.upsample_argmax";
  for (std::string* const place : {&facts.windows_by, &facts.resized_by}) {
    if (place->empty()) *place = "the CPU";
  }
  facts.input = state_->backend->input();
  facts.height = manifest.height;
  facts.width = manifest.width;
  facts.batch = manifest.batch;
  if (!state_->unverified.empty()) {
    facts.warning = state_->unverified + (facts.warning.empty() ? "" : "; " + facts.warning);
  }
  return facts;
}

}  // namespace segmenter_trt
