// What is held against a plan before it runs: machine, versions, plugins, its own header.
#include <unistd.h>

#include <cstddef>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <random>
#include <span>
#include <string>

#include "fake_plans.h"
#include "plan_checks.h"
#include "segmenter_trt/errors.h"
#include "sha256.h"

namespace segmenter_trt {
namespace {

TEST_F(Tensorrt, PlansThatCannotRunHereAreNamed) {
  Manifest manifest = manifest_of(kPlan);
  manifest.compute_capabilities = {"8.6", "10.0+"};
  expect_told("built for GPUs of compute capability 8.6, 10.0+, Fake GPU has 9.0", [&] { open(kPlan, manifest); });
  manifest.compute_capabilities = {"9.0"};
  EXPECT_NO_THROW(open(kPlan, manifest));
  for (const char* const wanted : {"", "9", "9.1", "9.1+", "nine.zero"}) {
    manifest.compute_capabilities = {wanted};
    EXPECT_THROW(open(kPlan, manifest), Unavailable) << wanted;
  }
  manifest.compute_capabilities.clear();
  EXPECT_NO_THROW(open(kPlan, manifest));
  manifest = manifest_of(kPlan);
  manifest.versions = {{"tensorrt", "10.3.0.26"}};
  expect_told("built with tensorrt 10.3.0.26, this is 10.", [&] { open(kPlan, manifest); });
  manifest.versions.clear();
  expect_told("built with tensorrt of a version its manifest does not tell", [&] { open(kPlan, manifest); });
  expect_told("cannot load it: this is no plan", [&] { open(plan_of("broken"), manifest_of(kPlan)); });
  manifest = manifest_of(kPlan);
  manifest.input = Input::normalized;
  expect_told("tensor images has a type or direction", [&] { open(kPlan, manifest); });
  manifest = manifest_of(kPlan);
  manifest.outputs = {"labels"};
  expect_told("output masks, which its manifest does not say", [&] { open(kPlan, manifest); });
  manifest = manifest_of(kPlan);
  manifest.classes.resize(257);
  expect_told("tensor labels has a type or direction", [&] { open(kPlan, manifest); });
  manifest = manifest_of(kPlan);
  manifest.outputs = {"labels", "masks", "confidence"};
  expect_told("has no output confidence", [&] { open(kPlan, manifest); });
}

TEST_F(Tensorrt, AManifestThatPromisesMoreThanTheProfileIsNamed) {
  for (const char* const input : {"", " normalized"}) {
    const std::string plan = plan_of(std::string("fake 4 64 48 5 8 masks") + input);
    Manifest manifest = manifest_of(plan);
    manifest.command = "segmenter build m.onnx --out model.plan";
    manifest.width = {8, 16, 48};
    EXPECT_NO_THROW(open(plan, manifest));
    manifest.width.max = 49;
    expect_told(
        "model.plan: its manifest says width 8 to 49, its profile takes 1 to 48; make it again: `segmenter build",
        [&] { open(plan, manifest); });
    manifest.width.max = 48;
    manifest.height = {0, 16, 64};
    expect_told("its manifest says height 0 to 64, its profile takes 1 to 64", [&] { open(plan, manifest); });
    manifest.height = {65, 65, 65};
    expect_told("its manifest says height 65, its profile takes 1 to 64", [&] { open(plan, manifest); });
    manifest.height = {8, 16, 64};
    manifest.batch = {1, 1, 5};
    expect_told("its manifest says batch 1 to 5, its profile takes 1 to 4", [&] { open(plan, manifest); });
  }
  const std::string fixed = plan_of("fake 2 16 24 5 8 fixed");
  Manifest manifest = manifest_of(fixed);
  manifest.batch = {2, 2, 2};
  manifest.height = {16, 16, 16};
  manifest.width = {24, 24, 24};
  EXPECT_NO_THROW(open(fixed, manifest));
  manifest.batch = {1, 1, 2};
  expect_told("its manifest says batch 1 to 2, its profile takes 2", [&] { open(fixed, manifest); });
}

TEST_F(Tensorrt, WhatTheMachineLacksIsNamed) {
  EngineOptions options;
  options.runtime = OLDER;
  expect_told("compile it with the headers of that library", [&] { open(kPlan, manifest_of(kPlan), options); });
  options.runtime = "/nowhere/libnvinfer.so.10";
  expect_told("pip install tensorrt", [&] { open(kPlan, manifest_of(kPlan), options); });
  options = {};
  options.device = 1;
  expect_told("device 1: this machine has 1 GPU(s)", [&] { open(kPlan, manifest_of(kPlan), options); });
  options.device = -1;
  EXPECT_THROW(open(kPlan, manifest_of(kPlan), options), InputError);
}

TEST_F(Tensorrt, PluginsAreLoadedBeforeThePlan) {
  const auto folder = std::filesystem::temp_directory_path() / ("segmenter_trt_plugins_" + std::to_string(getpid()));
  std::filesystem::create_directories(folder);
  for (const char* const name : {"plugins.so", "missing.so"}) std::ofstream(folder / name) << "a library";
  Manifest manifest = manifest_of(kPlan);
  manifest.command = "segmenter build m.onnx --out model.plan";
  manifest.plugins = {"SegmenterAttention"};
  EngineOptions options;
  options.plugins = folder / "plugins.so";
  const auto opened = [&] { open(kPlan, manifest, options); };
  expect_told("model.plan.json: vouches for no plugin library where the plan needs one (SegmenterAttention)", opened);
  const std::string bytes = "a library";
  manifest.plugin_library = {"p.so", sha256(std::as_bytes(std::span(bytes)))};
  EXPECT_NO_THROW(opened());
  // a name alone is the file here, which was checked, and not one where the system looks
  const auto here = std::filesystem::current_path();
  std::filesystem::current_path(folder);
  options.plugins = "plugins.so";
  EXPECT_NO_THROW(opened());
  options.plugins.clear();
  setenv("SEGMENTER_TRT_PLUGINS", "plugins.so", 1);
  EXPECT_NO_THROW(opened());
  std::filesystem::current_path(here);
  // empty is as if it were not set: the one beside this library is taken
  setenv("SEGMENTER_TRT_PLUGINS", "", 1);
  const auto beside = std::filesystem::read_symlink("/proc/self/exe").parent_path() / "libsegmenter_trt_plugin.so";
  std::filesystem::copy_file(folder / "plugins.so", beside);
  EXPECT_NO_THROW(opened());
  std::filesystem::remove(beside);
  unsetenv("SEGMENTER_TRT_PLUGINS");
  expect_told("needs the plugin library p.so (SegmenterAttention), which is not here (none was found)", opened);
  options.plugins = folder / "none.so";
  expect_told("none.so); install segmenter-trt with its plugins", opened);
  options.plugins = folder / "missing.so";
  expect_told("missing.so: cannot open it", opened);
  // another library: named with both hashes and what to do, and never loaded
  manifest.plugin_library->sha256 = std::string(64, '0');
  expect_told("built with plugin library p.so of SHA-256 " + std::string(64, '0') + ", " + options.plugins.string() +
                  " has " + sha256(std::as_bytes(std::span(bytes))) +
                  "; install that one, or make it again: `segmenter build m.onnx --out model.plan`",
              opened);
  options.plugins = folder / "plugins.so";
  manifest.plugin_library->sha256 = sha256(std::as_bytes(std::span(bytes)));
  manifest.plugins = {"SegmenterAttention", "SegmenterOther"};
  expect_told("has no plugin SegmenterOther", opened);
  std::filesystem::remove_all(folder);
}

TEST_F(Tensorrt, APlansOwnHeaderIsBelievedAgainstItsManifest) {
  const Manifest manifest = manifest_of(kPlan);
  const std::string words = "fake 4 64 64 5 8 masks";
  const auto refused = [&](const std::string& plan, const std::string& wanted) {
    expect_told(wanted, [&] { open(plan, manifest); });
  };
  refused(header("vtrt", kVersion) + words, "begins as one of tensorrt-rtx does, wanted one of tensorrt");
  refused(words + words, "begins as no plan does");
  refused("", "begins as no plan does");
  refused(kPlan.substr(0, 31), "begins as no plan does");
  refused(header("ftrt", {10, 3, 0, 26}) + words, "its own header says tensorrt 10.3.0.26 wrote it, this is ");
  EXPECT_NO_THROW(open(header("ftrt", {1, 2, 3, 4}, 0, 1) + words, manifest));  // a layout that is not known
}

// As if somebody had made the manifest vouch for each.
TEST_F(Tensorrt, AThousandDamagedPlansAreOpenedOrRefused) {
  const Manifest manifest = manifest_of(kPlan);
  std::mt19937 random(0);
  int refused = 0;
  for (int round = 0; round < 1000; ++round) {
    std::string plan = kPlan;
    for (std::uint32_t faults = 1 + random() % 3; faults > 0; --faults) {
      const std::size_t at = random() % plan.size();
      switch (random() % 3) {
        case 0:
          plan[at] = static_cast<char>(random());
          break;
        case 1:
          plan.erase(at, random() % 40);
          break;
        default:
          plan.insert(at, plan.substr(random() % plan.size(), random() % 8));
      }
      if (plan.empty()) break;
    }
    try {
      const auto opened = open(plan, manifest);
    } catch (const Error& error) {
      ++refused;
      EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos) << error.what();
    }
  }
  EXPECT_GT(refused, 500);
  EXPECT_LT(refused, 1000);  // a byte that nobody reads
}

TEST(PlanChecks, APlanOfRtxTellsItsLength) {
  Manifest manifest{};
  manifest.kind = Kind::plan;
  manifest.versions = {{"tensorrt-rtx", "1.7.1.372.post1"}};
  const auto check = [&](const std::string& plan, const std::string& version) {
    return told([&] {
      tensorrt::require_version(manifest, "m.plan", std::as_bytes(std::span(plan)), "tensorrt-rtx", version);
    });
  };
  const std::string tail(300, '\1');
  const auto plan = [&](std::size_t length) { return header("vtrt", {1, 7, 1, 372 % 256}, length) + tail; };
  EXPECT_EQ(check(plan(332), "1.7.1.372"), "nothing was thrown");
  EXPECT_EQ(check(plan(331), "1.7.1.372"),
            "m.plan: has 332 bytes, its own header says 331; make it again: `segmenter build GRAPH.onnx --out m.plan`");
  const std::size_t past = (std::size_t{1} << 56) + 332;
  EXPECT_NE(check(plan(past), "1.7.1.372").find("header says " + std::to_string(past)), std::string::npos);
  EXPECT_NE(check(plan(332), "1.7.1.373").find("built with tensorrt-rtx 1.7.1.372.post1, this is 1.7.1.373"),
            std::string::npos);
  for (const char* const version : {"", "x", "1.7", "99999999999999999999.1"}) {
    manifest.versions = {{"tensorrt-rtx", version}};
    EXPECT_NE(check(plan(332), "1.7.1.372").find("built with"), std::string::npos) << version;
  }
}

TEST(PlanChecks, VersionsAreComparedByTheNumbersBothTell) {
  const auto check = [](const std::string& told_by_manifest, const std::string& version) {
    Manifest manifest{};
    manifest.versions = {{"tensorrt", told_by_manifest}};
    const std::string plan = header("ftrt", {10, 7, 0, 23}, 0) + std::string(300, '\1');
    return told(
        [&] { tensorrt::require_version(manifest, "m.plan", std::as_bytes(std::span(plan)), "tensorrt", version); });
  };
  for (const char* const built : {"10.7.0", "10.7.0.23"}) {
    EXPECT_EQ(check(built, "10.7.0.23"), "nothing was thrown") << built;
    EXPECT_NE(check(built, "10.7.1.23").find("built with tensorrt"), std::string::npos) << built;
  }
  EXPECT_NE(check("10.7.0", "10.7.0.24").find("its own header says tensorrt 10.7.0.23"), std::string::npos);
  EXPECT_NE(check("10.7", "10.7.0.23").find("built with tensorrt 10.7, this is"), std::string::npos);
}

}  // namespace
}  // namespace segmenter_trt
