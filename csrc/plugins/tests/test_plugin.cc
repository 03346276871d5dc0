// The plugins as TensorRT sees them, without TensorRT: its expressions and its logger are fakes.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <memory>
#include <new>
#include <string>
#include <tuple>
#include <vector>

#include "fake_driver.h"
#include "fake_images.h"
#include "fake_tensorrt.h"
#include "message.h"
#include "nodes.h"
#include "plugin.h"

extern "C" nvinfer1::IPluginCreatorInterface* const* getCreators(std::int32_t& count);
extern "C" void setLoggerFinder(nvinfer1::ILoggerFinder* finder);

namespace {
std::int32_t library_version = 10000 * NV_TENSORRT_MAJOR;
thread_local int allocations = 0;
}  // namespace

// What tells this program's TensorRT from another.
extern "C" __attribute__((visibility("default"))) std::int32_t getInferLibVersion() { return library_version; }

void* operator new(std::size_t bytes) {
  ++allocations;
  if (void* const memory = std::malloc(bytes)) return memory;
  throw std::bad_alloc();
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }

namespace segmenter_plugins {
namespace {

std::string told(const std::function<void()>& step) {
  testing::internal::CaptureStderr();
  step();
  return testing::internal::GetCapturedStderr();
}

std::int32_t enqueue(const Node& each, const std::string& op, std::vector<std::vector<std::int64_t>> sides,
                     DataType type = DataType::kHALF) {
  const auto in = tensors(sides, type);
  std::vector<const void*> inputs;
  for (std::size_t index = 0; index < in.size(); ++index)
    inputs.push_back(reinterpret_cast<const void*>((index + 1) << 12));
  void* output = reinterpret_cast<void*>(std::uintptr_t{1} << 20);
  EXPECT_EQ(in.size(), shapes(op).size());
  return each.runtime().enqueue(in.data(), nullptr, inputs.data(), &output, nullptr, nullptr);
}

class PluginTest : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    fake::add_all_images();
    fake::reset();
  }
};

INSTANTIATE_TEST_SUITE_P(Ops, PluginTest, testing::ValuesIn(kOps), [](const auto& each) { return each.param; });

TEST_P(PluginTest, IsNamedAndVersioned) {
  const Node made = node(GetParam());
  ASSERT_TRUE(made.plugin);
  EXPECT_EQ(made.core().getPluginName(), GetParam());
  EXPECT_STREQ(made.core().getPluginVersion(), "1");
  EXPECT_STREQ(made.core().getPluginNamespace(), "segmenter");
  EXPECT_EQ(made.build().getNbOutputs(), 1);
  const auto in = profile(GetParam());
  EXPECT_EQ(made.build().getWorkspaceSize(in.data(), static_cast<std::int32_t>(in.size()) - 1, &in.back(), 1), 0U);
}

TEST_P(PluginTest, TheOutputsShapeFollowsTheInputs) {
  const Node made = node(GetParam());
  FakeExprs exprs;
  const FakeSide* const batch = exprs.side(7, false);
  std::vector<nvinfer1::DimsExprs> in;
  for (const auto& sides : shapes(GetParam(), 7)) {
    nvinfer1::DimsExprs each{};
    for (const std::int64_t side : sides) each.d[each.nbDims++] = side == 7 ? batch : exprs.side(side, true);
    in.push_back(each);
  }
  nvinfer1::DimsExprs out{};
  const auto count = static_cast<std::int32_t>(in.size());
  ASSERT_EQ(made.build().getOutputShapes(in.data(), count, nullptr, 0, &out, 1, exprs), 0);
  const auto wanted = output_of(GetParam(), 7);
  ASSERT_EQ(out.nbDims, static_cast<std::int32_t>(wanted.size()));
  for (std::size_t axis = 0; axis < wanted.size(); ++axis) {
    EXPECT_EQ(static_cast<const FakeSide*>(out.d[axis])->value_, wanted[axis]);
  }
  EXPECT_EQ(out.d[0], batch);
  const std::string message = told([&] {
    in[0].nbDims = 2;
    EXPECT_NE(made.build().getOutputShapes(in.data(), count, nullptr, 0, &out, 1, exprs), 0);
    EXPECT_NE(made.build().getOutputShapes(in.data(), count + 1, nullptr, 0, &out, 1, exprs), 0);
  });
  EXPECT_NE(message.find(GetParam() + ": input 0 of 2 axes: wanted "), std::string::npos) << message;
}

