"""Kernels run on a GPU where there is one, else in Triton's interpreter, repaired."""

import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

# float32 is judged as float32, by convolutions too
torch.backends.cudnn.allow_tf32 = False
torch.backends.cuda.matmul.allow_tf32 = False

if DEVICE == "cpu":
    from tests.kernels.interpreter import install

    install()
