"""Kernels run on a GPU where there is one, else in Triton's interpreter, repaired.

With EMULATE=80 or EMULATE=90 they are compiled for that architecture, and their code is run by an emulator.
"""

import os
from collections.abc import Iterator

import pytest
import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
EMULATED = int(os.environ.get("EMULATE", 0)) if DEVICE == "cpu" else 0
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