TEST_P(PluginTest, SixteenBitTypesAloneAreTaken) {
  const Node made = node(GetParam());
  const auto count = static_cast<std::int32_t>(shapes(GetParam()).size());
  for (const DataType type : {DataType::kHALF, DataType::kBF16}) {
    DataType out{};
    const std::vector<DataType> in(static_cast<std::size_t>(count), type);
    EXPECT_EQ(made.build().getOutputDataTypes(&out, 1, in.data(), count), 0);
    EXPECT_EQ(out, GetParam() == kOps[3] ? DataType::kINT32 : type);
    auto all = profile(GetParam(), type);
    for (std::int32_t position = 0; position <= count; ++position) {
      EXPECT_TRUE(made.build().supportsFormatCombination(position, all.data(), count, 1)) << position;
      auto& tensor = all[static_cast<std::size_t>(position)].desc;
      tensor.format = TensorFormat::kCHW4;
      EXPECT_FALSE(made.build().supportsFormatCombination(position, all.data(), count, 1));
      tensor.format = TensorFormat::kLINEAR;
      const DataType kept = tensor.type;
      tensor.type = DataType::kFLOAT;
      EXPECT_FALSE(made.build().supportsFormatCombination(position, all.data(), count, 1));
      tensor.type = kept;
    }
    EXPECT_FALSE(made.build().supportsFormatCombination(count + 1, all.data(), count, 1));
    EXPECT_FALSE(made.build().supportsFormatCombination(0, all.data(), count + 1, 1));
  }
  DataType out{};
  const std::vector<DataType> in(static_cast<std::size_t>(count), DataType::kFLOAT);
  const std::string message = told([&] { EXPECT_NE(made.build().getOutputDataTypes(&out, 1, in.data(), count), 0); });
  EXPECT_NE(message.find("export with --precision fp16 or bf16"), std::string::npos) << message;
  EXPECT_EQ(std::count(message.begin(), message.end(), '\n'), 1);
}

TEST_P(PluginTest, APlanRestoresItAndClonesAreAlike) {
  const Node made = node(GetParam());
  const PluginFieldCollection stored = *made.runtime().getFieldsToSerialize();
  const std::vector<PluginField> fields(stored.fields, stored.fields + stored.nbFields);
  const Node restored = node(GetParam(), fields);
  const Node clone{std::unique_ptr<nvinfer1::IPluginV3>(made.plugin->clone())};
  const Node attached{std::unique_ptr<nvinfer1::IPluginV3>(made.runtime().attachToContext(nullptr))};
  const std::string key = made.build().getTimingCacheID();
  for (const Node* other : {&restored, &clone, &attached}) {
    ASSERT_TRUE(other->plugin);
    EXPECT_EQ(key, other->build().getTimingCacheID());
    EXPECT_EQ(enqueue(*other, GetParam(), shapes(GetParam())), 0);
  }
  EXPECT_EQ(fake::launched().size(), 3U);
  EXPECT_NE(key.find(kKernels.hash), std::string::npos);
  const PluginFieldCollection* const offered = Creator(maker(GetParam()), std::make_shared<Launcher>()).getFieldNames();
  ASSERT_TRUE(offered);
}

