// Launches a kernel by its op's name, for whoever has tensors on a GPU: Python, through ctypes.
#include <cstdint>
#include <exception>
#include <string>

#include "failure.h"
#include "launcher.h"

using namespace segmenter_launch;

namespace {

// What is launched, of sizes and pointers in the order in which calls.h has them, outputs last.
Call call_of(const std::string& op, Type type, const std::int64_t* n, float epsilon, void* const* p) {
  if (op == "attention") return AttentionCall{type, n[0], n[1], n[2], n[3], p[0], p[1]};
  if (op == "patch_embed") {
    return PatchEmbedCall{type, n[0], n[1], n[2], n[3], n[4], n[5], p[0], p[1], p[2], p[3], p[4], p[5]};
  }
  if (op == "mask_scores") return MaskScoresCall{type, n[0], n[1], n[2], n[3], epsilon, p[0], p[1], p[2], p[3], p[4]};
  if (op == "upsample_argmax") {
    return UpsampleArgmaxCall{type, n[0], n[1], n[2], n[3], n[4], n[5], n[6], n[7], p[0], p[1]};
  }
  if (op == "merge_windows") {
    return MergeWindowsCall{n[0], n[1], n[2], n[3], n[4], n[5], n[6], n[7], n[8], n[9], n[10], p[0], p[1], p[2]};
  }
  if (op == "resize") return ResizeCall{n[0], n[1], n[2], n[3], n[4], p[0], p[1], p[2], p[3]};
  if (op == "normalize") return NormalizeCall{n[0], n[1], p[0], p[1], p[2]};
  throw Failure("no op " + op);
}

}  // namespace

// Enqueues on a stream of the current context. Null, or why it could not be, until the next call.
extern "C" __attribute__((visibility("default"))) const char* launch_kernel(const char* op, int bf16,
                                                                            const std::int64_t* sizes, float epsilon,
                                                                            void* const* pointers, void* stream) {
  static Launcher launcher;
  static std::string told;
  try {
    launcher.launch(call_of(op, bf16 != 0 ? Type::bf16 : Type::fp16, sizes, epsilon, pointers),
                    static_cast<Stream>(stream));
    return nullptr;
  } catch (const std::exception& error) {
    told = error.what();
    return told.c_str();
  }
}
