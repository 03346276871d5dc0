"""Where a network's time goes: each stage measured, beside the least time its work and its traffic allow here.

Stages are named ranges of PyTorch's profiler around the ops and layers of the network in PyTorch, on our kernels with
`--ops triton`. Ranges cost a little, so their sum is shown beside the time of the network without them.
"""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal

import numpy as np
import torch
from torch import Tensor

from segmenter import ops as plain_ops
from segmenter.checkpoint import load_model
from segmenter.cli import run as run_command
from segmenter.config import variant
from segmenter.cores import usable_cores
from segmenter.errors import ConfigError, Unavailable
from segmenter.model import Segmenter
from segmenter.option import ANY_CHECKPOINT, require_least
from segmenter.preprocess import normalize
from segmenter_bench.ceilings import Ceilings, best_seconds, ceilings
from segmenter_bench.machine import BUSY, Neighbours, process_seconds
from segmenter_bench.models import pictures
from segmenter_bench.random_weights import random_model
from segmenter_bench.ranges import Ranges
from segmenter_bench.roofline import Stage, stages
from segmenter_bench.runs import command_of, new_run, print_styled, require_writable, table_of, wide_console, write_run
from segmenter_bench.sheets import quantity
from segmenter_bench.stage_times import measured_stages

FAR_APART = 1.5  # times between the sum of the stages and the network without named ranges, either way
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def network(model: Segmenter, ranges: Ranges | None, device: torch.device, dtype: torch.dtype) -> Callable[..., Tensor]:
    """uint8 RGB [B, H, W, 3] in host memory to labels [B, H, W] in host memory; the copies are stages too."""

    def run(images: np.ndarray) -> Tensor:
        with ranges.stage("input copy") if ranges else nullcontext():
            x = normalize(images, model.config.preprocess).to(device, dtype)
        labels = model.labels(x)
        with ranges.stage("label copy") if ranges else nullcontext():
            return labels.cpu()

    return run


def rows(asked: Sequence[Stage], took: Mapping[str, float], limits: Ceilings) -> list[dict[str, Any]]:
    """One row a stage: what was asked, what it took, and the share of the bound that is."""
    total = sum(took.values())
    found = []
    for stage in asked:
        bound = stage.seconds(limits.tflops * 1e12, limits.gb_per_s * 1e9) * 1e3
        ms = took.get(stage.name, 0.0)
        found.append(
            {
                "stage": stage.name,
                "status": "ok",
                "ms": ms,
                "share_of_time": ms / total if total else None,
                "bound_ms": bound,
                "share_of_bound": bound / ms if ms else None,
                **{key: value for key, value in asdict(stage).items() if key != "name"},
            }
        )
    return found


@dataclass(frozen=True)
class Options:
    """Where a network's time goes, stage by stage, and how near each is to what this machine can do."""

    checkpoint: Annotated[Path | None, ANY_CHECKPOINT] = None
    variant: str | None = None
    """Instead: a variant of the paper with random weights, such as Seg-Ti-Mask/16."""
    height: int | None = None
    """Image height in pixels; the network's own when left out."""
    width: int | None = None
    """Image width in pixels."""
    batch: int = 1
    """Images in one call."""
    ops: Literal["plain", "triton"] = "plain"
    """PyTorch's ops, or our kernels on a GPU."""
    dtype: Literal["fp32", "fp16", "bf16"] | None = None
    """Type of weights and activations; fp32 on a CPU and fp16 on a GPU when left out."""
    rounds: int = 5
    """Profiled calls."""
    threads: int | None = None
    """CPU threads; all usable cores when left out."""
    out: Path = Path("runs/bench")
    """Folder for the JSON of the run."""

    def __post_init__(self) -> None:
        if (self.checkpoint is None) == (self.variant is None):
            raise ConfigError("pass either --checkpoint FOLDER or --variant NAME, such as --variant Seg-Ti-Mask/16")
        require_least(self, batch=1, rounds=1, threads=1)


