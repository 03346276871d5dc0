"""Kernels compiled and the plugins built of them, each once for all tests; csrc/plugins/tests has the C++ tests."""

import os
import shutil
import sys
import textwrap
from itertools import product
from pathlib import Path

import pytest

from tests.cpp_build import ROOT, UNITY, succeed, tensorrt_headers

SOURCES = ROOT / "csrc" / "plugins"
OPS = ("SegmenterAttention", "SegmenterMaskScores", "SegmenterPatchEmbed", "SegmenterUpsampleArgmax")
# what the tests launch (and the small network holds) in each type and on each architecture; the C++ tests know them
COMPILED = [
    *product((80, 90), ("attention_fp16_d64", "attention_bf16_d80", "mask_scores_fp16_k32", "patch_embed_fp16_p16")),
    *product((80, 90), ("upsample_argmax_fp16_r16_int32",)),
    *product((80,), ("attention_bf16_d64", "mask_scores_bf16_k32", "patch_embed_bf16_p16", "patch_embed_fp16_p14")),
    *product((80,), ("upsample_argmax_bf16_r16_int32", "upsample_argmax_fp16_r16_int32_few")),
]
# what the paper's networks of 150 classes need besides
LARGE = [(80, "mask_scores_fp16_k160"), (80, "mask_scores_bf16_k160")]
needs_tools = pytest.mark.skipif(
    not all(map(shutil.which, ("cmake", "c++", "ninja"))) or not Path("/usr/include/gtest").is_dir(),
    reason="the plugins' tests need cmake, ninja, a C++ compiler and GoogleTest (apt-get install libgtest-dev)",
)


def compile_kernels(folder: Path) -> None:
    """Fill `folder`/tested with COMPILED and `folder`/deployed with LARGE too, in a process that interprets nothing."""
    from segmenter_kernels import aot

    try:
        aot.fatbinary()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    script = f"""
        from pathlib import Path
        from segmenter_kernels import aot, compiling
        found = {{(sm, each.name): each for sm in (80, 90) for each in compiling.specialisations(sm)}}
        tested = compiling.compile_kernels((found[key], key[0]) for key in {COMPILED})
        deployed = tested + compiling.compile_kernels((found[key], key[0]) for key in {LARGE})
        assert not any(map(compiling.faults, deployed)) or not aot.triton.__version__.startswith("3.8.")
        aot.write(tested, Path({str(folder)!r}) / "tested")
        aot.write(deployed, Path({str(folder)!r}) / "deployed")
    """
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    succeed(sys.executable, "-c", textwrap.dedent(script), env=environment)


def build(folder: Path, cubins: Path, flags: str, *targets: str) -> None:
    """Build targets of the plugins' own CMake project of a folder of kernels."""
    headers = tensorrt_headers()
    checks = ("-DSEGMENTER_TRT_PLUGIN_TESTS=ON", "-DSEGMENTER_TRT_WERROR=ON", "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON")
    places = (
        f"-DSEGMENTER_TRT_CUBINS={cubins}",
        f"-DTENSORRT_INCLUDE_DIR={headers}",
        f"-DPython_EXECUTABLE={sys.executable}",
    )
    # elsewhere each source by itself, as users compile them
    unity = UNITY if "address" in flags else ()
    options = (*unity, "-DCMAKE_BUILD_TYPE=Debug", f"-DCMAKE_CXX_FLAGS={flags}", *checks, *places)
    succeed("cmake", "-S", SOURCES, "-B", folder, "-G", "Ninja", *options)
    succeed("cmake", "--build", folder, "--target", *targets)
