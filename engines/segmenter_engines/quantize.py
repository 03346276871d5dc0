"""ONNX to Q/DQ ONNX: the linear layers in int8 or fp8, everything else as it was.

What is quantised is a choice that was measured: attention products and the tail (class projections, mask scores, last
norms) stay in floating point, because quantising them costs accuracy and, in TensorRT, the fused attention.
`cpu` targets (ONNX Runtime, OpenVINO) get uint8 activations with a zero point; TensorRT takes symmetric int8, or fp8.
"""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from segmenter.cli import run
from segmenter.datasets import open_dataset
from segmenter.datasets.option import DATASET
from segmenter.errors import EngineError
from segmenter.files import sha256
from segmenter_engines.calibrate import Method
from segmenter_engines.formats import Precision, Target
from segmenter_engines.graph_file import write_graph
from segmenter_engines.judge import Judge, judge_samples
from segmenter_engines.limits import require_drop
from segmenter_engines.manifest import (
    Manifest,
    command_line,
    derived_from,
    machine_name,
    read_manifest,
    require_out,
    versions_of,
    vouched,
)
from segmenter_engines.mixed import Search, describe, search
from segmenter_engines.recipe import (
    SMOOTHING,
    Calibrated,
    Recipe,
    calibrated,
    calibrated_like,
    calibration_images,
    calibration_places,
    require_nothing_asked,
)


def quantize(
    source: Path | str,
    out: Path | str,
    images: Iterable[np.ndarray] = (),
    *,
    precision: Precision = "int8",
    target: Target | None = None,
    method: Method = "minmax",
    percentile: float = 99.99,
    smoothing: float = SMOOTHING,
    exclude: Sequence[str] = (),
    scales_of: Path | str | None = None,
    judge: Judge | None = None,
    max_drop: float | None = None,
    threads: int | None = None,
) -> Manifest:
    """Write the int8 or fp8 version of an exported graph, with its manifest beside it.

    images: calibration images, uint8 RGB [H, W, 3] of the graph's size. Weights get a scale a channel, activations one
    a tensor (see the module). `Recipe` explains precision to exclude; `tensorrt` wants an fp16 or bf16 graph, `cpu` an
    fp32 one. scales_of: a quantised graph of the same network whose activation scales and choice of layers are taken
    instead of calibrating. judge, max_drop: keep the most sensitive layers in floating point until the mIoU on the
    judge's images, less one standard error, is at most that much (0 to 1) below the original's.
    Raises EngineError for an `out` that is `source` or no .onnx, a graph that fits not the target, has no manifest or
    no linear layers, a word of `exclude` that no layer has, another option out of range, one that `scales_of` settles,
    or without images.
    """
    source, out = Path(source), Path(out)
    require_out(out, ".onnx", source)
    if max_drop is not None:
        require_drop(max_drop)
        if judge is None:
            raise EngineError(f"max_drop {max_drop}: needs labelled images to judge on; pass a judge")
    recipe = Recipe(precision, target, method, percentile, smoothing, tuple(exclude))
    if scales_of is not None:
        require_nothing_asked(recipe)
        ready = calibrated_like(source, Path(scales_of))
    else:
        ready = calibrated(source, images, recipe, threads)
    found = search(ready, judge, max_drop) if judge is not None and max_drop is not None else None
    kept = found.kept if found is not None else ()
    return _write(ready, out, kept, _details(ready, kept, found, Path(scales_of) if scales_of else None))


def _write(ready: Calibrated, out: Path, kept: Sequence[str], details: dict[str, Any]) -> Manifest:
    manifest = replace(
        ready.base,
        artifact=out.name,
        precision=ready.recipe.precision,
        engine="any" if ready.target == "cpu" else "tensorrt",
        sha256="",
        source=derived_from(ready.base),
        command=command_line(),
        versions=versions_of("onnx", "onnxruntime"),
        machine=machine_name(),
        verification=None,
        details=details,
    )
    return write_graph(ready.quantised(kept), manifest, out)


