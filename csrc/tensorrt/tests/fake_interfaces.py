"""Classes that implement every interface a runtime of TensorRT has, each method refusing: what fakes are made of.

    python fake_interfaces.py TENSORRT_INCLUDE_DIR OUT.h [rtx]

Interfaces differ between versions of TensorRT, so they are read from the headers at hand.
"""

import re
import sys
from pathlib import Path

# class to make: (interface it is used through, class whose pure virtual methods it has, header of the latter)
CLASSES = {
    "StubRuntime": ("IRuntime", "apiv::VRuntime", "NvInferImpl.h"),
    "StubEngine": ("ICudaEngine", "apiv::VCudaEngine", "NvInferImpl.h"),
    "StubContext": ("IExecutionContext", "apiv::VExecutionContext", "NvInferImpl.h"),
    "StubRegistry": ("", "IPluginRegistry", "NvInferRuntimeCommon.h"),
}
RTX = {"StubConfig": ("IRuntimeConfig", "apiv::VRuntimeConfig", "NvInferImpl.h")}
METHOD = re.compile(r"virtual\s+(?P<head>[^;{}~]*?\))\s*(?P<tail>(?:const)?\s*(?:noexcept)?)\s*=\s*0\s*;", re.DOTALL)


def body_of(header: str, name: str) -> str:
    """The text of a class. Raises SystemExit when the header has none of that name."""
    found = re.search(rf"^class {name}\b[^;{{]*\{{(.*?)^\}};", header, re.DOTALL | re.MULTILINE)
    if found is None:
        raise SystemExit(f"no class {name} in the headers; this script knows TensorRT 10 and 11")
    return re.sub(r"//[^\n]*|/\*.*?\*/", "", found[1], flags=re.DOTALL)


def stubs(body: str) -> list[str]:
    """Overrides of the pure virtual methods, with the conditions of the preprocessor they stand under."""
    lines = []
    for part in re.split(r"(^\s*#[^\n]*$)", body, flags=re.MULTILINE):
        if part.lstrip().startswith("#"):
            lines.append(part.strip())
            continue
        for method in METHOD.finditer(part):
            head = " ".join(method["head"].split())
            lines.append(f"  {head} {method['tail'].strip()} override {{ refuse(); }}")
    return lines


def main(include: Path, out: Path, rtx: bool) -> None:
    text = ["#pragma once", "#include <NvInferRuntime.h>", "#include <cstdlib>", "namespace nvinfer1 {"]
    text.append("[[noreturn]] inline void refuse() { std::abort(); }")
    for name, (interface, virtual, header) in (CLASSES | (RTX if rtx else {})).items():
        body = body_of((include / header).read_text(encoding="utf-8"), virtual.removeprefix("apiv::"))
        bases = ", ".join(f"public {base}" for base in (interface, virtual) if base)
        text += [f"class {name} : {bases} {{", " public:"]
        text += [f"  {name}() {{ mImpl = this; }}"] if interface else []
        text += [*stubs(body), "};"]
    text.append("}  // namespace nvinfer1")
    out.write_text("\n".join(text) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), "rtx" in sys.argv[3:])
