"""Kernels run on a GPU where there is one, else in Triton's interpreter, repaired.

With EMULATE=80, 86, 89 or 90 they are compiled for that architecture, and their code is run by an emulator.
"""

import os
from collections.abc import Iterator

import pytest
import torch

from segmenter_kernels.compiling import OPS

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
EMULATED = int(os.environ.get("EMULATE") or 0)
if EMULATED not in (0, 80, 86, 89, 90) or (EMULATED and DEVICE == "cuda"):
    raise pytest.UsageError(f"EMULATE={EMULATED}: wanted 80, 86, 89 or 90, and no GPU: CUDA_VISIBLE_DEVICES= hides one")
FLOAT8 = 89  # the first architecture that has it
COMPILED = DEVICE == "cuda" or EMULATED > 0

# float32 is judged as float32, by convolutions too
torch.backends.cudnn.allow_tf32 = False
torch.backends.cuda.matmul.allow_tf32 = False

if DEVICE == "cpu" and not EMULATED:
    from tests.kernels.interpreter import install

    install()


@pytest.fixture(scope="session", autouse=EMULATED > 0)
def _emulator() -> Iterator[None]:
    from tests.kernels.emulator.launch import emulated

    with emulated(EMULATED):
        yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Under the emulator only the kernels' own tests run: it has no graphs, no streams and no interpreter."""
    for item in items if EMULATED else ():
        if item.path.stem.removeprefix("test_") not in (*OPS, "layernorm_quantize", "emulator", "training"):
            item.add_marker(pytest.mark.skip(reason="no test of a kernel alone: the emulator does not run it"))
        elif "float8" in item.name and EMULATED < FLOAT8:
            item.add_marker(pytest.mark.skip(reason=f"sm_{EMULATED} has no float8"))
