"""Images per second of every engine: uint8 images in, uint8 labels out, checked in the same run.

Each engine lives in a process of its own and they measure in turns, so that memory is each engine's own and ratios
survive a machine whose speed drifts.
"""

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from rich.table import Table

from segmenter.cli import run as run_command
from segmenter.config import variant
from segmenter.cores import usable_cores
from segmenter.datasets import Subset, open_dataset
from segmenter.datasets.fitted import fit
from segmenter.datasets.option import DATASET
from segmenter.errors import ConfigError
from segmenter.option import require, require_least
from segmenter_bench.engines import REFERENCE, TRUTH, Entry, choose, misfit, missing
from segmenter_bench.machine import BUSY, busiest
from segmenter_bench.models import Subject, open_folder, pictures, random_folder
from segmenter_bench.placement import gauge
from segmenter_bench.race import Pace, opened, race
from segmenter_bench.race_notes import notes_of
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
from segmenter_bench.sections import counted_rounds, speedup
from segmenter_bench.sheets import number, quantity
from segmenter_bench.timing import IN_PROCESSES, shown
from segmenter_engines.folder import CHECKPOINT

TIMED = {
    "labels": "uint8 RGB images [B, H, W, 3] in host memory to uint8 labels [B, H, W] in host memory:"
    " normalise, network, upsample, argmax",
    "logits": "uint8 RGB images [B, H, W, 3] in host memory to labels [B, H, W] in host memory, the long way:"
    " normalise, network, float32 logits [B, K, H, W] at image resolution, NumPy's argmax of them",
    "network": "normalised float32 images [B, 3, H, W] in host memory to class masks [B, K, h, w] on the patch grid",
}


@dataclass(frozen=True)
class Options:
    """Images per second, latency percentiles and memory of engines, with a correctness check in the same run.

    MB is the most memory an engine's process held, +MB how much of it is beyond what it held once opened.
    """

    folder: Path | None = None
    """Engine folder of a trained checkpoint (checkpoint/, model.*.onnx, model.*.plan)."""
    variant: str | None = None
    """Instead of a folder: a variant of the paper with seeded random weights, such as Seg-Ti-Mask/16."""
    engine: tuple[str, ...] = ("all",)
    """Engines by name or family (openvino, openvino-int8, ...), or all."""
    batch: tuple[int, ...] = (1,)
    """Batch sizes."""
    height: int | None = None
    """With --variant: image height in pixels; the variant's own when left out. Engines of a folder have their size."""
    width: int | None = None
    """With --variant: image width in pixels."""
    classes: int = 150
    """With --variant: number of classes."""
    threads: int | None = None
    """CPU threads of every engine; all usable cores when left out."""
    network: bool = False
    """Time the network alone as well: normalised images to class masks on the patch grid."""
    logits: bool = False
    """Time the way through logits as well: images to logits at image resolution to their argmax; for its memory."""
    dataset: Annotated[str | None, DATASET] = None
    """Dataset of the images; made-up scenes when left out."""
    data: Path | None = None
    """The dataset's folder; shapes needs none."""
    split: str = "val"
    """train or val."""
    images: int = 4
    """Images of the correctness check; the timed batches are made of them too."""
    rounds: int = 6
    """Turns each engine gets."""
    burst_seconds: float = 1.0
    """Length of a turn."""
    min_calls: int = 2
    """Calls in a turn, however long they take."""
    warmup: int = 2
    """Untimed calls at each batch size, besides one before every turn."""
    out: Path = Path("runs/bench")
    """Folder for the JSON of the run."""
    cache: Path = Path("runs/bench/models")
    """Folder where engine folders of random weights are made and found again."""

    def __post_init__(self) -> None:
        if (self.folder is None) == (self.variant is None):
            raise ConfigError("pass either --folder ENGINE_FOLDER or --variant NAME, such as --variant Seg-Ti-Mask/16")
        given = [name for name in ("height", "width") if getattr(self, name) is not None]
        if self.folder is not None and given:
            raise ConfigError(
                f"--{given[0]} {getattr(self, given[0])}: the engines of {self.folder} take images of one size, set"
                f" when they were exported; leave it out, or fill a folder of that size with `segmenter pipeline`"
            )
        require_least(self, rounds=1, min_calls=1, images=1, classes=1, threads=1, warmup=0)
        seconds = self.burst_seconds
        require(0.0 <= seconds < math.inf, "--burst-seconds", seconds, "at least 0, and a turn that ends")
        require(min(self.batch, default=0) >= 1, "--batch", " ".join(map(str, self.batch)), "sizes of at least 1")


