"""A checkpoint to every artifact of an engine folder: exported, quantised and built; or why not."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from segmenter.errors import SegmenterError, Unavailable
from segmenter_engines.build import build
from segmenter_engines.calibrate import Method
from segmenter_engines.export import export
from segmenter_engines.folder import (
    ARTIFACTS,
    CHECKPOINT,
    FP16,
    FP32,
    INT8,
    INT8_TENSORRT,
    MADE_OF,
    PLAN_FP16,
    PLAN_INT8,
    PLANS,
    clear,
    write_reason,
)
from segmenter_engines.quantize import quantize
from segmenter_engines.tensorrt_api import ENGINES

PLAN_ENGINE = "tensorrt-rtx"


@dataclass(frozen=True)
class Absence:
    """Why an artifact is not there, in one line, and whether it ought to be."""

    reason: str
    fault: bool


def make_artifacts(
    folder: Path,
    height: int,
    width: int,
    images: Sequence[np.ndarray],
    *,
    method: Method = "minmax",
    threads: int | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, Absence]:
    """Make every artifact from `folder/checkpoint`; returns why, for each that could not be made.

    images: calibration images, uint8 RGB [height, width, 3]. Older artifacts are removed first. A reason also goes into
    the artifact's `.reason.txt`.
    """
    clear(folder)
    checkpoint = folder / CHECKPOINT

    def plan(source: str) -> Callable[[Path], object]:
        return lambda out: build(folder / source, out)

    steps: dict[str, Callable[[Path], object]] = {
        FP32: lambda out: export(checkpoint, out, height=height, width=width),
        INT8: lambda out: quantize(folder / FP32, out, images, method=method, threads=threads),
        FP16: lambda out: export(checkpoint, out, height=height, width=width, precision="fp16"),
        INT8_TENSORRT: lambda out: quantize(
            folder / FP16, out, images, target="tensorrt", method=method, threads=threads
        ),
        PLAN_FP16: plan(FP16),
        PLAN_INT8: plan(INT8_TENSORRT),
    }
    absent: dict[str, Absence] = {}
    for name in ARTIFACTS:
        say(f"making {name}")
        absence = _missing(name, absent) or _attempt(steps[name], folder / name)
        if absence is not None:
            absent[name] = absence
            write_reason(folder / name, absence.reason)
    return absent


def _missing(name: str, absent: Mapping[str, Absence]) -> Absence | None:
    needed = ENGINES[PLAN_ENGINE].module
    if name in PLANS and find_spec(needed) is None:
        return Absence(
            f"the package {needed} is not installed; pip install 'segmenter-trt[{PLAN_ENGINE}]'", fault=False
        )
    parent = MADE_OF.get(name, "")
    if parent in absent:
        return Absence(f"{parent}, which it is made of, could not be made", fault=False)  # said once, of that one
    return None


def _attempt(make: Callable[[Path], object], out: Path) -> Absence | None:
    try:
        make(out)
    except SegmenterError as error:
        fault = out.name not in PLANS and not isinstance(error, Unavailable)
        return Absence(" ".join(str(error).split()), fault)
    return None
