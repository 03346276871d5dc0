#include "calls.h"

#include <algorithm>
#include <bit>
#include <string>

#include "failure.h"

namespace segmenter_launch {
namespace {

std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

std::int64_t floor_div(std::int64_t a, std::int64_t b) { return a / b - (a % b != 0 && (a < 0) != (b < 0)); }

const char* name(Type type) {
  constexpr const char* kNames[] = {"fp16", "bf16", "fp32", "uint8"};
  return kNames[static_cast<int>(type)];
}

std::string sizes_of(std::span<const Image> images, Op op, Type type) {
  std::string sizes;
  for (const Image& image : images) {
    if (image.op == op && image.type == type) sizes += (sizes.empty() ? "" : ", ") + std::to_string(image.size);
  }
  return sizes.empty() ? "none" : sizes;
}

// The image whose size is the one wanted.
const Image& exactly(std::span<const Image> images, Op op, Type type, std::int64_t size, const char* what) {
  for (const Image& image : images) {
    if (image.op == op && image.type == type && image.size == size) return image;
  }
  throw Failure(std::string(what) + " " + std::to_string(size) + " in " + name(type) +
                ": this plugin library has kernels for " + sizes_of(images, op, type) +
                "; export with --lowering native");
}

constexpr std::int64_t kMostClasses = 32767;
// segmenter_trt/upsample_argmax.h has it too: the plugin library is built of these sources without segmenter_trt's
constexpr std::int64_t kMostByteClasses = 256;
constexpr std::int64_t kMaxSides = std::int64_t{1} << 29;  // source side times target side, so that positions fit int32
constexpr std::int64_t kMaxElements = (std::int64_t{1} << 31) - (std::int64_t{1} << 16);  // of an image, likewise

const Image& only(std::span<const Image> images, Op op, const char* what) {
  for (const Image& image : images) {
    if (image.op == op) return image;
  }
  throw Failure(std::string("this library was built without kernels that ") + what +
                " images; name a folder of them in SEGMENTER_TRT_CUBINS");
}

// Classes an upsampling kernel compares at once; the same on every architecture.
int group_of(const Image& image) { return image.forms.front().constant("GROUP"); }

}  // namespace

int Form::constant(std::string_view name) const {
  for (const Constant& each : constants) {
    if (each.name == name) return each.value;
  }
  throw Failure("no constant named " + std::string(name) +
                "; this library is of another version than its kernels: build it anew");
}

const Value* Launch::find(std::string_view name) const noexcept {
  for (std::size_t index = 0; index < count_; ++index) {
    if (values_[index].name == name) return &values_[index];
  }
  return nullptr;
}

const Image& AttentionCall::choose(std::span<const Image> images) const {
  return exactly(images, Op::attention, type, D, "head dimension");
}

Launch AttentionCall::launch(const Form& form) const {
  const std::int64_t block_m = form.constant("BLOCK_M"), block_t = form.constant("BLOCK_T");
  const std::int64_t rest = N % block_m;
  const bool small = form.constant("SMALL") != 0 && 0 < rest && rest <= block_t;
  const std::int64_t tiles_a_head = N / block_m + (rest > 0 && !small ? 1 : 0);
  Launch launch;
  launch.grid = {B * A * (tiles_a_head + (small ? 1 : 0)), 1};
  launch.pointer("qkv_ptr", qkv);
  // one tensor in boxes of several sizes
  for (const char* name : {"query", "query_rest", "keys", "keys_rest", "narrow", "narrow_rest"}) {
    launch.descriptor(name, qkv, {B, N, 3 * A * D});
  }
  launch.pointer("out_ptr", out);
  launch.integer("N", N);
  launch.integer("A", A);
  launch.integer("tiles_a_head", tiles_a_head);
  launch.integer("whole_tiles", B * A * tiles_a_head);
  return launch;
}

const Image& PatchEmbedCall::choose(std::span<const Image> images) const {
  return exactly(images, Op::patch_embed, type, P, "patch size");
}

Launch PatchEmbedCall::launch(const Form& form) const {
  const std::int64_t M = B * h * w;
  Launch launch;
  launch.grid = {ceil_div(M, form.constant("BLOCK_M")) * ceil_div(C, form.constant("BLOCK_C")), 1};
  launch.pointer("image_ptr", image);
  launch.pointer("weight_ptr", weight);
  launch.pointer("bias_ptr", bias);
  launch.pointer("position_ptr", position);
  launch.pointer("tokens_ptr", tokens);
  launch.pointer("out_ptr", out);
  launch.integer("M", M);
  launch.integer("H", h * P);
  launch.integer("W", w * P);
  launch.integer("h", h);
  launch.integer("w", w);
  launch.integer("C", C);
  launch.integer("E", E);
  for (const char* name : {"scale_0", "scale_1", "scale_2"}) launch.number(name, 1);  // of pixels, which these are not
  for (const char* name : {"shift_0", "shift_1", "shift_2"}) launch.number(name, 0);
  return launch;
}

const Image& MaskScoresCall::choose(std::span<const Image> images) const {
  const Image* best = nullptr;
  for (const Image& image : images) {
    // padding has no part in the result, so that any kernel for at least K classes is right
    const bool serves = image.op == Op::mask_scores && image.type == type && image.size >= K;
    if (serves && (!best || image.size < best->size)) best = &image;
  }
  if (best) return *best;
  throw Failure(std::to_string(K) + " classes in " + name(type) + ": this plugin library has kernels for at most " +
                sizes_of(images, Op::mask_scores, type) + "; export with --lowering native");
}

Launch MaskScoresCall::launch(const Form& form) const {
  const std::int64_t block_c = form.constant("BLOCK_C");
  if (C % block_c != 0) {
    throw Failure("width " + std::to_string(C) + ": wanted a multiple of " + std::to_string(block_c) +
                  "; export with --lowering native");
  }
  Launch launch;
  launch.grid = {ceil_div(N, form.constant("BLOCK_N")), B};
  launch.pointer("patches_ptr", patches);
  launch.pointer("classes_ptr", classes);
  launch.pointer("weight_ptr", weight);
  launch.pointer("bias_ptr", bias);
  launch.pointer("out_ptr", out);
  launch.integer("N", N);
  launch.integer("K", K);
  launch.integer("C", C);
  launch.number("eps", epsilon);
  launch.integer("stride_pb", N * C);
  launch.integer("stride_pn", C);
  launch.integer("stride_cb", K * C);
  launch.integer("stride_ck", C);
  return launch;
}

const Image& UpsampleArgmaxCall::choose(std::span<const Image> images) const {
  const std::int64_t between = ceil_div(H, h);
  const Image* best = nullptr;
  // groups as large as the classes allow; then the fewest rows that hold those between two source rows, else the most
  const auto better = [&](const Image& a, const Image& b) {
    if (group_of(a) != group_of(b)) return group_of(a) > group_of(b);
    if ((a.size >= between) != (b.size >= between)) return a.size >= between;
    return a.size >= between ? a.size < b.size : a.size > b.size;
  };
  for (const Image& image : images) {
    const bool serves = image.op == Op::upsample_argmax && image.type == type && group_of(image) <= K;
    if (serves && (!best || better(image, *best))) best = &image;
  }
  if (best) return *best;
  throw Failure(std::to_string(K) + " classes in " + name(type) +
                ": this plugin library has no kernel for so few; export with --lowering native");
}

Launch UpsampleArgmaxCall::launch(const Form& form) const {
  const std::int64_t chunks = ceil_div(ceil_div(H, h), form.constant("BLOCK_Y"));
  // those up to the one that holds the last row kept
  const std::int64_t intervals = std::max<std::int64_t>(floor_div((2 * rows - 1) * h - H, 2 * H), -1) + 2;
  if (K < form.constant("GROUP"))
    throw Failure(std::to_string(K) + " classes: fewer than this kernel compares at once");
  Launch launch;
  launch.grid = {ceil_div(columns, form.constant("BLOCK_X")) * chunks * intervals * B, 1};
  launch.pointer("masks_ptr", masks);
  launch.pointer("labels_ptr", labels);
  launch.integer("K", K);
  launch.integer("h", h);
  launch.integer("w", w);
  launch.integer("H", H);
  launch.integer("W", W);
  launch.integer("rows", rows);
  launch.integer("columns", columns);
  launch.integer("intervals", intervals);
  launch.integer("chunks", chunks);
  launch.integer("stride_b", h * w * K);
  launch.integer("stride_h", w * K);
  launch.integer("stride_w", K);
  return launch;
}

const Image& MergeWindowsCall::choose(std::span<const Image> images) const {
  if (K > kMostClasses || std::max(h * side_y, w * side_x) >= kMaxSides) {
    throw Failure("masks [" + std::to_string(K) + ", " + std::to_string(h) + ", " + std::to_string(w) + "] of " +
                  std::to_string(side_y) + "x" + std::to_string(side_x) + ": too large to be merged on a GPU");
  }
  for (const Image& image : images) {
    const bool wide = std::string_view(image.name).ends_with("_int16");
    if (image.op == Op::merge_windows && wide == (K > kMostByteClasses)) return image;
  }
  throw Failure(
      "this library was built without kernels that merge windows; name a folder of them in SEGMENTER_TRT_CUBINS");
}

Launch MergeWindowsCall::launch(const Form& form) const {
  Launch launch;
  launch.grid = {ceil_div(W, form.constant("BLOCK_X")) * H, 1};
  launch.pointer("masks_ptr", masks);
  launch.pointer("labels_ptr", labels);
  launch.pointer("odd_ptr", odd);
  launch.integer("K", K);
  launch.integer("h", h);
  launch.integer("w", w);
  launch.integer("side_y", side_y);
  launch.integer("side_x", side_x);
  launch.integer("H", H);
  launch.integer("W", W);
  launch.integer("window", window);
  launch.integer("stride", stride);
  launch.integer("rows", rows);
  launch.integer("columns", columns);
  launch.integer("stride_n", K * h * w);
  launch.integer("stride_k", h * w);
  launch.integer("stride_h", w);
  return launch;
}

const Image& ResizeCall::choose(std::span<const Image> from) const {
  if (std::max(length, to) * inner >= kMaxElements) {
    throw Failure("images of " + std::to_string(length) + " to " + std::to_string(to) + " by " + std::to_string(inner) +
                  ": too large to be resized on a GPU");
  }
  return only(from, Op::resize, "resize");
}

Launch ResizeCall::launch(const Form& form) const {
  Launch launch;
  launch.grid = {ceil_div(to * inner, form.constant("BLOCK")) * outer, 1};
  launch.pointer("images_ptr", images);
  launch.pointer("first_ptr", first);
  launch.pointer("weights_ptr", weights);
  launch.pointer("resized_ptr", resized);
  launch.integer("length", length);
  launch.integer("to", to);
  launch.integer("inner", inner);
  launch.integer("taps", taps);
  return launch;
}

const Image& NormalizeCall::choose(std::span<const Image> from) const {
  if (3 * pixels >= kMaxElements) {
    throw Failure("images of " + std::to_string(pixels) + " pixels: too large to be normalised on a GPU");
  }
  return only(from, Op::normalize, "normalise");
}

Launch NormalizeCall::launch(const Form& form) const {
  Launch launch;
  launch.grid = {ceil_div(pixels, form.constant("BLOCK")) * B, 1};
  launch.pointer("images_ptr", images);
  launch.pointer("table_ptr", table);
  launch.pointer("planes_ptr", planes);
  launch.integer("pixels", pixels);
  return launch;
}

}  // namespace segmenter_launch
