"""mIoU of every engine over a dataset, how many pixels agree with PyTorch, and a few pictures to look at."""

import sys
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from segmenter.cli import run as run_command
from segmenter.cores import usable_cores
from segmenter.datasets import SegmentationDataset, Subset, open_dataset
from segmenter.datasets.fitted import fit
from segmenter.datasets.option import DATASET
from segmenter.errors import ConfigError, EngineError, VerificationError
from segmenter.evaluation import evaluate_labels, number, require_same_classes, summary
from segmenter.images import resize_labels
from segmenter.option import require, require_least
from segmenter_bench.engines import REFERENCE, RIVALS, RUNGS, TABLE, TRUTH, choose, missing
from segmenter_bench.examples import label_map, photo
from segmenter_bench.models import open_folder
from segmenter_bench.race import Contestant, limit_of, opened, say
from segmenter_bench.runs import (
    command_of,
    new_run,
    print_rest,
    print_styled,
    require_writable,
    table_of,
    wide_console,
    write_run,
)
from segmenter_bench.sections import drop_cell
from segmenter_bench.sheets import DASH
from segmenter_engines.limits import LIMITS

RIVALS_NOTE = (
    f"{', '.join(name for name in (*RIVALS, *RUNGS) if name != REFERENCE)}: the labels of another engine by another"
    " route, so 'all' leaves them out here; the throughput run checks them."
)


@dataclass(frozen=True)
class Options:
    """mIoU, pixel accuracy and agreement with PyTorch of every engine on a dataset."""

    folder: Path
    """Engine folder of a trained checkpoint (checkpoint/, model.*.onnx, model.*.plan)."""
    engine: tuple[str, ...] = ("all",)
    """Engines by name or family (openvino, openvino-int8, ...), or all."""
    dataset: Annotated[str, DATASET] = "shapes"
    """Dataset to judge on."""
    data: Path | None = None
    """The dataset's folder; shapes needs none."""
    split: str = "val"
    """train or val."""
    limit: int = 0
    """At most so many images, spread evenly over the split; 0 for all."""
    examples: int = 3
    """Pictures kept with every engine's labels, for the report."""
    threads: int | None = None
    """CPU threads of every engine; all usable cores when left out."""
    require_miou: float | None = None
    """mIoU (0 to 1) that every engine must reach; exits with 2, naming those below it."""
    out: Path = Path("runs/bench")
    """Folder for the JSON of the run."""

    def __post_init__(self) -> None:
        share = self.require_miou
        require(share is None or 0.0 <= share <= 1.0, "--require-miou", share, "0 to 1; 62 % is 0.62")
        for row in TABLE:
            if not row.compared and row.name in self.engine:
                raise ConfigError(
                    f"--engine {row.name}: another network, of random weights: it has no mIoU; leave it out"
                )
        require_least(self, examples=0, threads=1)


class _Judged:
    """An engine as a function of one picture, remembering what the report needs.

    size: (H, W) every engine reads; pictures of other sizes are resized to it and their labels back (nearest), for
    PyTorch too, so that engines are compared on the same input.
    """

    def __init__(self, one: Contestant, size: tuple[int, int], truth: "_Judged | None", keep: Sequence[int]) -> None:
        self.one, self.size, self.truth, self.keep = one, size, truth, keep
        self.packed: list[bytes] = []  # the truth's labels, compressed: every other engine needs them once
        self.kept: dict[int, np.ndarray] = {}
        self.images = self.same = self.total = 0

    def __call__(self, image: np.ndarray) -> np.ndarray:
        labels = resize_labels(self.one.worker.labels(fit(image, self.size)[None])[0], image.shape[0], image.shape[1])
        if self.truth is None:
            self.packed.append(zlib.compress(labels.tobytes(), 1))
            expected = labels
        else:
            packed = zlib.decompress(self.truth.packed[self.images])
            expected = np.frombuffer(packed, labels.dtype).reshape(labels.shape)
        if self.images in self.keep:
            self.kept[self.images] = labels
        self.images += 1
        self.same += int((labels == expected).sum())
        self.total += labels.size
        return labels


def miou(
    options: Options, command: str = "miou", keep: Callable[[dict[str, Any]], object] = lambda run: None
) -> dict[str, Any]:
    """Judge and return the run, see `segmenter_bench.runs`.

    keep: called with the run as far as it is after each engine.
    Raises ConfigError, CheckpointError or DataError for what the options name, EngineError when PyTorch itself fails.
    """
    subject, threads = open_folder(options.folder), options.threads or usable_cores()
    dataset = Subset(open_dataset(options.dataset, options.data, options.split), options.limit)
    require_same_classes(subject.config.classes, dataset, options.folder)
    apart = {*RIVALS, *RUNGS} - {REFERENCE, *options.engine}
    chosen = [row for row in choose(options.engine) if row.name not in apart]
    chosen = [row for row in chosen if row.compared]
    settings = {
        "threads": threads,
        "dataset": options.dataset,
        "split": options.split,
        "images": len(dataset),
        "truth": TRUTH,
    }
    run = new_run("miou", command, subject.facts(), settings)
    run["notes"] = [RIVALS_NOTE] if "all" in options.engine else []
    pictured = [
        index * len(dataset) // max(options.examples, 1) for index in range(min(options.examples, len(dataset)))
    ]
    with opened(chosen, choose((TRUTH,)), subject.folder, threads) as (contestants, unavailable):
        run["unavailable"] = unavailable
        # PyTorch first: everyone else is compared with it
        order = sorted(contestants, key=lambda one: one.entry.name != TRUTH)
        if not order or order[0].entry.name != TRUTH:
            raise EngineError(f"engine {TRUTH} cannot run, and without its labels nothing can be compared")
        truth = _Judged(order[0], subject.size, None, pictured)
        rows: dict[str, dict[str, Any]] = {}
        judged = {TRUTH: truth}

        def so_far() -> None:
            listed = [one.entry.name for one in contestants if one.listed and one.entry.name in rows]
            shown = {name: judged[name] for name in listed if rows[name]["miou"] is not None}
            run["rows"] = [rows[name] for name in listed]
            run["examples"] = [_example(dataset, index, shown, truth) for index in pictured]
            keep(run)

        for one in order:
            name = one.entry.name
            judged.setdefault(name, _Judged(one, subject.size, truth, pictured))
            say(f"{name}: {len(dataset)} images of {options.dataset} {options.split}")
            rows[name] = _row(judged[name], dataset, rows.get(TRUTH), subject.trained)
            if rows[TRUTH]["status"] == "failed":
                raise EngineError(f"{TRUTH}, which every engine is compared with, failed: {rows[TRUTH]['reason']}")
            so_far()
    return run


