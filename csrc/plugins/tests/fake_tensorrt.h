// What plugins are given by TensorRT: expressions of sides, and a logger.
#pragma once

#include <NvInferRuntime.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace segmenter_plugins {

// A number, or one that is known only at run time and is evaluated with what it will be.
struct FakeSide final : nvinfer1::IDimensionExpr, nvinfer1::apiv::VDimensionExpr {
  FakeSide(std::int64_t value, bool constant) : value_(value), constant_(constant) { mImpl = this; }
  ~FakeSide() noexcept override = default;
  bool isConstant() const noexcept override { return constant_; }
  std::int64_t getConstantValue() const noexcept override { return value_; }
  bool isSizeTensor() const noexcept override { return false; }
  std::int64_t value_;
  bool constant_;
};

struct FakeExprs final : nvinfer1::IExprBuilder, nvinfer1::apiv::VExprBuilder {
  FakeExprs() { mImpl = this; }
  ~FakeExprs() noexcept override = default;
  const nvinfer1::IDimensionExpr* constant(std::int64_t value) noexcept override { return side(value, true); }
  const nvinfer1::IDimensionExpr* operation(nvinfer1::DimensionOperation operation, const nvinfer1::IDimensionExpr& a,
                                            const nvinfer1::IDimensionExpr& b) noexcept override {
    const auto& x = static_cast<const FakeSide&>(a);
    const auto& y = static_cast<const FakeSide&>(b);
    const bool product = operation == nvinfer1::DimensionOperation::kPROD;
    EXPECT_TRUE(product || operation == nvinfer1::DimensionOperation::kFLOOR_DIV);
    return side(product ? x.value_ * y.value_ : x.value_ / y.value_, x.constant_ && y.constant_);
  }
  const nvinfer1::IDimensionExpr* declareSizeTensor(std::int32_t, const nvinfer1::IDimensionExpr& side,
                                                    const nvinfer1::IDimensionExpr&) noexcept override {
    return &side;
  }
  const FakeSide* side(std::int64_t value, bool constant) {
    return sides_.emplace_back(std::make_unique<FakeSide>(value, constant)).get();
  }
  std::vector<std::unique_ptr<FakeSide>> sides_;
};

struct FakeLogger final : nvinfer1::ILogger {
  void log(Severity severity, const char* message) noexcept override {
    EXPECT_EQ(severity, Severity::kERROR);
    messages.emplace_back(message);
  }
  std::vector<std::string> messages;
};

struct FakeFinder final : nvinfer1::ILoggerFinder {
  nvinfer1::ILogger* findLogger() override { return logger; }
  nvinfer1::ILogger* logger = nullptr;
};

}  // namespace segmenter_plugins
