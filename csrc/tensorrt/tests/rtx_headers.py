"""Headers like TensorRT-RTX's, made of TensorRT's: where the former are not at hand, the backend for it is tested so.

    python rtx_headers.py TENSORRT_INCLUDE_DIR OUT_FOLDER

What the backend uses of TensorRT-RTX and TensorRT lacks is added, under the names TensorRT-RTX 1.6 has it by.
"""

import re
import sys
from pathlib import Path

ENUM = """
namespace nvinfer1 {
enum class DynamicShapesKernelSpecializationStrategy : int32_t { kLAZY = 0, kEAGER = 1, kNONE = 2 };
class IRuntimeCache { public: virtual ~IRuntimeCache() noexcept = default; };
}
"""
# header, class -> its methods, called or pure
METHODS = {
    ("NvInferImpl.h", "VRuntimeConfig"): [
        "virtual IRuntimeCache* createRuntimeCache() const noexcept = 0;",
        "virtual bool setRuntimeCache(IRuntimeCache const& cache) noexcept = 0;",
        "virtual void setDynamicShapesKernelSpecializationStrategy("
        "DynamicShapesKernelSpecializationStrategy strategy) noexcept = 0;",
    ],
    ("NvInferRuntime.h", "IRuntimeConfig"): [
        "IRuntimeCache* createRuntimeCache() const noexcept { return mImpl->createRuntimeCache(); }",
        "bool setRuntimeCache(IRuntimeCache const& cache) noexcept { return mImpl->setRuntimeCache(cache); }",
        "void setDynamicShapesKernelSpecializationStrategy(DynamicShapesKernelSpecializationStrategy strategy) noexcept"
        " { mImpl->setDynamicShapesKernelSpecializationStrategy(strategy); }",
    ],
    ("NvInferImpl.h", "VExecutionContext"): [
        "virtual bool isStreamCapturable(cudaStream_t stream) const noexcept = 0;",
    ],
    ("NvInferRuntime.h", "IExecutionContext"): [
        "bool isStreamCapturable(cudaStream_t stream) const noexcept { return mImpl->isStreamCapturable(stream); }",
    ],
}


def with_methods(header: str, name: str, methods: list[str]) -> str:
    """The header with methods at the front of a class. Raises SystemExit when it has none of that name."""
    front = re.search(rf"^class {name}\b[^;{{]*\{{\s*public:", header, re.MULTILINE)
    if front is None:
        raise SystemExit(f"no class {name}: these headers are older than TensorRT 10.11")
    return header[: front.end()] + "".join(f"\n    {method}" for method in methods) + header[front.end() :]


def main(include: Path, out: Path) -> None:
    texts = {path.name: path.read_text(encoding="utf-8") for path in include.glob("*.h")}
    for (header, name), methods in METHODS.items():
        texts[header] = with_methods(texts[header], name, methods)
    texts["NvInferImpl.h"] = texts["NvInferImpl.h"].replace("namespace nvinfer1\n", ENUM + "namespace nvinfer1\n", 1)
    out.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (out / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
