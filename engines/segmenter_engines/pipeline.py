"""Checkpoint to every engine: exported, quantised, built and verified into one folder.

Plans may be absent, and so may what this machine lacks the package or the driver for: that is said and is no fault. A
graph that cannot be made, opened or run is one, and so is a folder in which nothing could be verified.
"""

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from segmenter.checkpoint import load_model, save_model
from segmenter.cli import run
from segmenter.config import SegmenterConfig
from segmenter.datasets import SegmentationDataset, Subset, open_dataset
from segmenter.datasets.option import DATASET
from segmenter.errors import ConfigError, SegmenterError, Unavailable, VerificationError
from segmenter.evaluation import require_same_classes
from segmenter.option import ANY_CHECKPOINT, require_least
from segmenter_engines.artifacts import PLAN_ENGINE, make_artifacts
from segmenter_engines.calibrate import Method
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
    manifests,
)
from segmenter_engines.limits import IMAGES
from segmenter_engines.recipe import calibration_images
from segmenter_engines.sessions import Session, open_engine
from segmenter_engines.verdict import record
from segmenter_engines.verified import carry
from segmenter_engines.verify import Judged, at_size_of, floats_of, judge, open_as_shipped, verify

# what is verified where; a plan without a GPU is vouched for by the graph it was built from, in ONNX Runtime
VERIFIED = (
    (FP32, "onnxruntime", None),
    (FP32, "openvino", "fp32"),
    (INT8, "onnxruntime", None),
    (INT8, "openvino", None),
    (FP16, "onnxruntime", None),
    (INT8_TENSORRT, "onnxruntime", None),
    (PLAN_FP16, PLAN_ENGINE, None),
    (PLAN_INT8, PLAN_ENGINE, None),
)
# what each int8 engine must be faster than, in the same runtime: what one would ship instead
RIVALS = {INT8: FP32, PLAN_INT8: PLAN_FP16}


def verify_artifacts(folder: Path, samples: SegmentationDataset, threads: int | None = None) -> tuple[str, ...]:
    """Verify every engine of a folder that runs here against PyTorch, print a line each, and write the manifests.

    Plans also carry the verdicts of the graphs they were built from. Returns the faults found, one line each; an engine
    that cannot run here is named in print and is no fault, but that none could is one.
    """
    manifests(folder)
    faults: list[str] = []
    verified = 0
    known: dict[tuple[int, int] | None, Judged] = {}  # what PyTorch says, by size
    with open_engine(folder / CHECKPOINT, "eager", threads=threads) as reference:
        for name, engine, precision in VERIFIED:
            if not (folder / name).is_file():
                continue
            try:
                with ExitStack() as stack:
                    session = stack.enter_context(open_as_shipped(folder / name, engine, threads, precision))
                    size, rival = session.spec.usual_size, _rival(folder, name, session, threads, stack)
                    if size not in known:
                        known[size] = judge(reference, at_size_of(session, samples))
                    verdict = verify(session, reference, samples, rival=rival, expected=known[size])
            except Unavailable as error:
                print(f"  {name:20} not verified here: {error}")
                continue
            except SegmenterError as error:
                print(f"  {name:20} FAILED: {error}")
                faults.append(f"{name} in {engine}: {' '.join(str(error).split())}")
                continue
            verified += 1
            record(folder / name, verdict)
            print(f"  {name:20} {verdict.line()}")
            faults += [f"{name} in {verdict.engine}: {fault}" for fault in verdict.faults]
    for name in PLANS:
        if (folder / name).is_file() and (folder / MADE_OF[name]).is_file():
            carry(folder / MADE_OF[name], folder / name)
    if not verified and not faults:
        faults.append("no engine could be verified; install one: pip install 'segmenter-trt[engines]'")
    return tuple(faults)


def _rival(folder: Path, name: str, session: Session, threads: int | None, stack: ExitStack) -> Session | None:
    """The engine an int8 one is timed against, closed with `stack`; None where there is none."""
    rival = folder / RIVALS.get(name, "")
    if not rival.is_file():
        return None
    return stack.enter_context(open_engine(rival, session.engine, threads=threads, precision=floats_of(session)))


@dataclass(frozen=True)
class Options:
    """Take a checkpoint through every engine: export, quantise, build, verify; exits with 2 where one fails."""

    checkpoint: Annotated[Path, tyro.conf.Positional, ANY_CHECKPOINT]
    out: Path
    """Engine folder to fill."""
    dataset: Annotated[str, DATASET]
    """Dataset of the calibration images (training split) and the verification images (validation split)."""
    data: Path | None = None
    """The dataset's folder; shapes needs none."""
    height: int | None = None
    """Image height in pixels; the training height when left out."""
    width: int | None = None
    """Image width in pixels."""
    images: int = 32
    """Number of calibration images."""
    method: Method = "minmax"
    """How activation ranges are found; `segmenter quantize --help` says how each does."""
    verify_images: int = IMAGES
    """Number of verification images, spread evenly over the split; 0 for all. Of few, a drop of mIoU is chance."""
    threads: int | None = None
    """CPU threads; every core this process may use when left out."""

    def __post_init__(self) -> None:
        require_least(self, threads=1)


def pipeline(options: Options) -> int:
    model = load_model(options.checkpoint)
    train = open_dataset(options.dataset, options.data, "train")
    val = Subset(open_dataset(options.dataset, options.data, "val"), options.verify_images)
    require_same_classes(model.config.classes, val, options.checkpoint)
    height, width = _size(options, model.config)
    # read whole before anything of an older run is removed: a picture that is broken costs no engine
    images = list(calibration_images(train, options.images, (height, width)))
    clear(options.out)  # before the checkpoint: stopped here, the folder holds no engine of another network
    save_model(model, options.out / CHECKPOINT)
    absent = make_artifacts(options.out, height, width, images, method=options.method, threads=options.threads)
    for name, absence in absent.items():
        print(f"  {name:20} not made: {absence.reason}")
    faults = [f"{name} not made: {absence.reason}" for name, absence in absent.items() if absence.fault]
    if len(absent) < len(ARTIFACTS):
        print(f"verifying on {len(val)} images")
        faults += verify_artifacts(options.out, val, options.threads)
    if faults:
        raise VerificationError(f"{options.out}: {'; '.join(faults)}")
    return 0


def _size(options: Options, config: SegmenterConfig) -> tuple[int, int]:
    """(H, W) of the images: what was asked for, else the training size.

    Raises ConfigError for a size without a whole patch; other sizes are padded inside the graphs.
    """
    P, trained = config.encoder.patch_size, config.encoder.image_size
    height = trained[0] if options.height is None else options.height
    width = trained[1] if options.width is None else options.width
    if min(height, width) < P:
        raise ConfigError(
            f"--height {height} --width {width}: smaller than one {P} pixel patch of {options.checkpoint}; enlarge it,"
            f" or leave both out for {trained[0]}x{trained[1]}"
        )
    return height, width


def main(argv: Sequence[str] | None = None) -> int:
    return run(pipeline, Options, argv)


if __name__ == "__main__":
    sys.exit(main())