TEST_P(PluginTest, TheProfileIsAskedWhetherItHasKernels) {
  const Node made = node(GetParam(), "libno_such_driver.so.1");
  const auto in = profile(GetParam());
  const auto count = static_cast<std::int32_t>(in.size()) - 1;
  EXPECT_EQ(made.build().configurePlugin(in.data(), count, &in.back(), 1), 0);
  EXPECT_EQ(
      told([&] { EXPECT_NE(made.build().configurePlugin(in.data(), count + 1, &in.back(), 1), 0); }).substr(0, 20),
      "segmenter_trt_plugin");
}

TEST_P(PluginTest, WithoutADriverPlansAreBuiltAndNothingIsLaunched) {
  const Node made = node(GetParam(), "libno_such_driver.so.1");
  const auto in = tensors(shapes(GetParam()));
  const std::string quiet = told(
      [&] { EXPECT_EQ(made.runtime().onShapeChange(in.data(), static_cast<std::int32_t>(in.size()), nullptr, 1), 0); });
  EXPECT_EQ(quiet, "");
  const std::string message = told([&] { EXPECT_NE(enqueue(made, GetParam(), shapes(GetParam())), 0); });
  EXPECT_EQ(message.rfind("segmenter_trt_plugin: " + GetParam() + ": no CUDA driver: libno_such_driver.so.1", 0), 0U);
  EXPECT_EQ(std::count(message.begin(), message.end(), '\n'), 1);
}

TEST_P(PluginTest, AShapeLoadsCodeAndALaunchThenAllocatesNothing) {
  fake::set_gpus({90});
  const Node made = node(GetParam());
  const auto in = tensors(shapes(GetParam()));
  const auto count = static_cast<std::int32_t>(in.size());
  EXPECT_NE(made.runtime().onShapeChange(in.data(), count + 1, nullptr, 1), 0);
  EXPECT_EQ(made.runtime().onShapeChange(in.data(), count, nullptr, 1), 0);
  EXPECT_EQ(fake::calls("cuKernelGetFunction"), 1);
  const std::vector<const void*> inputs(in.size(), reinterpret_cast<const void*>(0x1000));
  void* output = reinterpret_cast<void*>(0x2000);
  fake::be_quiet(true);
  const int before = allocations;
  const std::int32_t result = made.runtime().enqueue(in.data(), nullptr, inputs.data(), &output, nullptr, nullptr);
  const int after = allocations;
  fake::be_quiet(false);
  EXPECT_EQ(result, 0);
  EXPECT_EQ(after, before);
  EXPECT_EQ(fake::calls("cuKernelGetFunction"), 1);
}

TEST_P(PluginTest, ShapesThatDoNotFitAreToldInALine) {
  const Node made = node(GetParam());
  for (std::size_t index = 0; index < shapes(GetParam()).size(); ++index) {
    auto sides = shapes(GetParam());
    sides[index].push_back(1);
    const std::string message = told([&] { EXPECT_NE(enqueue(made, GetParam(), sides), 0); });
    EXPECT_NE(message.find(": wanted ["), std::string::npos) << message;
    EXPECT_EQ(std::count(message.begin(), message.end(), '\n'), 1);
  }
  EXPECT_TRUE(told([&] {
                EXPECT_NE(enqueue(made, GetParam(), shapes(GetParam()), DataType::kFLOAT), 0);
              }).find("wanted float16 or bfloat16") != std::string::npos);
  EXPECT_TRUE(fake::launched().empty());
}

