// Models written by hand, byte by byte, and a thousand broken ones.
#include "onnx_outputs.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <iterator>
#include <random>
#include <string>

#include "segmenter_trt/errors.h"

namespace segmenter_trt {
namespace {

std::string varint(std::uint64_t value) {
  std::string bytes;
  for (; value >= 0x80; value >>= 7) bytes += static_cast<char>(value | 0x80);
  return bytes + static_cast<char>(value);
}

std::string with_length(int number, const std::string& content) {
  return varint(static_cast<std::uint64_t>(number) << 3 | 2) + varint(content.size()) + content;
}

std::string output(const std::string& name) { return with_length(12, with_length(1, name) + with_length(2, "type")); }

const std::string kNode = with_length(1, std::string(300, 'n'));
const std::string kInput = with_length(11, with_length(1, "images"));
const std::string kBefore = varint(1 << 3) + varint(9) + with_length(2, "pytorch");
const std::string kAfter = with_length(8, "opset") + varint(3 << 3 | 5) + "four" + varint(4 << 3 | 1) + "12345678";

std::string model(const std::string& graph) { return kBefore + with_length(7, graph) + kAfter; }

const std::string kWhole = model(kNode + output("labels") + kInput + output("masks") + output("logits"));

TEST(KeepOutput, DropsTheOthersAndTouchesNothingElse) {
  EXPECT_EQ(keep_output(kWhole, "masks"), model(kNode + kInput + output("masks")));
  EXPECT_EQ(keep_output(kWhole, "labels"), model(kNode + output("labels") + kInput));
  EXPECT_EQ(keep_output(model(output("masks")), "masks"), model(output("masks")));
}

TEST(KeepOutput, RefusesWhatHasNoSuchOutput) {
  EXPECT_THROW(keep_output(kWhole, "confidence"), ArtifactError);
  EXPECT_THROW(keep_output(model(output("masks") + output("masks")), "masks"), ArtifactError);
  EXPECT_THROW(keep_output(model(""), "masks"), ArtifactError);
}

TEST(KeepOutput, RefusesWhatIsNoModel) {
  for (const std::string& bytes :
       {std::string(), std::string("not a model"), std::string(1000, '\xff'), kWhole + with_length(7, kInput), kBefore,
        with_length(7, "").substr(0, 1), varint(7 << 3 | 2) + varint(~std::uint64_t{0}), varint(7 << 3 | 3)}) {
    EXPECT_THROW(keep_output(bytes, "masks"), ArtifactError) << bytes.size();
  }
}

TEST(KeepOutput, RefusesEveryTruncationButOneThatEndsAField) {
  int cut_well = 0;
  for (std::size_t length = 0; length < kWhole.size(); ++length) {
    try {
      keep_output(std::string_view(kWhole).substr(0, length), "masks");
      ++cut_well;
    } catch (const ArtifactError&) {
      // as it should be
    }
  }
  // after the graph, and after two of the three fields behind it
  EXPECT_EQ(cut_well, 3);
}

void survive_mutations(const std::string& whole, unsigned seed) {
  std::mt19937 random(seed);
  const auto below = [&](std::size_t end) { return std::uniform_int_distribution<std::size_t>(0, end - 1)(random); };
  int refused = 0;
  for (int round = 0; round < 1000; ++round) {
    std::string bytes = whole;
    for (std::size_t change = 0; change < 1 + below(8); ++change) {
      // near the ends lie the lengths that matter; in between, weights
      const std::size_t place = below(2) == 0 ? below(bytes.size()) : below(std::min<std::size_t>(bytes.size(), 64));
      bytes[below(4) == 0 ? bytes.size() - 1 - place : place] = static_cast<char>(below(256));
    }
    if (below(4) == 0) bytes.resize(below(bytes.size()) + 1);
    try {
      const std::string cut = keep_output(bytes, "masks");
      EXPECT_LE(cut.size(), bytes.size() + 10);
    } catch (const ArtifactError&) {
      ++refused;
    }
  }
  EXPECT_GT(refused, 100);
}

TEST(KeepOutput, SurvivesAThousandMutations) { survive_mutations(kWhole, 0); }

TEST(KeepOutput, SurvivesAThousandMutationsOfARealGraph) {
  const char* const path = std::getenv("SEGMENTER_TRT_TEST_ONNX");
  if (path == nullptr) GTEST_SKIP() << "SEGMENTER_TRT_TEST_ONNX names no exported graph";
  std::ifstream file(path, std::ios::binary);
  survive_mutations({std::istreambuf_iterator<char>(file), {}}, 1);
}

}  // namespace
}  // namespace segmenter_trt
