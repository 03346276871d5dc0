"""Checkpoint to every engine: exported, quantised, built and verified into one folder.

An engine folder holds a copy of the checkpoint in `checkpoint/` and the artifacts below it in `ARTIFACTS`, each with
its manifest. What cannot be made on a machine leaves `<artifact>.reason.txt` instead, one line that says why.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from segmenter.checkpoint import load_model, save_model
from segmenter.cli import run
from segmenter.datasets import SegmentationDataset, Subset, open_dataset
from segmenter.errors import EngineError, SegmenterError, VerificationError
from segmenter.evaluate import require_same_classes
from segmenter.files import atomic_path
from segmenter_engines.build import ENGINE, MODULE, build
from segmenter_engines.calibrate import Method
from segmenter_engines.export import export
from segmenter_engines.quantize import calibration_images, quantize
from segmenter_engines.sessions import open_session
from segmenter_engines.verify import record, verify

CHECKPOINT = "checkpoint"
FP32, FP16 = "model.fp32.onnx", "model.fp16.onnx"
INT8, INT8_TENSORRT = "model.int8.onnx", "model.int8-trt.onnx"
PLAN_FP16, PLAN_INT8 = "model.fp16.plan", "model.int8.plan"
ARTIFACTS = (FP32, INT8, FP16, INT8_TENSORRT, PLAN_FP16, PLAN_INT8)  # in the order they are made from each other
# what is verified where; a plan without a GPU is vouched for by the graph it was built from, in ONNX Runtime
VERIFIED = (
    (FP32, "onnxruntime", None),
    (FP32, "openvino", "fp32"),
    (INT8, "onnxruntime", None),
    (INT8, "openvino", None),
    (FP16, "onnxruntime", None),
    (INT8_TENSORRT, "onnxruntime", None),
    (PLAN_FP16, ENGINE, None),
    (PLAN_INT8, ENGINE, None),
)


def make_artifacts(
    folder: Path,
    height: int,
    width: int,
    images: Sequence[np.ndarray],
    *,
    method: Method = "minmax",
    say: Callable[[str], None] = print,
) -> dict[str, str]:
    """Make every artifact from `folder/checkpoint`; returns the reason, in one line, for each that could not be made.

    images: calibration images, uint8 RGB [height, width, 3]. A reason also goes into the artifact's `.reason.txt`.
    """
    checkpoint = folder / CHECKPOINT

    def plan(source: str) -> Callable[[Path], object]:
        return lambda out: build(folder / source, out)

    steps: dict[str, Callable[[Path], object]] = {
        FP32: lambda out: export(checkpoint, out, height=height, width=width),
        INT8: lambda out: quantize(folder / FP32, out, images, method=method),
        FP16: lambda out: export(checkpoint, out, height=height, width=width, precision="fp16"),
        INT8_TENSORRT: lambda out: quantize(folder / FP16, out, images, target="tensorrt", method=method),
        PLAN_FP16: plan(FP16),
        PLAN_INT8: plan(INT8_TENSORRT),
    }
    reasons = {}
    for name in ARTIFACTS:
        say(f"making {name}")
        reason = _missing(name) or _attempt(steps[name], folder / name)
        reason_path(folder / name).unlink(missing_ok=True)
        if reason:
            reasons[name] = reason
            (folder / name).unlink(missing_ok=True)  # never an older one beside a reason
            with atomic_path(reason_path(folder / name)) as temporary:
                temporary.write_text(reason + "\n", encoding="utf-8")
    return reasons


def reason_path(artifact: Path) -> Path:
    """Where the reason lies, in one line, why an artifact could not be made."""
    return artifact.with_name(artifact.name + ".reason.txt")


def verify_artifacts(folder: Path, samples: SegmentationDataset, threads: int | None = None) -> tuple[str, ...]:
    """Verify every engine of a folder that runs here against PyTorch, print a line each, and write the manifests.

    Returns the faults found, one line each; an engine that cannot run here is named in print and is no fault.
    """
    faults: list[str] = []
    with open_session(folder / CHECKPOINT, "eager", threads=threads) as reference:
        for name, engine, precision in VERIFIED:
            if not (folder / name).is_file():
                continue
            try:
                session = open_session(folder / name, engine, threads=threads, precision=precision)
            except EngineError as error:
                print(f"  {name:20} not verified here: {error}")
                continue
            with session:
                verdict = verify(session, reference, samples)
            record(folder / name, verdict)
            print(f"  {name:20} {verdict.line()}")
            faults += [f"{name} in {verdict.engine}: {fault}" for fault in verdict.faults]
    return tuple(faults)


def _missing(name: str) -> str | None:
    if name in (PLAN_FP16, PLAN_INT8) and find_spec(MODULE) is None:
        return f"the package {MODULE} is not installed; pip install 'segmenter-trt[{ENGINE}]'"
    return None


def _attempt(make: Callable[[Path], object], out: Path) -> str | None:
    try:
        make(out)
    except SegmenterError as error:
        return " ".join(str(error).split())
    return None


@dataclass(frozen=True)
class Options:
    """Take a checkpoint through every engine: export, quantise, build, verify; exits with 2 where a limit is passed."""

    checkpoint: Annotated[Path, tyro.conf.Positional]
    """Checkpoint folder, or an official checkpoint.pth beside its variant.yml."""
    out: Path
    """Engine folder to fill."""
    dataset: str
    """Dataset of the calibration images (training split) and the verification images (validation split)."""
    data: Path | None = None
    """Root folder of the dataset."""
    height: int | None = None
    """Image height in pixels; the training height when left out."""
    width: int | None = None
    """Image width in pixels."""
    images: int = 32
    """Number of calibration images."""
    method: Method = "minmax"
    """How activation ranges are found."""
    verify_images: int = 16
    """Number of verification images."""
    threads: int | None = None
    """CPU threads; all cores when left out."""


def pipeline(options: Options) -> int:
    model = load_model(options.checkpoint)
    train = open_dataset(options.dataset, options.data, "train")
    val = Subset(open_dataset(options.dataset, options.data, "val"), options.verify_images)
    require_same_classes(model.config.classes, val, options.checkpoint)
    height, width = (
        options.height or model.config.encoder.image_size[0],
        options.width or model.config.encoder.image_size[1],
    )
    save_model(model, options.out / CHECKPOINT)
    images = list(calibration_images(train, options.images, (height, width)))
    reasons = make_artifacts(options.out, height, width, images, method=options.method)
    for name, reason in reasons.items():
        print(f"  {name:20} not made: {reason}")
    print(f"verifying on {len(val)} images")
    faults = verify_artifacts(options.out, val, options.threads)
    if faults:
        raise VerificationError(f"{options.out}: {'; '.join(faults)}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    return run(pipeline, Options, argv)


if __name__ == "__main__":
    sys.exit(main())
