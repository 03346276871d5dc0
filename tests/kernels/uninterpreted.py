"""Processes that compile kernels: this one may be interpreting them."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import triton

import segmenter_kernels
from segmenter_kernels.compiling import JUDGED_WITH

JUDGED = pytest.mark.skipif(
    not triton.__version__.startswith(f"{JUDGED_WITH}."),
    reason=f"machine code is judged as Triton {JUDGED_WITH} makes it; this is {triton.__version__}",
)


def script(text: str) -> subprocess.CompletedProcess[str]:
    return python("-c", textwrap.dedent(text))


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    paths = (Path(segmenter_kernels.__file__).parents[1], Path(__file__).parents[2])
    environment["PYTHONPATH"] = os.pathsep.join(map(str, paths))
    return subprocess.run([sys.executable, *arguments], env=environment, text=True, capture_output=True, check=False)