@torch.inference_mode()
def profiled(options: Options, command: str) -> dict[str, Any]:
    """Measure and return the run, see `segmenter_bench.runs`.

    Raises ConfigError or CheckpointError for what the options name, Unavailable for kernels without a GPU.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype_name = options.dtype or ("fp16" if device.type == "cuda" else "fp32")
    dtype, threads = DTYPES[dtype_name], options.threads or usable_cores()
    torch.set_num_threads(threads)
    ranges = Ranges()
    watched, bare = (_model(options, module) for module in (ranges.ops(_ops_of(options)), _ops_of(options)))
    config = watched.config
    height, width = options.height or config.encoder.image_size[0], options.width or config.encoder.image_size[1]
    if min(height, width) < config.encoder.patch_size:
        raise ConfigError(
            f"size {height}x{width} is smaller than one {config.encoder.patch_size} pixel patch; enlarge it"
        )
    images = np.stack((pictures(min(options.batch, 4), (height, width)) * options.batch)[: options.batch])
    for model in (watched, bare):
        model.fold_layer_scale()
        model.to(device, dtype).eval()
    ranges.watch(watched)
    run, plain = network(watched, ranges, device, dtype), network(bare, None, device, dtype)
    same = bool((run(images) == plain(images)).all())
    neighbours = Neighbours(lambda: process_seconds(os.getpid()))
    whole_ms = best_seconds(lambda: plain(images), device, options.rounds) * 1e3
    took = measured_stages(run, images, device, options.rounds)
    others = neighbours.share()
    limits = ceilings(device, dtype)
    settings = {
        "ops": options.ops,
        "dtype": dtype_name,
        "batch": options.batch,
        "threads": threads,
        "rounds": options.rounds,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "ceilings": asdict(limits),
        "whole_ms": whole_ms,
        "stages_ms": sum(took.values()),
        "labels_unchanged": same,
        "others_busy": others,
    }
    model_facts = {"name": config.name, "classes": list(config.classes), "height": height, "width": width}
    found = new_run("stages", command, model_facts, settings)
    found["notes"] = notes(settings)
    found["rows"] = rows(stages(config, height, width, options.batch, dtype.itemsize), took, limits)
    return found


def notes(settings: Mapping[str, Any]) -> list[str]:
    """Why the times of a run are not to be trusted, if there is a reason: a range holds the time its threads waited."""
    cores, busy, found = usable_cores(), settings["others_busy"] or 0.0, []
    if settings["device"] == "cpu" and busy > BUSY:
        free = max(int(cores * (1.0 - busy)), 1)
        found.append(
            f"Other programs took {busy:.0%} of the {cores} CPU cores during the measurement, of which this run used"
            f" {settings['threads']} threads: stages hold time in which they waited; repeat on a quiet machine, or with"
            f" --threads {free}."
        )
    apart = settings["stages_ms"] / settings["whole_ms"]
    if not 1.0 / FAR_APART < apart < FAR_APART:
        found.append(
            f"The stages come to {apart:.2g} times the whole network without named ranges: take them as shares at most."
        )
    return found


def _ops_of(options: Options) -> ModuleType:
    if options.ops == "plain":
        return plain_ops
    if not torch.cuda.is_available():
        raise Unavailable("--ops triton: no CUDA device here; leave it out, or use a machine with a GPU")
    import segmenter_kernels

    return segmenter_kernels


def _model(options: Options, ops: ModuleType) -> Segmenter:
    if options.checkpoint is not None:
        return load_model(options.checkpoint, ops=ops)
    assert options.variant is not None
    config = variant(options.variant)
    model = Segmenter(config, ops).eval()
    model.load_state_dict(random_model(config).state_dict())
    return model


def show(run: Mapping[str, Any]) -> None:
    """Print a run as a table on stdout."""
    console, model, settings = wide_console(), run["model"], run["settings"]
    limits = settings["ceilings"]
    measured = f"product {quantity(limits['tflops'], 3)} TFLOP/s, copy {quantity(limits['gb_per_s'], 3)} GB/s"
    print_styled(
        *(console, model["name"], "bold"),
        f" {model['height']}x{model['width']}, batch {settings['batch']}, {settings['dtype']},"
        f" {settings['ops']} ops on {settings['device']}; measured ceilings: {measured}",
    )
    table = table_of(("stage",), ("ms", "% of time", "GFLOP", "MB", "bound ms", "% of bound"))
    for row in run["rows"]:
        shares = ["-" if row[key] is None else f"{100 * row[key]:.1f}" for key in ("share_of_time", "share_of_bound")]
        work = [quantity(value, 3) for value in (row["flops"] / 1e9, row["traffic_bytes"] / 1e6, row["bound_ms"])]
        table.add_row(row["stage"], quantity(row["ms"], 3), shares[0], *work, shares[1])
    console.print(table)
    console.print(
        f"stages {quantity(settings['stages_ms'], 4)} ms in sum; the network without named ranges"
        f" {quantity(settings['whole_ms'], 4)} ms",
        style="dim",
        soft_wrap=True,
    )
    for note in run["notes"]:
        console.print(note, style="yellow", soft_wrap=True)


def bench(options: Options) -> int:
    require_writable(options.out)
    run = profiled(options, command_of("segmenter bench-stages", None))
    show(run)
    print(write_run(run, options.out))
    return 0 if run["settings"]["labels_unchanged"] else 1


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(bench, Options, argv)


if __name__ == "__main__":
    sys.exit(main())
