// Opening: what is refused before a runtime sees a byte, and what is missing said by name.
#include "segmenter_trt/engine.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <array>
#include <random>
#include <vector>

#include "fake_engine.h"
#include "segmenter_trt/errors.h"
#include "segmenter_trt/session.h"
#include "verified.h"

namespace segmenter_trt {
namespace {

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

TEST_F(EngineTest, DescribesItself) {
  const Engine engine = open({.model = "fake labels"}, {.threads = 3});
  const Description facts = engine.describe();
  EXPECT_EQ(facts.engine, "tensorrt");
  EXPECT_EQ(facts.runtime, "fake 1");
  EXPECT_EQ(facts.precision, "fp32");
  EXPECT_EQ(facts.model, "fake labels");
  EXPECT_EQ(facts.labels_by, "the graph");
  EXPECT_EQ(facts.no_graphs, "");
  EXPECT_EQ(Session(engine).describe().no_graphs, "a fake has none");
  EXPECT_EQ(facts.input, Input::normalized);
  EXPECT_EQ(facts.height.max, 512);
  EXPECT_EQ(engine.manifest().K(), 5);
}

TEST_F(EngineTest, NamesWhatIsMissing) {
  EXPECT_TRUE(contains(told<ArtifactError>([&] { Engine::open(folder_ / "none.plan"); }), "no such engine file"));
  write("m.plan", "a plan");
  EXPECT_TRUE(contains(told<ManifestError>([&] { Engine::open(folder_ / "m.plan"); }), "no manifest m.plan.json"));
  EXPECT_EQ(told<ArtifactError>([&] { Engine::open(folder_); }),
            folder_.string() +
                ": is a folder, and no engine lies in it; wanted an .onnx or .plan file with its manifest beside it;"
                " make it with `segmenter export` or `segmenter build`");
  // nobody writes to these
  ASSERT_EQ(mkfifo((folder_ / "pipe").c_str(), 0600), 0);
  ASSERT_EQ(mkfifo((folder_ / "m.plan.json").c_str(), 0600), 0);
  EXPECT_TRUE(contains(told<ArtifactError>([&] { Engine::open(folder_ / "pipe"); }), "no such engine file"));
  EXPECT_TRUE(contains(told<ManifestError>([&] { Engine::open(folder_ / "m.plan"); }), "no manifest m.plan.json"));
  std::filesystem::remove(folder_ / "m.plan.json");
}

TEST_F(EngineTest, RefusesAFileItsManifestDoesNotVouchFor) {
  const Fake fake;
  write("m.plan.json", fake.manifest());
  std::mt19937 random(0);
  for (int round = 0; round < 1000; ++round) {
    std::string bytes = fake.bytes;
    bytes[random() % bytes.size()] ^= static_cast<char>(1 << random() % 8);
    write("m.plan", bytes);
    EXPECT_EQ(told<ArtifactError>([&] { Engine::open(folder_ / "m.plan"); }),
              (folder_ / "m.plan").string() + ": is not the file its manifest vouches for (expected SHA-256 " +
                  digest_of(fake.bytes) + ", it has " + digest_of(bytes) +
                  "); copy both files again, or make it again: `segmenter build GRAPH.onnx --out m.plan`");
  }
}

TEST_F(EngineTest, RefusesOptionsThatAreNone) {
  EXPECT_TRUE(contains(told<InputError>([&] { open({}, {.threads = -1}); }), "-1 threads"));
  EXPECT_TRUE(contains(told<InputError>([&] { open({}, {.streams = 0}); }), "0 streams"));
  EXPECT_TRUE(contains(told<InputError>([&] { open({}, {.device = -1}); }), "device -1"));
  EXPECT_TRUE(contains(told<InputError>([&] { open({}, {.backend = "openvino"}); }), "it is for tensorrt"));
  EXPECT_TRUE(
      contains(told<InputError>([&] { open({.kind = "onnx"}, {.backend = "tensorrt"}); }), "it is for openvino"));
}

TEST_F(EngineTest, PassesOnWhatABackendThrows) {
  EXPECT_EQ(told<Unavailable>([&] { open({.model = "absent"}); }), "no GPU here; use the ONNX");
}

TEST_F(EngineTest, TellsWhatIsNotVerified) {
  const std::string advice = "; run `segmenter verify --engine tensorrt` on this machine";
  const std::string facts = facts_digest(parse_manifest(Fake{}.manifest(), "m"));
  const auto verdict = [&facts](const std::string& name, const std::string& digest, const std::string& passed) {
    return "\"" + name + R"(": {"sha256": ")" + digest + R"(", "facts_sha256": ")" + facts +
           R"(", "device": "nothing", "passed": )" + passed + R"(, "faults": [5, "mIoU\u001b dropped", "\u00fc"]})";
  };
  const std::string own = digest_of(Fake{}.bytes), other(64, '0');
  const std::string graph = verdict("graph:onnxruntime-fp32", "00", "true");
  const std::vector<std::array<std::string, 2>> cases = {
      {"null", "not verified in tensorrt-fp32"},
      {"{}", "not verified in tensorrt-fp32"},
      {"{" + verdict("tensorrt-fp16", own, "true") + "}", "not verified in tensorrt-fp32"},
      {"{" + verdict("tensorrt-fp32", other, "true") + "}", "not verified in tensorrt-fp32"},
      {R"({"tensorrt-fp32": {"passed": true}})", "not verified in tensorrt-fp32"},
      {"{" + verdict("tensorrt-fp32", own, "false") + "}",
       "failed its verification in tensorrt-fp32: mIoU? dropped; ??"},
      {"{" + graph + "}", "verified only as the graph it was built from, not in tensorrt-fp32"},
      {"{" + verdict("graph:onnxruntime-fp32", "01", "true") + "}", "not verified in tensorrt-fp32"},
      {"{" + verdict("graph:onnxruntime-fp32", "01", "false") + "}",
       "the graph it was built from failed its verification: mIoU? dropped; ??"},
      {R"({"graph:x": {"passed": false, "faults": 5}})",
       "the graph it was built from failed its verification: it does not tell why"},
  };
  for (const auto& [verification, reason] : cases) {
    const Fake fake = {.verification = verification};
    EXPECT_EQ(open(fake).describe().warning, reason + advice) << verification;
    const std::string message = told<ArtifactError>([&] { open(fake, {.require_verified = true}); });
    EXPECT_EQ(message, (folder_ / "m.plan").string() + ": " + reason + advice);
  }
  const Fake passed = {.verification = "{" + graph + ", " + verdict("tensorrt-fp32", own, "true") + "}"};
  EXPECT_EQ(open(passed, {.require_verified = true}).describe().warning, "");
  Fake changed = passed;
  changed.preprocess = R"({"mean": [0.5, 0, 0], "std": [0.00392156862745098, 0.5, 0.5]})";
  const std::string since =
      "verified in tensorrt-fp32 by an older release, or before what its manifest says of classes, preprocessing or"
      " sizes was changed";
  EXPECT_EQ(open(changed).describe().warning, since + advice);
  EXPECT_EQ(told<ArtifactError>([&] { open(changed, {.require_verified = true}); }),
            (folder_ / "m.plan").string() + ": " + since + advice);
  const Fake older = {.verification = R"({"tensorrt-fp32": {"sha256": ")" + own + R"(", "passed": true}})"};
  EXPECT_EQ(open(older).describe().warning, since + advice);
}

TEST(Verified, KnowsWhichGpuAPlanPassedOn) {
  const auto reason = [](Kind kind, const std::string& told, const std::string& device) {
    Manifest manifest = {};
    manifest.kind = kind;
    manifest.sha256 = "00";
    manifest.verification = R"({"tensorrt-fp16": {"sha256": "00", "facts_sha256": ")" + facts_digest(manifest) +
                            R"(", "passed": true)" + told + "}}";
    return unverified(manifest, "tensorrt-fp16", device);
  };
  const std::string l4 = R"(, "device": "NVIDIA L4")";
  EXPECT_EQ(reason(Kind::plan, l4, "NVIDIA L4"), "");
  EXPECT_EQ(reason(Kind::plan, l4, ""), "");
  EXPECT_EQ(reason(Kind::plan, l4, "NVIDIA A10"), "verified in tensorrt-fp16 on NVIDIA L4, not on this NVIDIA A10");
  for (const char* const told : {"", R"(, "device": 5)"}) {
    EXPECT_EQ(reason(Kind::plan, told, "T4"), "verified in tensorrt-fp16 on another GPU, not on this T4");
  }
  EXPECT_EQ(reason(Kind::plan, R"(, "device": "a\u001b")", "b"), "verified in tensorrt-fp16 on a?, not on this b");
  EXPECT_EQ(reason(Kind::onnx, l4, "cpu"), "");
}

