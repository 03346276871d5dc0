"""Options that lean on PyTorch's machinery, deterministic algorithms and the compiler, and what it lacks, in words."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def repeatable(wanted: bool) -> Iterator[None]:
    """Inside the block, if wanted, only algorithms that give the same bits each time; PyTorch refuses the others."""
    if not wanted:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read by cuBLAS at its first product
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cudnn.benchmark = before[1]


def needed(error: RuntimeError) -> str | None:
    """What a RuntimeError of PyTorch says an option lacks here, in one line; None for any other."""
    told = " ".join(str(error).split())
    if "deterministic" in told:
        return f"--deterministic: {told[:120]}; leave the option out on this device"
    if type(error).__module__.startswith("torch._dynamo") or type(error).__module__.startswith("torch._inductor"):
        return f"--compile: {told[:200]}; install what it asks for (a C++ compiler, Triton), or leave the option out"
    return None
