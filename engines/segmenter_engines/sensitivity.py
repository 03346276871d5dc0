"""What each linear layer costs: mIoU, and the SQNR of the class masks, when it alone is quantised."""

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.table import Table

from segmenter.cli import run
from segmenter.cpu import cpu_flags
from segmenter.datasets import open_dataset
from segmenter.datasets.option import DATASET
from segmenter.errors import EngineError
from segmenter.files import atomic_path, require_writable
from segmenter.metrics import signed
from segmenter_engines.judge import Judge, judge_samples
from segmenter_engines.layer_costs import costs, groups
from segmenter_engines.manifest import command_line, derived_from, machine_name, read_manifest, versions_of
from segmenter_engines.qdq import layer_name
from segmenter_engines.recipe import Calibrated, Recipe, calibrated, calibration_images, calibration_places


def report(ready: Calibrated, judge: Judge) -> dict[str, Any]:
    """Costs of every layer and every group as JSON takes them, with what they were measured on."""
    layers = costs(ready, judge, {layer_name(weight): [weight] for weight in ready.layers})
    together = costs(ready, judge, groups(ready.layers))
    return {
        "schema": "segmenter-sensitivity/1",
        "created": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "command": command_line(),
        "machine": {"name": machine_name(), "cpu_flags": cpu_flags(), "threads": judge.threads},
        "versions": versions_of("onnx", "onnxruntime"),
        "model": ready.base.model,
        "source": derived_from(ready.base),
        "recipe": asdict(ready.recipe) | {"target": ready.target, "base_precision": ready.base.precision},
        "calibration_images": ready.images,
        "images": len(judge),
        "split": judge.split,
        "reference_miou": judge.reference,
        "layers": [cost.to_dict(judge.reference) for cost in layers],
        "groups": [cost.to_dict(judge.reference) for cost in together],
    }


def table(found: Mapping[str, Any]) -> Table:
    """A report for printing: the groups, then the layers, the most sensitive first."""
    recipe = found["recipe"]
    result = Table(
        title=f"{found['model']}: {recipe['precision']} for {recipe['target']}, {found['images']} images"
        f" of {found['split']}, mIoU {found['reference_miou']:.4f} in floating point"
    )
    result.add_column("quantised alone")
    for heading in ("SQNR dB", "mIoU", "drop"):
        result.add_column(heading, justify="right")
    for kind in ("groups", "layers"):
        for row in sorted(found[kind], key=lambda row: math.inf if row["sqnr_db"] is None else row["sqnr_db"]):
            sqnr = "exact" if row["sqnr_db"] is None else f"{row['sqnr_db']:.1f}"
            result.add_row(row["name"], sqnr, f"{row['miou']:.4f}", signed(row["drop"]))
        result.add_section()
    return result


@dataclass(frozen=True)
class Options:
    """Measure what each linear layer of an exported graph costs when it alone is quantised."""

    source: Annotated[Path, tyro.conf.Positional]
    """The exported .onnx, as `segmenter quantize` takes it."""
    dataset: Annotated[str, DATASET]
    """Dataset of the calibration images (training split) and the labelled ones."""
    checkpoint: Path | None = None
    """The checkpoint the graph was made of: measure against it in PyTorch, not against the graph."""
    data: Path | None = None
    """The dataset's folder; shapes needs none."""
    images: int = 32
    """Number of calibration images."""
    seed: int | None = None
    """Choose the calibration images at random by this seed; spread evenly over the split when left out."""
    recipe: Annotated[Recipe, tyro.conf.arg(name="")] = field(default_factory=Recipe)
    judge_split: str = "train"
    """Split of the labelled images; those that calibrate are left out.
    On val, where `verify` judges, its verdict on images that layers were chosen by would flatter."""
    judge_images: int = 8
    """Number of those, spread evenly over the split; 0 for all. Each costs a run for every layer and group."""
    threads: int | None = None
    """CPU threads; every core this process may use when left out."""
    out: Path | None = None
    """JSON file to write the report to."""


def measure(options: Options) -> int:
    if options.out is not None:
        if options.out.suffix != ".json":
            raise EngineError(f"--out {options.out}: is written as JSON; pass a name that ends in .json")
        require_writable(options.out)
    base = read_manifest(options.source)
    train = open_dataset(options.dataset, options.data, "train")
    labelled = open_dataset(options.dataset, options.data, options.judge_split)
    taken = calibration_places(len(train), options.images, options.seed) if options.judge_split == "train" else ()
    chosen = judge_samples(labelled, options.judge_split, options.judge_images, taken)
    images = calibration_images(train, options.images, base.size, options.seed)
    ready = calibrated(options.source, images, options.recipe, options.threads)
    judge = Judge(
        options.source,
        base,
        chosen,
        split=options.judge_split,
        checkpoint=options.checkpoint,
        threads=options.threads,
    )
    found = report(ready, judge)
    Console().print(table(found))
    if options.out is not None:
        with atomic_path(options.out) as temporary:
            temporary.write_text(json.dumps(found, indent=1) + "\n")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    return run(measure, Options, argv)


if __name__ == "__main__":
    sys.exit(main())
