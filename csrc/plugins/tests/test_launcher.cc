// Launches against the fake driver: which code on which GPU, every fault, several devices and many threads.
#include <gtest/gtest.h>

#include <atomic>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "failure.h"
#include "fake_driver.h"
#include "fake_images.h"
#include "launcher.h"

namespace segmenter_launch {
namespace {

const void* at(std::uintptr_t address) { return reinterpret_cast<const void*>(address); }
void* to(std::uintptr_t address) { return reinterpret_cast<void*>(address); }

AttentionCall attention(std::int64_t N = 197) { return {Type::fp16, 2, N, 3, 64, at(0x1000), to(0x2000)}; }

MaskScoresCall mask_scores() {
  return {Type::fp16, 2, 100, 5, 64, 1e-5F, at(0x1000), at(0x2000), at(0x3000), at(0x4000), to(0x5000)};
}

PatchEmbedCall patch_embed() {
  return {Type::fp16, 2, 4, 5, 16, 192, 1, at(0x1000), at(0x2000), at(0x3000), at(0x4000), at(0x5000), to(0x6000)};
}

UpsampleArgmaxCall upsample(std::int64_t K = 5) {
  return {Type::fp16, 2, 4, 5, K, 64, 80, 56, 72, at(0x1000), to(0x2000)};
}

const Image& image(const char* name) {
  for (const Image& each : kKernels.images) {
    if (each.name == std::string_view(name)) return each;
  }
  throw std::runtime_error(name);
}

std::string failure(Launcher& launcher, const Call& call) {
  try {
    launcher.launch(call, nullptr);
  } catch (const Failure& error) {
    return error.what();
  }
  return "";
}

class LauncherTest : public testing::Test {
 protected:
  void SetUp() override {
    fake::add_all_images();
    fake::reset();
  }
  Launcher launcher{kKernels, FAKE_DRIVER};
};

TEST_F(LauncherTest, OnAnAmpereGpuAttentionReadsByPointers) {
  launcher.launch(attention(), reinterpret_cast<Stream>(0x77));
  const auto launched = fake::launched();
  ASSERT_EQ(launched.size(), 1U);
  EXPECT_EQ(launched[0].symbol, "from_pointers");
  EXPECT_EQ(launched[0].config.stream, reinterpret_cast<Stream>(0x77));
  const Form& form = image("attention_fp16_d64").forms[0];
  EXPECT_EQ(launched[0].config.block_x, form.threads);
  EXPECT_EQ(launched[0].config.shared_bytes, form.shared_bytes);
  EXPECT_EQ(launched[0].shared_limit, static_cast<int>(form.shared_bytes));
  EXPECT_GT(launched[0].shared_limit, 0);
}

TEST_F(LauncherTest, OnHopperItReadsByTensorMaps) {
  fake::set_gpus({90});
  launcher.launch(attention(), nullptr);
  const auto launched = fake::launched();
  ASSERT_EQ(launched.size(), 1U);
  EXPECT_EQ(launched[0].symbol, "from_descriptors");
  ASSERT_EQ(launched[0].parameters[0].size(), 128U);
  EXPECT_EQ(fake::map(launched[0].parameters[0]).sides, (std::vector<std::uint64_t>{576, 197, 2}));
}

// The bit that drivers up to 13.1 must not see in maps of less than 128 KiB.
bool large_bit(int version, std::int64_t N) {
  fake::reset();
  fake::set_gpus({90});
  fake::set_version(version);
  Launcher launcher(kKernels, FAKE_DRIVER);
  AttentionCall call = attention(N);
  call.B = call.A = 1;
  launcher.launch(call, nullptr);
  std::uint64_t word = 0;
  std::memcpy(&word, fake::launched().at(0).parameters[0].data() + 8, sizeof word);
  EXPECT_EQ(word | std::uint64_t{1} << 21, ~std::uint64_t{0});
  return word >> 21 & 1;
}

TEST_F(LauncherTest, MapsOfSmallTensorsAreMendedForOldDrivers) {
  EXPECT_FALSE(large_bit(13010, 341));  // 341 * 192 * 2 = 130944 bytes
  EXPECT_TRUE(large_bit(13010, 342));   // 131328, of 131072
  EXPECT_TRUE(large_bit(13020, 341));
}

TEST_F(LauncherTest, EachGpuGetsTheNewestCodeThatRunsOnIt) {
  // fp16 attention is here for 8.0, with PTX, and for 9.0 alone
  const std::vector<std::pair<int, int>> wanted = {{80, 80}, {86, 80},  {87, 80},  {89, 80}, {90, 90},
                                                   {91, 80}, {100, 80}, {103, 80}, {121, 80}};
  for (const auto& [capability, architecture] : wanted) {
    fake::reset();
    fake::set_gpus({capability});
    Launcher fresh(kKernels, FAKE_DRIVER);
    EXPECT_EQ(failure(fresh, attention()), "");
    ASSERT_EQ(fake::launched().size(), 1U) << capability;
    EXPECT_EQ(fake::launched()[0].architecture, architecture) << capability;
  }
}

TEST_F(LauncherTest, AGpuWithoutCodeIsNamed) {
  fake::set_gpus({75});
  EXPECT_EQ(failure(launcher, attention()),
            "GPU of compute capability 7.5: attention_fp16_d64 was compiled for 8.0 and later, 9.0; compile it with "
            "`python -m segmenter_kernels.aot` and build this library anew");
  EXPECT_EQ(fake::calls("cuLibraryLoadData"), 0);
}

TEST_F(LauncherTest, WhatTheDriverTookDecides) {
  fake::set_gpus({90});
  fake::take(80);
  launcher.launch(patch_embed(), nullptr);  // one symbol for both
  const auto launched = fake::launched();
  const Image& known = image("patch_embed_fp16_p16");
  ASSERT_NE(known.forms[0].shared_bytes, known.forms[1].shared_bytes);
  EXPECT_EQ(launched.at(0).config.shared_bytes, known.forms[0].shared_bytes);
  EXPECT_EQ(launched.at(0).shared_limit, static_cast<int>(known.forms[0].shared_bytes));
  EXPECT_EQ(launched.at(0).config.block_x, known.forms[0].threads);
}

TEST_F(LauncherTest, CodeThatIsNotInTheTableIsRefused) {
  fake::add_image(image("attention_fp16_d64").code, {{"from_pointers", 86, false, false, {}}});
  fake::set_gpus({86});
  EXPECT_EQ(failure(launcher, attention()),
            "attention_fp16_d64: the driver took code for 8.6 on a GPU of 8.6, wanted 8.0");
}

TEST_F(LauncherTest, ParametersOfAnotherSizeAreRefused) {
  fake::resize(2, 8);
  EXPECT_EQ(failure(launcher, attention()), "attention_fp16_d64: parameter N of 8 bytes, described as 4");
  fake::reset();
  fake::resize(8, 8);
  EXPECT_EQ(failure(launcher, attention()), "attention_fp16_d64: more than the 8 parameters that are described");
  fake::reset();
  EXPECT_EQ(failure(launcher, attention()), "");
}

TEST_F(LauncherTest, BeforeCuda124ParametersGoUnchecked) {
  fake::hide("cuKernelGetParamInfo");
  EXPECT_EQ(failure(launcher, attention()), "");
  EXPECT_EQ(fake::launched().size(), 1U);
}

TEST_F(LauncherTest, EveryFaultOfTheDriverIsToldAndOver) {
  fake::set_gpus({90});
  for (const char* function :
       {"cuInit", "cuDriverGetVersion", "cuCtxGetDevice", "cuDeviceGetAttribute", "cuLibraryLoadData",
        "cuLibraryGetKernel", "cuKernelGetFunction", "cuKernelGetAttribute", "cuKernelGetParamInfo",
        "cuKernelSetAttribute", "cuTensorMapEncodeTiled", "cuLaunchKernelEx"}) {
    Launcher fresh(kKernels, FAKE_DRIVER);
    fake::fail(function, 1);
    const std::string told = failure(fresh, attention());
    EXPECT_NE(told.find(std::string(function) + ": CUDA_ERROR_INVALID_VALUE (1)"), std::string::npos) << told;
    EXPECT_EQ(told.find('\n'), std::string::npos);
    EXPECT_TRUE(fake::launched().empty());
    fake::fail(function, 0);
    EXPECT_EQ(failure(fresh, attention()), "") << function;
    fake::reset();
    fake::set_gpus({90});
  }
  fake::fail("cuLaunchKernelEx", 719);
  EXPECT_EQ(failure(launcher, attention()),
            "attention_fp16_d64: cuLaunchKernelEx: an error unknown to this driver (719)");
}

TEST_F(LauncherTest, NoDriverOrAnOldOneIsNamed) {
  Launcher none(kKernels, "libno_such_driver.so.1");
  const std::string told = failure(none, attention());
  EXPECT_EQ(told.rfind("no CUDA driver: libno_such_driver.so.1: ", 0), 0U) << told;
  EXPECT_NE(told.find("install NVIDIA's driver"), std::string::npos);
  fake::hide("cuLibraryLoadData");
  EXPECT_NE(failure(launcher, attention()).find("older than 12.0; install NVIDIA's driver 525 or newer"),
            std::string::npos);
  Launcher other(kKernels, "libm.so.6");
  EXPECT_NE(failure(other, attention()).find("older than 12.0"), std::string::npos);
}

TEST_F(LauncherTest, ArgumentsTheCodeWasNotCompiledForAreRefused) {
  AttentionCall call = attention();
  call.qkv = at(0x1008);
  EXPECT_EQ(failure(launcher, call), "attention_fp16_d64: qkv_ptr is no multiple of 16");
  fake::set_gpus({90, 90});
  Launcher hopper(kKernels, FAKE_DRIVER);
  EXPECT_EQ(failure(hopper, call), "attention_fp16_d64: query is no multiple of 16");
  call = attention();
  call.D = 48;
  EXPECT_NE(failure(launcher, call).find("head dimension 48 in fp16: this plugin library has kernels for "),
            std::string::npos);
  MaskScoresCall scores = mask_scores();
  scores.C = 72;
  EXPECT_NE(failure(launcher, scores).find("width 72: wanted a multiple of 64"), std::string::npos);
  scores.C = 64;
  scores.K = 33;
  EXPECT_NE(failure(launcher, scores).find("33 classes in fp16: this plugin library has kernels for at most"),
            std::string::npos);
  scores = mask_scores();
  scores.N = std::int64_t{1} << 31;
  EXPECT_NE(failure(launcher, scores).find("N = 2147483648: does not fit 32 bits"), std::string::npos);
  scores = mask_scores();
  scores.B = 65536;
  EXPECT_NE(failure(launcher, scores).find("65536 programs: use a smaller batch"), std::string::npos);
  EXPECT_TRUE(fake::launched().empty());
}

TEST_F(LauncherTest, ATableOfAnotherVersionIsNamed) {
  const Image known = image("attention_fp16_d64");
  const std::string advice = "; this library is of another version than its kernels: build it anew";
  std::vector<Parameter> parameters(known.forms[0].parameters.begin(), known.forms[0].parameters.end());
  parameters[0].name = "qkv";
  Form form = known.forms[0];
  form.parameters = parameters;
  const Image images[] = {{known.name, known.op, known.type, known.size, known.code, {&form, 1}}};
  Launcher renamed({images, ""}, FAKE_DRIVER);
  EXPECT_EQ(failure(renamed, attention()), "attention_fp16_d64: no argument named qkv" + advice);
  form.constants = {};
  EXPECT_EQ(failure(renamed, attention()), "no constant named BLOCK_M" + advice);
}

TEST_F(LauncherTest, OfFewClassesNoneIsReadBeyondTheFirst) {
  launcher.launch(upsample(4), nullptr);
  launcher.launch(upsample(3), nullptr);
  const auto launched = fake::launched();
  EXPECT_EQ(launched.at(0).image, image("upsample_argmax_fp16_r16_int32").code);
  EXPECT_EQ(launched.at(1).image, image("upsample_argmax_fp16_r16_int32_few").code);
}

TEST_F(LauncherTest, NothingIsLaunchedForNoImages) {
  AttentionCall none = attention();
  none.B = 0;
  launcher.launch(none, nullptr);
  launcher.launch(attention(0), nullptr);
  EXPECT_TRUE(fake::launched().empty());
}

TEST_F(LauncherTest, CodeIsLoadedOnceADevice) {
  fake::set_gpus({80, 90});
  for (const int device : {0, 1, 0, 1, 1}) {
    fake::use_gpu(device);
    launcher.launch(attention(), nullptr);
  }
  const auto launched = fake::launched();
  ASSERT_EQ(launched.size(), 5U);
  for (const auto& each : launched) EXPECT_EQ(each.architecture, each.device == 0 ? 80 : 90);
  EXPECT_EQ(launched[1].shared_limit, static_cast<int>(image("attention_fp16_d64").forms[1].shared_bytes));
  EXPECT_EQ(fake::calls("cuLibraryLoadData"), 1);
  EXPECT_EQ(fake::calls("cuLibraryGetKernel"), 2);
  EXPECT_EQ(fake::calls("cuKernelSetAttribute"), 2);
}

TEST_F(LauncherTest, ADeviceNumberPastTheTableIsRefused) {
  fake::set_gpus(std::vector<int>(70, 80));
  fake::use_gpu(64);
  EXPECT_EQ(failure(launcher, attention()), "GPU number 64: wanted one below 64");
}

TEST_F(LauncherTest, ManyThreadsOnTwoDevices) {
  fake::set_gpus({80, 90});
  constexpr int kThreads = 8, kRounds = 25;
  std::atomic<int> faults{0};
  std::vector<std::thread> threads;
  for (int thread = 0; thread < kThreads; ++thread) {
    threads.emplace_back([&, thread] {
      fake::use_gpu(thread % 2);
      for (int round = 0; round < kRounds; ++round) {
        for (const Call& call : {Call(attention(100 + thread)), Call(mask_scores()), Call(upsample())}) {
          if (!failure(launcher, call).empty()) ++faults;
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(faults, 0);
  const auto launched = fake::launched();
  ASSERT_EQ(launched.size(), static_cast<std::size_t>(3 * kThreads * kRounds));
  for (const auto& each : launched) EXPECT_EQ(each.architecture, each.device == 0 ? 80 : 90);
  EXPECT_EQ(fake::calls("cuInit"), 1);
  EXPECT_EQ(fake::calls("cuLibraryLoadData"), 3);
  EXPECT_EQ(fake::calls("cuLibraryGetKernel"), 6);
}

}  // namespace
}  // namespace segmenter_launch