def throughput(
    options: Options, command: str = "throughput", keep: Callable[[dict[str, Any]], object] = lambda run: None
) -> dict[str, Any]:
    """Measure and return the run, see `segmenter_bench.runs`; nothing is written but engine folders of random weights.

    keep: called with the run as far as it is after each round.
    Raises ConfigError, CheckpointError or DataError for what the options name, EngineError when PyTorch itself fails.
    """
    chosen, threads = choose(options.engine), options.threads or usable_cores()
    subject = _subject(options, any(entry.artifact != CHECKPOINT for entry in chosen))
    _require_batches(options.batch, chosen, subject)
    images = _images(options, subject)
    settings = {
        "threads": threads,
        "images": len(images),
        "images_from": options.dataset or "made-up scenes",
        "reference": REFERENCE,
        "truth": TRUTH,
        **asdict(_pace(options)),
    }
    run = new_run("throughput", command, subject.facts(), settings)
    # logits last: their memory is large, and not all of it is given back
    regions = ("labels", *(("network",) if options.network else ()), *(("logits",) if options.logits else ()))
    run["timed"] = {region: TIMED[region] for region in regions}
    run["how"] = IN_PROCESSES
    run["notes"] = notes_of([], subject.trained)
    misfits = {entry.name: reason for entry in chosen if (reason := misfit(entry, subject.size))}
    fitting = [entry for entry in chosen if entry.name not in misfits]
    with opened(fitting, choose((REFERENCE, TRUTH)), subject.folder, threads) as (contestants, unavailable):
        run["unavailable"] = unavailable + [{"engine": name, "reason": reason} for name, reason in misfits.items()]

        def so_far(rows: list[dict[str, Any]]) -> None:
            run["rows"], run["notes"] = rows, notes_of(rows, subject.trained)
            keep(run)

        on_cpu = any(one.device == "cpu" for one in contestants)
        race(
            *(contestants, images, options.batch, regions, _pace(options), subject.trained, so_far),
            gauge=gauge(threads) if on_cpu else None,
        )
    return run


def _require_batches(batches: Sequence[int], chosen: Sequence[Entry], subject: Subject) -> None:
    """Raises ConfigError, naming the engine that takes most, for a batch no exported or built engine takes.

    One that only some take is theirs to refuse, in their rows.
    """
    limits = {row.name: subject.max_batch[row.artifact] for row in chosen if row.artifact in subject.max_batch}
    if limits and max(batches) > max(limits.values()):
        name = max(limits, key=lambda name: limits[name])
        raise ConfigError(
            f"--batch {max(batches)}: {name} takes at most {limits[name]}, and no exported engine asked for takes more;"
            " pass smaller batches"
        )


def show(run: dict[str, Any]) -> None:
    """Print a run as tables on stdout."""
    console = wide_console()
    model, settings = run["model"], run["settings"]
    weights = "trained" if model["trained"] else "random"
    print_styled(
        *(console, model["name"], "bold"),
        f" {model['height']}x{model['width']}, {len(model['classes'])} classes, {weights} weights;"
        f" {run['machine']['cpu']['model']}, {settings['threads']} CPU threads",
    )
    for region, meaning in run["timed"].items():
        console.print(f"timed: {meaning}", style="dim", soft_wrap=True)
        rows = [row for row in run["rows"] if row["region"] == region]
        console.print(_table(rows, settings["reference"], settings["rounds"]))
    print_rest(console, run, lambda row: f"{row['engine']}, batch {row['batch']}")


def _table(rows: Sequence[dict[str, Any]], reference: str, planned: int) -> Table:
    # CPU time counts threads that only wait, so it is worth a look only where wall time is not to be trusted
    by_cpu = busiest(rows) > BUSY
    ratios = [f"x {reference}", *(["x by CPU"] if by_cpu else [])]
    references = {row["batch"]: row for row in rows if row["engine"] == reference}
    table = table_of(("engine",), ("batch", "img/s", "p50 ms", "p90", "p99", *ratios, "MB", "+MB", "agree %"))
    for row in rows:
        timing, share = row["timing"], row["agreement"]
        cells = ["-"] * (6 + len(ratios))
        if timing is not None:
            cells = [quantity(shown(timing, key), 4) for key in ("images_per_s", "ms_p50", "ms_p90", "ms_p99")]
            counted = counted_rounds(row, planned)
            cells.append(number(speedup(row, references.get(row["batch"]), counted), ".2f"))
            cells += [number(row["ratio"] and row["ratio"]["cpu"], ".2f")] if by_cpu else []
            extra = row["extra_memory_bytes"]
            cells += [f"{row['memory_bytes'] / 1e6:.0f}", number(None if extra is None else extra / 1e6, ".0f")]
        unjudged = "" if row["agreement_limit"] is not None else " *"
        cells.append("-" if share is None else f"{100 * share:.2f}{unjudged}")
        table.add_row(row["engine"], str(row["batch"]), *cells, style="red" if row["status"] == "failed" else None)
    return table


def _subject(options: Options, artifacts: bool) -> Subject:
    if options.folder is not None:
        return open_folder(options.folder)
    assert options.variant is not None
    side = variant(options.variant).encoder.image_size
    return random_folder(
        *(options.variant, options.height or side[0], options.width or side[1], options.classes, options.cache),
        artifacts=artifacts,
    )


def _images(options: Options, subject: Subject) -> list[np.ndarray]:
    if options.dataset is None:
        return pictures(options.images, subject.size)
    samples = Subset(open_dataset(options.dataset, options.data, options.split), options.images)
    return [fit(samples[index].image, subject.size) for index in range(len(samples))]


def _pace(options: Options) -> Pace:
    return Pace(options.rounds, options.burst_seconds, options.min_calls, options.warmup)


def bench(options: Options) -> int:
    require_writable(options.out)
    # written as it grows: a run that is cut keeps the rounds it has
    command = command_of("segmenter bench-throughput", None)
    run = throughput(options, command, lambda run: write_run(run, options.out))
    show(run)
    print(write_run(run, options.out))
    absent = missing(options.engine, [one["engine"] for one in run["unavailable"]])
    return 1 if absent or any(row["status"] == "failed" for row in run["rows"]) else 0


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(bench, Options, argv)


if __name__ == "__main__":
    sys.exit(main())