def _details(ready: Calibrated, kept: Sequence[str], found: Search | None, scales_of: Path | None) -> dict[str, Any]:
    recipe = ready.recipe
    calibration: dict[str, Any] = {"images": ready.images, "method": recipe.method}
    if recipe.method == "percentile":
        calibration["percentile"] = recipe.percentile
    if scales_of is not None:
        calibration = {"scales_of": vouched(sha256(scales_of))}
    details = {
        "target": ready.target,
        "base_precision": ready.base.precision,
        "layers": len(ready.layers) - len(kept),
        "excluded": list(recipe.exclude),
        "smoothing": recipe.smoothing,
        "calibration": calibration,
    }
    return details if found is None else details | {"mixed": found.to_dict()}


@dataclass(frozen=True)
class Options:
    """Quantise an exported graph to int8 or fp8 with calibration images."""

    source: Annotated[Path, tyro.conf.Positional]
    """The exported .onnx: fp32 for --target cpu, fp16 or bf16 for --target tensorrt."""
    out: Path
    """The quantised .onnx to write; its manifest goes beside it."""
    dataset: Annotated[str | None, DATASET] = None
    """Dataset of the calibration images; not needed with --scales-of."""
    data: Path | None = None
    """The dataset's folder; shapes needs none."""
    split: str = "train"
    """Split the calibration images come from."""
    images: int = 32
    """Number of calibration images."""
    seed: int | None = None
    """Choose the calibration images at random by this seed; spread evenly over the split when left out."""
    recipe: Annotated[Recipe, tyro.conf.arg(name="")] = field(default_factory=Recipe)
    scales_of: Path | None = None
    """Instead of calibrating, take activation scales and the choice of layers from a quantised .onnx of this network.
    This is for one that `segmenter qat` trained."""
    max_drop: float | None = None
    """Keep the most sensitive layers in floating point until at most so much mIoU (0 to 1) is lost, such as 0.005.
    One standard error of the drop is added to it: no version is to pass by its luck with few images."""
    judge_split: str = "train"
    """Split of the labelled images --max-drop is judged on; those that calibrate are left out.
    On val, where `verify` judges, its verdict on images that the layers were chosen by would flatter.
    That a network knows its training images matters little: both that are compared are the same network.
    After `segmenter qat`, which learns the rounding on them, val tells more."""
    judge_images: int = 32
    """Number of those, 2 or more, spread evenly over the split; 0 for all. Of more, the standard error is smaller."""
    checkpoint: Path | None = None
    """The checkpoint the graph was made of: judge against it in PyTorch, not against the graph."""
    threads: int | None = None
    """CPU threads; every core this process may use when left out."""


def quantize_graph(options: Options) -> int:
    base = read_manifest(options.source)
    images: Iterable[np.ndarray] = ()
    if options.max_drop is not None:
        require_drop(options.max_drop)
    elif options.checkpoint is not None:
        raise EngineError(f"--checkpoint {options.checkpoint}: is what --max-drop is judged against; pass both")
    if options.dataset is None and (options.scales_of is None or options.max_drop is not None):
        raise EngineError("no images; name a dataset with --dataset, or a quantised graph with --scales-of")
    taken: Sequence[int] = ()
    if options.scales_of is None:
        samples = open_dataset(str(options.dataset), options.data, options.split)
        images = calibration_images(samples, options.images, base.size, options.seed)
        if options.judge_split == options.split:
            taken = calibration_places(len(samples), options.images, options.seed)
    judge = None
    if options.max_drop is not None:
        labelled = open_dataset(str(options.dataset), options.data, options.judge_split)
        judge = Judge(
            options.source,
            base,
            judge_samples(labelled, options.judge_split, options.judge_images, taken),
            split=options.judge_split,
            checkpoint=options.checkpoint,
            threads=options.threads,
        )
    manifest = quantize(
        options.source,
        options.out,
        images,
        **asdict(options.recipe),
        scales_of=options.scales_of,
        judge=judge,
        max_drop=options.max_drop,
        threads=options.threads,
    )
    print(
        f"{options.out}: {manifest.details['layers']} linear layers in {manifest.precision},"
        f" {options.out.stat().st_size / 1e6:.1f} MB"
    )
    if "mixed" in manifest.details:
        print(describe(manifest.details["mixed"]))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    return run(quantize_graph, Options, argv)


if __name__ == "__main__":
    sys.exit(main())