def _row(judged: _Judged, dataset: SegmentationDataset, truth: dict[str, Any] | None, trained: bool) -> dict[str, Any]:
    precision = judged.one.precision
    limit, drop_limit = limit_of(precision, trained), LIMITS[precision].miou_drop
    row: dict[str, Any] = {
        "engine": judged.one.entry.name,
        "sha256": judged.one.sha256,
        "precision": precision,
        "status": "ok",
        "reason": None,
        "miou": None,
        "agreement": None,
        "agreement_limit": limit,
        "drop": None,
        "drop_limit": drop_limit,
    }
    try:
        matrix = evaluate_labels(judged, dataset)
    except EngineError as error:
        return row | {"status": "failed", "reason": str(error)}
    measures = summary(matrix, dataset.classes)
    row |= measures | {"miou": number(matrix.miou_in_truth), "iou": list(measures["iou"].values())}
    row["agreement"] = judged.same / max(judged.total, 1)
    if truth is None or truth["miou"] is None or row["miou"] is None:
        return row
    row["drop"] = truth["miou"] - row["miou"]
    wrong = []
    if limit is not None and row["agreement"] < limit:
        wrong.append(f"{row['agreement']:.2%} of pixels agree with PyTorch, wanted {limit:.1%}")
    if row["drop"] > drop_limit:
        wrong.append(f"mIoU {row['drop']:.4f} below PyTorch's, wanted at most {drop_limit}")
    return row | {"status": "failed", "reason": f"{precision}: {'; '.join(wrong)}"} if wrong else row


def _example(dataset: SegmentationDataset, index: int, judged: dict[str, _Judged], truth: _Judged) -> dict[str, Any]:
    sample = dataset[index]
    agree = {name: float((one.kept[index] == truth.kept[index]).mean()) for name, one in judged.items()}
    return {
        "name": sample.name,
        "photo": photo(sample.image),
        "truth": label_map(sample.labels, dataset.palette),
        "labels": {name: label_map(one.kept[index], dataset.palette) for name, one in judged.items()},
        "agreement": agree,
    }


def show(run: dict[str, Any]) -> None:
    """Print a run as a table on stdout."""
    console, model, settings = wide_console(), run["model"], run["settings"]
    on = f"{settings['dataset']} {settings['split']}, {settings['images']} images"
    print_styled(console, model["name"], "bold", f" {model['height']}x{model['width']} on {on}")
    table = table_of(("engine",), ("mIoU", "vs PyTorch", "pixel acc.", "agree %"))
    for row in run["rows"]:
        cells = [_cell(row.get("miou"), "{:.4f}"), drop_cell(row.get("drop"))]
        cells.append(_cell(row.get("pixel_accuracy"), "{:.4f}"))
        cells.append(_cell(row["agreement"], "{:.2%}").rstrip("%"))
        table.add_row(row["engine"], *cells, style="red" if row["status"] == "failed" else None)
    console.print(table)
    print_rest(console, run, lambda row: str(row["engine"]))


def _cell(value: float | None, form: str) -> str:
    return DASH if value is None else form.format(value)


def bench(options: Options) -> int:
    require_writable(options.out)
    # written as it grows: a run that is cut keeps the engines it has
    run = miou(options, command_of("segmenter bench-miou", None), lambda run: write_run(run, options.out))
    show(run)
    print(write_run(run, options.out))
    if options.require_miou is not None:
        _require(run["rows"], options.require_miou)
    absent = missing(options.engine, [one["engine"] for one in run["unavailable"]])
    return 1 if absent or any(row["status"] == "failed" for row in run["rows"]) else 0


def _require(rows: Sequence[dict[str, Any]], wanted: float) -> None:
    """Raises VerificationError when an engine's mIoU is below `wanted` or unknown, or there is no engine."""
    below = [
        f"{row['engine']} has {_cell(row['miou'], '{:.4f}')}"
        for row in rows
        # written so that a NaN fails
        if row["miou"] is None or not row["miou"] >= wanted
    ]
    if below or not rows:
        raise VerificationError(
            f"mIoU below the required {wanted}: {'; '.join(below) or 'no engine was judged'}; train longer, or verify"
            " the engine that lost it"
        )


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(bench, Options, argv)


if __name__ == "__main__":
    sys.exit(main())