TEST(Verified, KnowsWhichCpuItPassedOn) {
  const auto passed_on = [](const std::string& flags, const std::string& passed = "true") {
    Manifest manifest = {};
    manifest.sha256 = "00";
    manifest.verification = R"({"openvino-int8": {"sha256": "00", "facts_sha256": ")" + facts_digest(manifest) +
                            R"(", "passed": )" + passed + R"(, "cpu_flags": )" + flags + "}}";
    return passed_saturating(manifest, "openvino-int8");
  };
  EXPECT_TRUE(passed_on(R"(["avx2", "avx512f"])"));
  EXPECT_TRUE(passed_on(R"([{}, "avx2"])"));
  EXPECT_FALSE(passed_on(R"(["avx2", "avx512f"])", "false"));
  for (const char* flags :
       {R"(["avx2", "avx_vnni"])", R"(["avx512_vnni", "avx2"])", R"(["asimddp"])", "[]", "{}", "5"}) {
    EXPECT_FALSE(passed_on(flags)) << flags;
  }
  Manifest without = {};
  without.verification = "null";
  EXPECT_FALSE(passed_saturating(without, "openvino-int8"));
}

TEST_F(EngineTest, RefusesABackendOfAnotherVersion) {
  const std::string message = told<Unavailable>([&] { open({.engine = "tensorrt-rtx"}); });
  EXPECT_TRUE(contains(message, "libsegmenter_trt_tensorrt_rtx.so: made for 'segmenter_trt backend 0', wanted"));
}

