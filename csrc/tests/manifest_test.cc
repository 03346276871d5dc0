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

TEST(Manifest, IgnoresFieldsOfLaterReleases) {
  EXPECT_EQ(parse_manifest(replaced("\"format\"", "\"signature\": \"x\", \"format\""), "m.json").K(), 5);
}

TEST(Manifest, RefusesAnotherFormatBeforeAllElse) {
  for (const char* format : {"1", "3", "-1", "2.5", "\"2\"", "null", "99999999999999999999"}) {
    EXPECT_NE(refusal(replaced("\"format\": 2", std::string("\"format\": ") + format)).find("wanted 2"),
              std::string::npos);
  }
  EXPECT_EQ(refusal("[]"), "m.json: manifest format None, wanted 2; make the artifact again");
  EXPECT_EQ(refusal("{\"format\": 1}"), "m.json: manifest format 1, wanted 2; make the artifact again");
}

TEST(Manifest, NamesTheFieldThatIsWrong) {
  const std::vector<std::array<std::string, 3>> wrong = {
      {"\"kind\": \"plan\"", "\"kind\": \"script\"", "kind: wanted one of onnx, plan"},
      {"\"engine\": \"tensorrt\"", "\"engine\": \"../evil\"", "engine: wanted one of"},
      {"\"kind\": \"plan\", ", "", "no field kind"},
      {"\"patch_size\": 4", "\"patch_size\": 0", "patch_size: wanted a whole number"},
      {"\"patch_size\": 4", "\"patch_size\": 4.0", "patch_size: wanted a whole number"},
      {"[1, 16, 512]", "[16, 1, 512]", "height: wanted [min, opt, max]"},
      {"[1, 16, 512]", "[1, 16]", "height: wanted [min, opt, max]"},
      {"[1, 16, 512]", "[1, 16, 18446744073709551615]", "height: wanted [min, opt, max]"},
      {"[1, 1, 4]", "[0, 1, 4]", "batch: wanted [min, opt, max]"},
      {"[4, 0, 255]", "[4, 0, 256]", "palette: wanted [R, G, B]"},
      {", [4, 0, 255]", "", "palette: wanted one colour a class"},
      {"\"class 0\"", "0", "classes: wanted a list of texts"},
      {"[0.00392156862745098, 0.5, 0.5]", "[0, 0.5, 0.5]", "preprocess: wanted std above 0"},
      {"[0.00392156862745098, 0.5, 0.5]", "[1e-300, 0.5, 0.5]", "preprocess: wanted std above 0"},
      {"[0, 0, 0]", "[0, 0]", "mean: wanted three numbers"},
      {"\"source\": {\"checkpoint\": \"sha256:00\"}", "\"source\": {\"checkpoint\": 0}",
       "source: wanted texts by name"},
      {"\"sha256\": \"", "\"sha256\": \"g", "sha256: wanted 64 hexadecimal digits"},
  };
  for (const auto& [from, to, message] : wrong) {
    EXPECT_NE(refusal(replaced(from, to)).find("not a manifest (" + message), std::string::npos)
        << refusal(replaced(from, to));
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
