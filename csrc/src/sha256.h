// SHA-256 (FIPS 180-4), as hashlib computes it: manifests vouch for their artifacts with it.
#pragma once

#include <cstddef>
#include <span>
#include <string>

namespace segmenter_trt {

// In lower-case hexadecimal.
std::string sha256(std::span<const std::byte> bytes);

}  // namespace segmenter_trt
