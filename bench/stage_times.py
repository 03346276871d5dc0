"""Milliseconds of each named stage, from PyTorch's profiler: by the clock on a CPU, of the work done on a GPU."""

import os
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd import DeviceType  # type: ignore[attr-defined]  # in its documentation, not in its stub
from torch.profiler import ProfilerActivity, profile

from segmenter_bench.ceilings import wait
from segmenter_bench.ranges import PREFIX
from segmenter_bench.roofline import STAGES


def measured_stages(
    run: Callable[[np.ndarray], Tensor], images: np.ndarray, device: torch.device, rounds: int
) -> dict[str, float]:
    """Milliseconds a call of every named stage, the median of `rounds` profiled calls."""
    found: dict[str, list[float]] = defaultdict(list)
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    for _ in range(rounds):
        profiled = profile(activities=activities)
        # not around the run: what it says of its own end would be lost with it
        with _without_marks():
            profiled.start()
        try:
            run(images)
            wait(device)
        finally:
            with _without_marks():
                profiled.stop()
        sums = (_on_gpu if on_gpu else _on_cpu)(profiled.events() or ())
        for name in STAGES:
            found[name].append(sums.get(name, 0.0))
    return {name: float(np.median(times)) for name, times in found.items()}


def _on_cpu(events: Iterable[Any]) -> dict[str, float]:
    """Milliseconds of each range, by the clock."""
    sums: dict[str, float] = defaultdict(float)
    for event in events:
        if event.name.startswith(PREFIX):
            sums[event.name.removeprefix(PREFIX)] += event.cpu_time_total / 1000.0
    # the scores' range lies inside the decoder's
    if "decoder" in sums:
        sums["decoder"] -= sums.get("mask scores", 0.0)
    return sums


def _on_gpu(events: Iterable[Any]) -> dict[str, float]:
    """Milliseconds in which the GPU worked for each range, for the innermost where one lies inside another.

    The profiler has every range twice: on the CPU's side with the kernels that PyTorch's operators launched, without
    those that Triton launches itself, and on the GPU's from its first kernel to its last, waiting included. So the
    kernels and copies are summed that lie inside the latter.
    """
    there = [event for event in events if event.device_type != DeviceType.CPU]
    ranges = [event for event in there if event.name.startswith(PREFIX)]
    sums: dict[str, float] = defaultdict(float)
    for work in (event.time_range for event in there if not event.is_user_annotation):
        around = [one for one in ranges if one.time_range.start <= work.start and work.end <= one.time_range.end]
        if around:
            inner = min(around, key=lambda one: float(one.time_range.elapsed_us()))
            sums[inner.name.removeprefix(PREFIX)] += work.elapsed_us() / 1000.0
    return sums


@contextmanager
def _without_marks() -> Iterator[None]:
    """Leave out of stderr the lines with which PyTorch's profiler marks its start and its stop; all others come after.

    Its library writes them to the file itself, and above its errors: a KINETO_LOG_LEVEL without them has no errors.
    """
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as said:
        os.dup2(said.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(stderr, 2)
            os.close(stderr)
            said.seek(0)
            for line in said:
                if not line.startswith(b"USDT:"):
                    os.write(2, line)
