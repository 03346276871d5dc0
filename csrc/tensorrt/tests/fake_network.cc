#include "fake_network.h"

#include <cmath>
#include <limits>
#include <sstream>

namespace fake_network {
namespace {

int red(const Job& job, std::int64_t b, std::int64_t y, std::int64_t x) {
  if (!job.facts.normalized) return static_cast<const unsigned char*>(job.images)[((b * job.H + y) * job.W + x) * 3];
  // mean 0, standard deviation 1: a colour is its 255th
  return static_cast<int>(
      std::lround(static_cast<const float*>(job.images)[((b * 3) * job.H + y) * job.W + x] * 255.0f));
}

}  // namespace

nvinfer1::Dims Facts::images(std::int64_t b, std::int64_t h, std::int64_t w) const {
  return normalized ? nvinfer1::Dims{4, {b, 3, h, w}} : nvinfer1::Dims{4, {b, h, w, 3}};
}

std::optional<Facts> read(const std::string& plan) {
  std::istringstream words(plan.substr(32));
  std::string word;
  Facts facts;
  if (!(words >> word) || word != "fake" || !(words >> facts.B >> facts.H >> facts.W >> facts.K >> facts.P)) {
    return std::nullopt;
  }
  while (words >> word) {
    facts.wide |= word == "int32";
    facts.masks |= word == "masks";
    facts.normalized |= word == "normalized";
    facts.short_labels |= word == "short";
    facts.uncapturable |= word == "uncapturable";
    facts.fixed |= word == "fixed";
  }
  return facts;
}

void begin(const Job& job) { *static_cast<const Job**>(job.scratch) = &job; }

void compute(const Job& job) {
  if (job.captured && (*job.changes != job.changes_then || job.replaced)) return;
  if (*static_cast<const Job**>(job.scratch) != &job) return;
  const auto K = static_cast<int>(job.facts.K);
  for (std::int64_t b = 0; b < job.B; ++b) {
    for (std::int64_t y = 0; y < job.H; ++y) {
      for (std::int64_t x = 0; x < job.W; ++x) {
        const std::int64_t at = (b * job.H + y) * job.W + x;
        if (job.labels == nullptr) continue;
        if (job.facts.wide)
          static_cast<std::int32_t*>(job.labels)[at] = red(job, b, y, x) % K;
        else
          static_cast<unsigned char*>(job.labels)[at] = static_cast<unsigned char>(red(job, b, y, x) % K);
      }
    }
    if (job.masks == nullptr) continue;
    const std::int64_t P = job.facts.P, h = (job.H + P - 1) / P, w = (job.W + P - 1) / P;
    for (std::int64_t k = 0; k < K; ++k) {
      for (std::int64_t i = 0; i < h; ++i) {
        for (std::int64_t j = 0; j < w; ++j) {
          float score = red(job, b, i * P, j * P) % K == k ? 1.0f : 0.0f;
          if (red(job, b, 0, 0) == 255) score = std::numeric_limits<float>::quiet_NaN();
          static_cast<float*>(job.masks)[((b * K + k) * h + i) * w + j] = score;
        }
      }
    }
  }
}

}  // namespace fake_network