TEST_F(EngineTest, SaysHowToGetABackend) {
  setenv("SEGMENTER_TRT_BACKENDS", folder_.c_str(), 1);
  const std::string message = told<Unavailable>([&] { open({}); });
  EXPECT_TRUE(contains(message, "libsegmenter_trt_tensorrt.so cannot be opened"));
  EXPECT_TRUE(contains(message, "SEGMENTER_TRT_BACKENDS"));
}

TEST_F(EngineTest, SaysHowToGetOpenVino) {
  const Fake fake = {.kind = "onnx", .engine = "any"};
  const auto message = [&] { return told<Unavailable>([&] { open(fake, {.runtime = folder_}); }); };
  EXPECT_TRUE(contains(message(), "engine openvino: its C library cannot be opened"));
  EXPECT_TRUE(contains(message(), "pip install openvino"));
  // a variable that is empty names no library, least of all this program
  setenv("SEGMENTER_TRT_OPENVINO", "", 1);
  EXPECT_FALSE(contains(told<Error>([&] { open(fake); }), "its library lacks"));
  unsetenv("SEGMENTER_TRT_OPENVINO");
  // a library, but another one
  std::filesystem::copy_file(std::string(FAKE_BACKENDS) + "/libsegmenter_trt_tensorrt.so",
                             folder_ / "libopenvino_c.so");
  EXPECT_TRUE(contains(message(), "its library lacks ov_core_create; use OpenVINO 2025.0 or newer"));
}

}  // namespace
}  // namespace segmenter_trt
