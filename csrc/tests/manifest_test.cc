// Manifests as Python writes them, and whatever else may lie in their place.
#include "segmenter_trt/manifest.h"

#include <gtest/gtest.h>

#include <random>
#include <string>
#include <vector>

#include "fake_engine.h"
#include "segmenter_trt/errors.h"

namespace segmenter_trt {
namespace {

std::string replaced(const std::string& from, const std::string& to) {
  std::string text = Fake{}.manifest();
  const std::size_t place = text.find(from);
  EXPECT_NE(place, std::string::npos) << from;
  return text.replace(place, from.size(), to);
}

std::string refusal(const std::string& text) {
  try {
    parse_manifest(text, "m.json");
  } catch (const ManifestError& error) {
    EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos);
    return error.what();
  }
  ADD_FAILURE() << "accepted: " << text.substr(0, 2000);
  return "";
}

TEST(Manifest, SaysWhatPythonWrote) {
  const Manifest manifest = parse_manifest(Fake{.batch = "[1, 2, 64]"}.manifest(), "m.json");
  EXPECT_EQ(manifest.artifact, "m.plan");
  EXPECT_EQ(manifest.kind, Kind::plan);
  EXPECT_EQ(manifest.input, Input::normalized);
  EXPECT_EQ(manifest.height.opt, 16);
  EXPECT_FALSE(manifest.height.fixed());
  EXPECT_TRUE(manifest.batch.holds(64));
  EXPECT_FALSE(manifest.batch.holds(65));
  EXPECT_EQ(manifest.K(), 5);
  EXPECT_EQ(manifest.classes[4], "class 4");
  EXPECT_EQ(manifest.palette[4], (std::array<std::uint8_t, 3>{4, 0, 255}));
  EXPECT_TRUE(manifest.gives("masks"));
  EXPECT_FALSE(manifest.gives("logits"));
  EXPECT_EQ(manifest.source.at("checkpoint"), "sha256:00");
  EXPECT_EQ(manifest.details, R"({"opset":20})");
  EXPECT_EQ(manifest.verification, "null");
}

TEST(Manifest, MayLeaveOutFourFields) {
  const std::string text =
      replaced(R"( "plugins": [], "compute_capabilities": [], "details": {"opset": 20}, "verification": null,)", "");
  const Manifest manifest = parse_manifest(text, "m.json");
  EXPECT_TRUE(manifest.plugins.empty());
  EXPECT_TRUE(manifest.compute_capabilities.empty());
  EXPECT_EQ(manifest.details, "{}");
  EXPECT_EQ(manifest.plugin_library, std::nullopt);
  EXPECT_EQ(manifest.verification, "null");
}

TEST(Manifest, NamesThePluginLibraryOfAPlan) {
  const std::string digest(64, 'a');
  const std::string library = R"({"plugin_library": {"name": "p.so", "sha256": ")" + digest + R"("}})";
  const auto found = parse_manifest(replaced(R"({"opset": 20})", library), "m.json").plugin_library;
  ASSERT_TRUE(found.has_value());
  EXPECT_EQ(found->name, "p.so");
  EXPECT_EQ(found->sha256, digest);
}

TEST_F(EngineTest, AManifestIsOfTheFileItLiesBeside) {
  write("other.plan.json", Fake{}.manifest());
  const std::string message = told<ManifestError>([&] { read_manifest(folder_ / "other.plan"); });
  EXPECT_NE(message.find("other.plan.json: is the manifest of m.plan; give both files their names back"),
            std::string::npos)
      << message;
  write("m.plan.json", Fake{}.manifest());
  EXPECT_EQ(read_manifest(folder_ / "m.plan").artifact, "m.plan");
  write("m.plan.json", Fake{}.manifest() + std::string(std::size_t{4} << 20, ' '));
  EXPECT_NE(told<ManifestError>([&] { read_manifest(folder_ / "m.plan"); }).find("longer than 4194304 bytes"),
            std::string::npos);
}

TEST(Manifest, RefusesAnotherFormatBeforeAllElse) {
  for (const char* format : {"1", "3", "-1", "2.5", "\"2\"", "null", "99999999999999999999"}) {
    EXPECT_NE(refusal(replaced("\"format\": 2", std::string("\"format\": ") + format)).find("wanted 2"),
              std::string::npos);
  }
  EXPECT_EQ(refusal("{\"format\": 1}"),
            "m.json: not a manifest of this release: manifest format 1, wanted 2; make the artifact again");
  EXPECT_NE(refusal("{}").find("manifest format None, wanted 2"), std::string::npos);
  EXPECT_NE(refusal("[]").find("wanted an object, got []"), std::string::npos);
}

TEST(Manifest, NamesTheFieldThatIsWrong) {
  const std::vector<std::array<std::string, 3>> wrong = {
      {"\"kind\": \"plan\"", "\"kind\": \"script\"", "kind \"script\": wanted one of onnx, plan"},
      {"\"engine\": \"tensorrt\"", "\"engine\": \"../\\u001b\"", R"(engine "../\u001b": wanted one of any, )"},
      {"\"engine\": \"tensorrt\"", "\"engine\": \"any\"", "engine any: wanted the one the plan was built for"},
      {"\"kind\": \"plan\", ", "", "field kind is missing"},
      {"\"kind\"", "\"\\u007fkind\": 0, \"kind\"", R"(unknown field "\u007fkind")"},
      {"\"kind\"", "\"kind\": \"plan\", \"kind\"", "field \"kind\" is there twice"},
      {"\"patch_size\": 4", "\"patch_size\": 0", "patch_size 0: wanted an integer from 1 to 1024"},
      {"\"patch_size\": 4", "\"patch_size\": 4.0", "patch_size 4.0: wanted an integer"},
      {"[1, 16, 512]", "[16, 1, 512]", "height [16,1,512]: wanted min <= opt <= max"},
      {"[1, 16, 512]", "[1, 16]", "height [1,16]: wanted a list of 3"},
      {"[1, 16, 512]", "[1, 16, 18446744073709551615]", "height [1,16,18446744073709551615]: wanted an integer"},
      {"[1, 1, 4]", "[0, 1, 4]", "batch [0,1,4]: wanted an integer from 1 to 65536"},
      {"[4, 0, 255]", "[4, 0, 256]", "wanted an integer from 0 to 255"},
      {", [4, 0, 255]", "", "palette of 4 colours: wanted one for each class"},
      {"\"class 0\"", "0", "wanted a string of 1 to 200 characters"},
      {"[0.00392156862745098, 0.5, 0.5]", "[0, 0.5, 0.5]", "wanted a number from 1e-06 to 1000000.0"},
      {"[0, 0, 0]", "[0, 0]", "wanted a list of 3"},
      {"{\"checkpoint\": \"sha256:00\", \"onnx\": \"sha256:00\"}", "[]",
       "source []: wanted an object of at most 16 strings"},
      {"\"sha256\": \"", "\"sha256\": \"g", "wanted a string of 64 characters"},
      {"\"model\": \"fake\"", "\"model\": \"\xC2\x85\"", "wanted a string without control characters"},
      {"\"outputs\": [\"labels\"", "\"outputs\": [\"masks\"", "wanted a list without the same twice"},
  };
  for (const auto& [from, to, message] : wrong) {
    EXPECT_NE(refusal(replaced(from, to)).find(message), std::string::npos)
        << message << " is not in " << refusal(replaced(from, to));
  }
}

TEST(Manifest, RefusesWhatIsNoJson) {
  for (const std::string& text : {std::string(), std::string("{"), std::string("\xff\xfe"), std::string(64, '\0'),
                                  std::string(1000000, '['), "{\"format\": 2, \"a\": " + std::string(100000, '[')}) {
    refusal(text);
  }
  // closed again: what reads it by recursion would run out of stack
  const std::string deep = std::string(100000, '[') + std::string(100000, ']');
  EXPECT_NE(refusal(replaced("{\"opset\": 20}", deep)).find("nested deeper than 32"), std::string::npos);
}

TEST(Manifest, SurvivesAThousandMutations) {
  std::mt19937 random(0);
  const auto below = [&](std::size_t end) { return std::uniform_int_distribution<std::size_t>(0, end - 1)(random); };
  const std::string whole = Fake{}.manifest();
  const std::vector<std::string> words = {"null", "-1",  "1e999",   "[]",      "{}",
                                          "\"\"", "[[[", "\\u0000", "\\ud800", "true",
                                          "NaN",  "\"",  "\xff",    "0.1",     "18446744073709551616"};
  int refused = 0;
  for (int round = 0; round < 1000; ++round) {
    std::string text = whole;
    for (std::size_t change = 0; change < 1 + below(4); ++change) {
      const std::size_t place = below(text.size());
      const std::size_t length = std::min(below(12), text.size() - place);
      switch (below(4)) {
        case 0:
          text[place] = static_cast<char>(below(256));
          break;
        case 1:
          text.erase(place, length);
          break;
        case 2:
          text.insert(place, text.substr(below(text.size()), length));
          break;
        default:
          text.replace(place, length, words[below(words.size())]);
      }
      if (text.empty()) break;
    }
    try {
      const Manifest manifest = parse_manifest(text, "m.json");
      EXPECT_LE(manifest.height.min, manifest.height.max);
      EXPECT_EQ(manifest.palette.size(), manifest.classes.size());
    } catch (const ManifestError&) {
      ++refused;
    }
  }
  EXPECT_GT(refused, 500);
}

TEST(Affine, RoundsOnce) {
  const Affine computed = affine({{0.485, 0.456, 0.406}, {0.229, 0.224, 0.225}});
  EXPECT_EQ(computed.scale[0], static_cast<float>(1.0 / (255.0 * 0.229)));
  EXPECT_EQ(computed.shift[2], static_cast<float>(-0.406 / 0.225));
}

}  // namespace
}  // namespace segmenter_trt
