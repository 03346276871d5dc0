"""The compiled CPU routines beside what they replace, on one core, checked in the same run.

python -m segmenter_bench.routines
"""

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from rich import box
from rich.table import Table

import segmenter_trt
from segmenter.cli import run as run_command
from segmenter.errors import VerificationError
from segmenter.files import require_writable
from segmenter.option import require_least
from segmenter_bench.machine import Neighbours, busy_note, process_seconds
from segmenter_bench.runs import wide_console, write_record
from segmenter_bench.timing import burst, take_turns


@dataclass(frozen=True)
class Options:
    """Upsampling with argmax beside PyTorch's, and resizing beside Pillow's; on one core."""

    rounds: int = 15
    """Times each is called; they take turns, and the median counts."""
    classes: int = 150
    """Classes of the masks."""
    json: Path | None = None
    """Also write the result to this file."""

    def __post_init__(self) -> None:
        require_least(self, rounds=1, classes=2)  # of two classes, the nearer decides what is a tie


def in_turns(theirs: Callable[[], Any], mine: Callable[[], Any], rounds: int) -> tuple[float, float]:
    """Median CPU milliseconds of each, a call a turn after an untimed one.

    On one idle core the clock shows the same; beside other programs it shows their time too.
    """
    calls = {"theirs": theirs, "mine": mine}
    found = take_turns({name: partial(burst, call, 0.0, 1) for name, call in calls.items()}, rounds)
    first, second = (float(np.median([one.cpu_ms for one in found[name]])) for name in calls)
    return first, second


def smooth(classes: int, grid: int = 32) -> np.ndarray:
    """Scores [1, K, h, w] as a trained network gives them: few classes to choose from in most places."""
    coarse = torch.randn(1, classes, grid // 8 + 2, grid // 8 + 2, generator=torch.Generator().manual_seed(1))
    return F.interpolate(coarse, (grid, grid), mode="bilinear").contiguous().numpy()


def unrelated(classes: int, grid: int = 32) -> np.ndarray:
    """Scores that have nothing to do with each other: near ties everywhere, which no network gives."""
    return np.random.default_rng(0).standard_normal((1, classes, grid, grid), dtype=np.float32)


def labels_row(name: str, masks: np.ndarray, rounds: int) -> tuple[str, float, float]:
    """Raises VerificationError where the labels differ at pixels that are no ties."""
    size = (512, 512)
    scores = torch.from_numpy(masks)

    def eager() -> torch.Tensor:
        # of PyTorch's two layouts the one in which it is sooner; the change to it counts
        fast = scores.to(memory_format=torch.channels_last)
        return F.interpolate(fast, size, mode="bilinear", align_corners=False).argmax(1)

    def ours() -> np.ndarray:
        return segmenter_trt.upsample_argmax(masks, size, threads=1)

    best = F.interpolate(scores.double(), size, mode="bilinear", align_corners=False).topk(2, dim=1).values
    clear = (best[:, 0] - best[:, 1] > 1e-5).numpy()
    wrong = int((eager().numpy() != ours())[clear].sum())
    if wrong:
        raise VerificationError(f"{name}: {wrong} labels differ from PyTorch's where no two classes are near a tie")
    theirs, mine = in_turns(eager, ours, rounds)
    return name, theirs, mine


def resize_row(name: str, old: tuple[int, int], new: tuple[int, int], rounds: int) -> tuple[str, float, float]:
    """Raises VerificationError where a pixel differs."""
    image = np.random.default_rng(0).integers(0, 256, (*old, 3), dtype=np.uint8)

    def pillow() -> np.ndarray:
        return np.asarray(Image.fromarray(image).resize((new[1], new[0]), Image.Resampling.BILINEAR))

    def ours() -> np.ndarray:
        return segmenter_trt.resize(image, *new, threads=1)

    if not np.array_equal(pillow(), ours()):
        raise VerificationError(f"{name}: pixels differ from Pillow's")
    theirs, mine = in_turns(pillow, ours, rounds)
    return name, theirs, mine


def measure(options: Options) -> int:
    if options.json is not None:
        require_writable(options.json)
    torch.set_num_threads(1)
    neighbours = Neighbours(lambda: process_seconds(os.getpid()))
    masks, rounds = f"{options.classes} classes, 32x32 to 512x512", options.rounds
    rows = [
        labels_row(f"labels: {masks}, a network's", smooth(options.classes), rounds),
        labels_row(f"labels: {masks}, unrelated", unrelated(options.classes), rounds),
        resize_row("resize: 720x960 to 360x480", (720, 960), (360, 480), rounds),
        resize_row("resize: 360x480 to 720x960", (360, 480), (720, 960), rounds),
    ]
    busy = neighbours.share()
    table = Table("one core", "PyTorch or Pillow, CPU ms", "segmenter_trt, CPU ms", "times faster", box=box.SIMPLE)
    for name, theirs, mine in rows:
        table.add_row(name, f"{theirs:.2f}", f"{mine:.2f}", f"{theirs / mine:.1f}")
    console = wide_console()
    console.print(table)
    if note := busy_note(busy or 0.0):
        console.print(note, style="yellow", soft_wrap=True)
    if options.json is not None:
        each = [{"what": name, "theirs_cpu_ms": theirs, "ours_cpu_ms": mine} for name, theirs, mine in rows]
        write_record(options.json, options, {"rows": each, "others_busy": busy})
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(measure, Options, argv)


if __name__ == "__main__":
    sys.exit(main())
