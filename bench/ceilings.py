"""What a machine was measured to do: the ceilings that a stage's work and traffic are held against."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

LARGE, SMALL = (8192, 1 << 30), (1536, 1 << 28)  # side of the matrices and bytes copied, on a GPU and on a CPU


@dataclass(frozen=True)
class Ceilings:
    """A large matrix product at one type, and a large copy."""

    tflops: float
    gb_per_s: float  # read and written


def ceilings(device: torch.device, dtype: torch.dtype) -> Ceilings:
    """Measure a product of two square matrices and a copy, the best of several."""
    side, copied_bytes = LARGE if device.type == "cuda" else SMALL
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    product_s = best_seconds(lambda: a @ b.mT, device)
    source = torch.zeros(copied_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy_s = best_seconds(lambda: target.copy_(source), device)
    return Ceilings(2 * side**3 / product_s / 1e12, 2 * copied_bytes / copy_s / 1e9)


def best_seconds(call: Callable[[], Any], device: torch.device, repeats: int = 5, warmup: int = 2) -> float:
    """Shortest of `repeats` calls, finished on the device, after `warmup` others."""
    times = []
    for _ in range(warmup + repeats):
        wait(device)
        start = time.perf_counter()
        call()
        wait(device)
        times.append(time.perf_counter() - start)
    return min(times[warmup:])


def wait(device: torch.device) -> None:
    """Until a device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
