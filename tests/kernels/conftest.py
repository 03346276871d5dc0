"""Kernels run on a GPU where there is one, else in Triton's interpreter, repaired."""

import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

if DEVICE == "cpu":
    from tests.kernels.interpreter import install

    install()
