// manifest_program FILE: for every manifest in FILE, each behind its length (uint64, the machine's byte order), a line:
// `accepted` and the digest of its facts, or why not. Tests hold the lines to what Python's reader says.
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <string>

#include "segmenter_trt/errors.h"
#include "segmenter_trt/manifest.h"
#include "verified.h"

int main(int count, char** arguments) {
  if (count != 2) return 2;
  std::ifstream file(arguments[1], std::ios::binary);
  std::uint64_t bytes = 0;
  while (file.read(reinterpret_cast<char*>(&bytes), sizeof bytes)) {
    std::string text(bytes, '\0');
    if (!file.read(text.data(), static_cast<std::streamsize>(bytes))) return 2;
    std::string told;
    try {
      told = "accepted " + segmenter_trt::facts_digest(segmenter_trt::parse_manifest(text, "m.json"));
    } catch (const segmenter_trt::ManifestError& error) {
      told = error.what();
    }
    std::puts(told.c_str());
  }
  return 0;
}