TEST(Plugin, ShapesOfEachOpMustAgree) {
  fake::add_all_images();
  const std::vector<std::tuple<std::string, std::vector<std::vector<std::int64_t>>, std::string>> wrong = {
      {kOps[0], {{2, 21, 575}}, "qkv [2, 21, 575] and 3 heads: wanted a width of 3 x heads x head dimension"},
      {kOps[0], {{2, 21, 0}}, "and 3 heads"},
      {kOps[1], {{2, 3, 60, 80}, {192, 3, 16, 16}, {192}, {1, 21, 192}, {1, 1, 192}}, "multiples of 16"},
      {kOps[1], {{2, 3, 64, 80}, {192, 3, 16, 8}, {192}, {1, 21, 192}, {1, 1, 192}}, "wanted [C, 3, P, P]"},
      {kOps[1], {{2, 3, 64, 80}, {200, 3, 16, 16}, {200}, {1, 21, 200}, {1, 1, 200}}, "a multiple of 16"},
      {kOps[1],
       {{2, 3, 64, 80}, {192, 3, 16, 16}, {192}, {1, 22, 192}, {1, 1, 192}},
       "position [1, 22, 192]: wanted [1, 21, 192]"},
      {kOps[1], {{2, 3, 32768, 32768}, {192, 3, 16, 16}, {192}, {1, 21, 192}, {1, 1, 192}}, "too large"},
      {kOps[2], {{2, 20, 192}, {3, 5, 192}, {5}, {5}}, "classes [3, 5, 192]: wanted [2, -1, 192]"},
      {kOps[2], {{2, 20, 192}, {2, 0, 192}, {0}, {0}}, "wanted at least 1 class"},
      {kOps[2], {{2, 20, 192}, {2, 5, 192}, {5}, {6}}, "bias [6]: wanted [5]"},
      {kOps[3], {{2, 0, 5, 5}}, "wanted sides of at least 1"},
      {kOps[3], {{2, 16777216, 5, 5}}, "too large"},
  };
  for (const auto& each : wrong) {
    const auto& op = std::get<0>(each);
    const auto& sides = std::get<1>(each);
    const Node made = node(op);
    const std::string message = told([&] { EXPECT_NE(enqueue(made, op, sides), 0); });
    EXPECT_NE(message.find(std::get<2>(each)), std::string::npos) << message;
  }
}

TEST(Plugin, WhatNoKernelServesFailsTheBuild) {
  const Node made = node(kOps[0], "libno_such_driver.so.1");
  auto in = profile(kOps[0]);
  in[0].min.d[2] = in[0].max.d[2] = 3 * 3 * 48;
  const std::string message = told([&] { EXPECT_NE(made.build().configurePlugin(in.data(), 1, &in[1], 1), 0); });
  EXPECT_NE(message.find("head dimension 48 in fp16"), std::string::npos) << message;
  in[0].min.d[2] = in[0].max.d[2] = -1;  // not known yet
  EXPECT_EQ(made.build().configurePlugin(in.data(), 1, &in[1], 1), 0);
}

TEST(Plugin, AttributesAreChecked) {
  Attributes wrong;
  const std::int64_t wide = 3;
  const std::vector<std::pair<std::string, std::vector<PluginField>>> taken = {
      {kOps[0], {{"heads", &wide, PluginFieldType::kINT64, 1}}}};
  for (const auto& [op, fields] : taken) EXPECT_TRUE(node(op, fields).plugin);
  wrong.heads = {0};
  wrong.epsilon = -1;
  wrong.crop = {65, 80};
  for (const std::string& op : {kOps[0], kOps[2], kOps[3]}) {
    EXPECT_NE(told([&] { EXPECT_FALSE(node(op, wrong.of(op)).plugin); }).find(": wanted "), std::string::npos);
    EXPECT_NE(told([&] { EXPECT_FALSE(node(op, std::vector<PluginField>{}).plugin); }).find(" is missing; "),
              std::string::npos);
  }
  for (const std::vector<std::int32_t>& crop : {std::vector<std::int32_t>{56}, {0, 5}, {-2, 5}}) {
    wrong.crop = crop;
    EXPECT_NE(told([&] { EXPECT_FALSE(node(kOps[3], wrong.of(kOps[3])).plugin); }), "");
  }
  const float number = 3;
  told([&] { EXPECT_FALSE(node(kOps[0], {{"heads", &number, PluginFieldType::kFLOAT32, 1}}).plugin); });
  Creator creator(maker(kOps[1]), std::make_shared<Launcher>());
  EXPECT_TRUE(
      std::unique_ptr<nvinfer1::IPluginV3>(creator.createPlugin("node", nullptr, nvinfer1::TensorRTPhase::kRUNTIME)));
}

