"""A stand-in for TensorRT in segmenter_trt: a backend whose labels are the red values of the pixels, and its plan."""

import json
import os
import shutil
import subprocess
from hashlib import sha256
from pathlib import Path

import pytest

from tests.cpp_build import ROOT

H, W = 4, 6


def compiler() -> str:
    """The C++ compiler, or a skip."""
    for name in (os.environ.get("CXX", ""), "c++", "g++", "clang++"):
        if name and (path := shutil.which(name)):
            return path
    pytest.skip("no C++ compiler is installed")


def compile_backend(folder: Path) -> None:
    """Build `csrc/tests/red_backend.cc` into `folder`, where SEGMENTER_TRT_BACKENDS may point."""
    source = ROOT / "csrc" / "tests" / "red_backend.cc"
    flags = ("-std=c++20", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC")
    includes = (f"-I{ROOT / 'csrc' / 'include'}", f"-I{ROOT / 'csrc' / 'src'}")
    out = folder / "libsegmenter_trt_tensorrt.so"
    subprocess.run([compiler(), *flags, *includes, str(source), "-o", str(out)], check=True)


def write_plan(folder: Path, **changes: object) -> Path:
    """A plan of 256 classes whose bytes nobody reads, with its manifest."""
    plan = folder / "fake.plan"
    plan.write_bytes(b"no plan")
    values: dict[str, object] = {
        "artifact": plan.name,
        "kind": "plan",
        "engine": "tensorrt",
        "precision": "fp16",
        "sha256": sha256(b"no plan").hexdigest(),
        "source": {},
        "model": "fake",
        "patch_size": 2,
        "input": "normalized",
        "height": [H] * 3,
        "width": [W] * 3,
        "batch": [1, 1, 2],
        "outputs": ["labels"],
        "classes": [f"class {k}" for k in range(256)],
        "palette": [[k, k, k] for k in range(256)],
        "preprocess": {"mean": [0.5] * 3, "std": [0.5] * 3},
        "command": "",
        "versions": {},
        "machine": "somewhere",
        "plugins": [],
        "compute_capabilities": [],
        "details": {},
        "verification": None,
        "format": 2,
    }
    plan.with_name(plan.name + ".json").write_text(json.dumps(values | changes))
    return plan