TEST(Plugin, OtherAttributesHaveOtherTimings) {
  Attributes other;
  other.heads = {6};
  other.crop = {57, 72};
  other.epsilon = 1e-6F;
  for (const std::string& op : {kOps[0], kOps[2], kOps[3]}) {
    const Node a = node(op), b = node(op, other.of(op));
    EXPECT_STRNE(a.build().getTimingCacheID(), b.build().getTimingCacheID());
  }
}

TEST(Plugin, LabelsOfAGridKnownAtRunTime) {
  Attributes attributes;
  attributes.size = {-16, -16};
  attributes.crop = {-1, 72};
  const Node made = node(kOps[3], attributes.of(kOps[3]));
  FakeExprs exprs;
  nvinfer1::DimsExprs in{}, out{};
  for (const FakeSide* side :
       {exprs.side(7, false), exprs.side(4, false), exprs.side(5, false), exprs.side(300, true)}) {
    in.d[in.nbDims++] = side;
  }
  ASSERT_EQ(made.build().getOutputShapes(&in, 1, nullptr, 0, &out, 1, exprs), 0);
  EXPECT_EQ(static_cast<const FakeSide*>(out.d[1])->value_, 64);
  EXPECT_FALSE(out.d[1]->isConstant());
  EXPECT_EQ(out.d[2]->getConstantValue(), 72);
  fake::add_all_images();
  fake::reset();
  EXPECT_EQ(enqueue(made, kOps[3], {{2, 4, 5, 300}}), 0);
  EXPECT_EQ(fake::launched().size(), 1U);
  const std::string refused = told([&] { EXPECT_NE(enqueue(made, kOps[3], {{2, 4, 4, 300}}), 0); });
  EXPECT_NE(refused.find("crop 64x72: wanted a part of 64x64"), std::string::npos);
}

TEST(Plugin, ErrorsGoToTheLoggerOfTheSameTensorRt) {
  FakeLogger logger;
  FakeFinder finder;
  finder.logger = &logger;
  setLoggerFinder(&finder);
  EXPECT_EQ(told([] { error("a fault"); }), "");
  EXPECT_EQ(logger.messages, std::vector<std::string>{"a fault"});
  finder.logger = nullptr;
  EXPECT_EQ(told([] { error("a fault"); }), "segmenter_trt_plugin: a fault\n");
  finder.logger = &logger;
  library_version = 10000 * (NV_TENSORRT_MAJOR + 1);
  setLoggerFinder(&finder);
  EXPECT_EQ(told([] { error("a fault"); }), "segmenter_trt_plugin: a fault\n");
  library_version = 10000 * NV_TENSORRT_MAJOR;
  setLoggerFinder(nullptr);
  EXPECT_EQ(logger.messages.size(), 1U);
}

TEST(Library, OffersFourCreators) {
  std::int32_t count = 0;
  nvinfer1::IPluginCreatorInterface* const* const creators = getCreators(count);
  ASSERT_EQ(count, 4);
  for (std::int32_t index = 0; index < count; ++index) {
    auto* const creator = static_cast<nvinfer1::IPluginCreatorV3One*>(creators[index]);
    EXPECT_EQ(creator->getPluginName(), kOps[static_cast<std::size_t>(index)]);
    EXPECT_STREQ(creator->getPluginNamespace(), "segmenter");
    EXPECT_STREQ(creator->getPluginVersion(), "1");
    EXPECT_STREQ(creator->getInterfaceInfo().kind, "PLUGIN CREATOR_V3ONE");
  }
}

}  // namespace
}  // namespace segmenter_plugins
