"""A whole network where only PyTorch, Triton and NumPy are installed, for `segmenter_bench.acceptance`.

The official way, PyTorch's own and our kernels take turns in one process, on the same random weights and images, each
judged before it is timed: in fp32 by its labels, below by its class masks, whose error in fp16 may be twice what
PyTorch's costs, and by its labels against those of its masks. On a GPU the `triton` engine runs too, where safetensors
is installed, and with `--way compiled-fp16` what torch.compile makes of the network with everything it can tune; with
`--way triton-fp16-stream` batches follow each other through the engine's stream. What an export, a build or the
compiled routines would add is named as missing. The ways are in `segmenter_bench.network_ways`.
"""

import argparse
import os
import sys
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from segmenter.config import SegmenterConfig, variant
from segmenter.cores import usable_cores
from segmenter.errors import ConfigError
from segmenter.model import Segmenter
from segmenter.preprocess import normalize
from segmenter_bench.kernel_race import error_of
from segmenter_bench.ladder import LADDERS
from segmenter_bench.machine import Neighbours, busy_note, process_seconds
from segmenter_bench.network_ways import COMPILED, EIGHT_BITS, STREAMED, STREAMS, Way, network, triton_lacks, ways
from segmenter_bench.rivals import labels_by_logits
from segmenter_bench.runs import command_of, new_run, write_run
from segmenter_bench.timing import Burst, Timing, burst, each_round, ratio

FP32_AGREEMENT = 0.999  # of `segmenter_engines.limits`, which this must not import
FP16_ERRORS = 2.0  # times the error of PyTorch's own fp16
LARGEST_FP16_ERROR = 0.05  # whatever PyTorch's is
# of class masks in 8 bits: what a broken layer is far beyond; what they cost is judged on trained networks
LARGEST_8_BIT_ERROR = 0.25
LABELS_OF_MASKS = 0.99  # share of pixels whose label PyTorch gives them too, from the same fp16 masks
BURST_SECONDS, MIN_CALLS = 0.3, 2
TIMED = {"labels": "uint8 RGB images [B, H, W, 3] in host memory to uint8 labels [B, H, W] in host memory"}
NOTE = "Random weights: engines below fp32 are judged by their class masks, their labels by PyTorch's of these masks."
STREAM_NOTE = (
    f"Rows named -stream: a reading is {STREAMED} batches in a row, and ms are one batch's share of it: what a batch"
    " adds, not how long its labels take. Percentiles are over readings, not over batches. Labels were those of calls."
)
HOW = (
    "All are in one process: memory is not told apart. Labels in fp32 were compared with PyTorch's in the same run;"
    " below that the class masks were, and labels with those PyTorch makes of the masks."
)


def absent(raced: set[str], device: torch.device) -> list[dict[str, str]]:
    """The rungs of the ladder that are no way of this machine, each with the reason."""
    reasons: dict[str, str] = {}
    lacking = triton_lacks() if device.type == "cuda" else None
    for name, ladder in LADDERS.items():
        for rung in ladder:
            reason = "needs more than PyTorch, Triton and NumPy: install segmenter-trt with its extras"
            if name == "on a GPU":
                reason = "not among the ways of this run" if device.type == "cuda" else "no CUDA device here"
                if lacking is not None and rung.engine.startswith("triton"):
                    reason = f"the triton engine needs {lacking}, which is not installed"
            elif device.type == "cuda":
                reason = "a rung on a CPU: where there is a GPU, only those on it are timed with these packages"
            if rung.engine not in raced:
                reasons[rung.engine] = reason
    return [{"engine": engine, "reason": reason} for engine, reason in reasons.items()]


def pictures(count: int, size: tuple[int, int]) -> np.ndarray:
    """Smooth random images, uint8 [B, H, W, 3]: on noise every pixel would be near a tie."""
    coarse = torch.rand(count, 3, size[0] // 32 + 2, size[1] // 32 + 2, generator=torch.Generator().manual_seed(0))
    smooth = F.interpolate(coarse, size=size, mode="bicubic", align_corners=False).clamp(0, 1)
    return (smooth * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


@torch.inference_mode()
def measured(
    config: SegmenterConfig,
    batches: Sequence[int],
    rounds: int,
    device: torch.device,
    command: str,
    keep: Callable[[dict[str, Any]], object] = lambda run: None,
    chosen: Sequence[str] = (),
) -> dict[str, Any]:
    """The run, see `segmenter_bench.runs`; rows as those of `segmenter_bench.throughput`.

    keep: called with the run as far as it is after each check and each round. chosen: ways by name; all when empty.
    Raises ConfigError for one that is neither a way of this machine nor named as missing, and when all are missing.
    """
    size = config.encoder.image_size
    model = {
        "name": config.name,
        "classes": list(config.classes),
        "height": size[0],
        "width": size[1],
        "trained": False,
    }
    with ways(config, device, chosen) as raced:
        missing = absent({way.name for way in raced}, device)
        known = {way.name for way in raced} | {one["engine"] for one in missing}
        unknown = [name for name in chosen if name not in known]
        if unknown:
            raise ConfigError(f"--way {' '.join(unknown)}: no way of this machine; leave it out")
        if not raced:
            raise ConfigError(f"--way {' '.join(chosen)}: none of them runs here; leave it out")
        settings = {"threads": usable_cores(), "reference": raced[0].name, "truth": "PyTorch in fp32", "rounds": rounds}
        settings |= {"burst_seconds": BURST_SECONDS, "min_calls": MIN_CALLS, "warmup": 1}
        run = new_run("throughput", command, model, settings) | {"timed": TIMED, "how": HOW, "notes": _notes(raced)}
        run["unavailable"] = missing
        truth = network(config, None, torch.float32, device)
        for batch in batches:
            _race(run, raced, truth, batch, rounds, device, keep)
    return run


def _race(
    run: dict[str, Any],
    raced: Sequence[Way],
    truth: Segmenter,
    batch: int,
    rounds: int,
    device: torch.device,
    keep: Callable[[dict[str, Any]], object],
) -> None:
    """Add the rows of one batch size to a run: every way judged, then those that are right timed in turns."""
    config, done = truth.config, run["rows"]
    size = config.encoder.image_size
    images = pictures(batch, size)
    masks = truth.masks(normalize(images, config.preprocess).to(device))
    labels = _labels(masks, size)
    limits, rows = dict.fromkeys(EIGHT_BITS, LARGEST_8_BIT_ERROR), {}
    if any(way.precision == "fp16" for way in raced):
        limits["fp16"] = min(FP16_ERRORS * _fp16_error(config, device, images, masks), LARGEST_FP16_ERROR)
    for way in raced:
        print(f"{way.name}, batch {batch}: check", file=sys.stderr, flush=True)
        row = _judged(way, images, masks, labels, limits.get(way.precision, 0.0))
        rows[way.name] = row | {"batch": batch, "device": _name(device), "reference_device": _name(device)}
        run["rows"] = [*done, *rows.values()]
        keep(run)
    running = {way.name: way for way in raced if rows[way.name]["status"] == "ok"}
    turns = {name: _turn(way, images) for name, way in running.items()}
    neighbours = Neighbours(lambda: process_seconds(os.getpid()))
    for bursts in each_round(turns, rounds):
        _time(rows, bursts, batch, raced[0].name, neighbours.share())
        run["notes"] = _notes(raced, max(row["others_busy"] or 0.0 for row in run["rows"]))
        keep(run)


def _notes(raced: Sequence[Way], others_busy: float = 0.0) -> list[str]:
    notes = [NOTE, STREAM_NOTE if any(way.stream for way in raced) else None, busy_note(others_busy)]
    return [note for note in notes if note]


def _time(
    rows: dict[str, dict[str, Any]], bursts: dict[str, list[Burst]], batch: int, reference: str, others: float | None
) -> None:
    """Fill in what the rounds so far come to. others: the share of the cores that other programs took."""
    for row in rows.values():
        row["others_busy"] = others
    for name, found in bursts.items():
        rows[name]["timing"] = asdict(Timing.of(found, batch))
        rows[name]["rounds_ms"] = [[round(ms, 4) for ms in one.ms] for one in found]
        rows[name]["ratio"] = asdict(ratio(bursts[reference], found)) if reference in bursts else None


def _fp16_error(config: SegmenterConfig, device: torch.device, images: np.ndarray, masks: Tensor) -> float:
    """Relative error of class masks that PyTorch's own fp16 makes, in a network that no contestant is."""
    model = network(config, None, torch.float16, device)
    return _error(model.masks(normalize(images, config.preprocess).to(device, torch.float16)), masks)


def _error(found: Tensor, masks: Tensor) -> float:
    return float((found.float() - masks).norm() / masks.norm())


def _labels(masks: Tensor, size: tuple[int, int]) -> np.ndarray:
    """PyTorch's labels of class masks, in float32."""
    return labels_by_logits(masks.float(), size, size).cpu().numpy()


def _judged(way: Way, images: np.ndarray, masks: Tensor, labels: np.ndarray, error_limit: float) -> dict[str, Any]:
    """A row without times. error_limit: that of class masks below fp32."""
    row: dict[str, Any] = {"engine": way.name, "precision": way.precision, "region": "labels", "status": "ok"}
    row |= dict.fromkeys(("reason", "agreement", "agreement_limit", "timing", "ratio", "rounds_ms", "memory_bytes"))
    row |= {"describe": {"does": way.does}, "others_busy": None}
    row |= dict.fromkeys(("error", "error_limit", "of_masks", "of_masks_limit"))
    try:
        called, made = way.call(images), way.masks(images)
        row["agreement"] = float((called == labels).mean())
        row["error"] = _error(made, masks)
        row["of_masks"] = float((called == _labels(made, images.shape[1:3])).mean())
        _require_same_labels(way, images)
    except Exception as error:  # a kernel may not compile here; whatever it is, the others are still measured
        row |= {"status": "failed", "reason": error_of(error)}
        return row
    if way.precision == "fp32":
        row["agreement_limit"] = FP32_AGREEMENT
        if row["agreement"] < FP32_AGREEMENT:
            row |= {
                "status": "failed",
                "reason": f"{row['agreement']:.2%} of pixels agree; wanted {FP32_AGREEMENT:.1%}",
            }
        return row
    # what is timed is the call: right masks behind it are not enough
    row |= {"error_limit": error_limit, "of_masks_limit": LABELS_OF_MASKS}
    if not row["error"] <= error_limit:
        row |= {"status": "failed", "reason": f"error {row['error']:.3g} of the class masks; at most {error_limit:.3g}"}
    elif row["of_masks"] < LABELS_OF_MASKS:
        told = f"{row['of_masks']:.2%} of labels are those PyTorch makes of its masks; wanted {LABELS_OF_MASKS:.0%}"
        row |= {"status": "failed", "reason": told}
    return row


def _batches(images: np.ndarray) -> list[np.ndarray]:
    """What one reading of a stream labels: the images and their mirror images in turn, which labels would tell."""
    return [images, np.ascontiguousarray(images[:, :, ::-1])] * (STREAMED // 2)


def _require_same_labels(way: Way, images: np.ndarray) -> None:
    """Raises ValueError where a stream gives other labels than calls do."""
    if way.stream is None:
        return
    batches = _batches(images)
    called = [way.call(batch) for batch in batches[:2]] * (STREAMED // 2)
    streamed = list(way.stream(batches))
    if not np.array_equal(np.stack(streamed), np.stack(called)):
        raise ValueError("labels of the stream are not those of calls")


def _turn(way: Way, images: np.ndarray) -> Callable[[], Burst]:
    stream = way.stream
    if stream is None:
        return lambda: burst(lambda: way.call(images), BURST_SECONDS, MIN_CALLS)
    batches = _batches(images)

    def streamed() -> Burst:
        found = burst(lambda: deque(stream(batches), maxlen=0), BURST_SECONDS, MIN_CALLS)
        return Burst([ms / STREAMED for ms in found.ms], found.cpu_ms / STREAMED)

    return streamed


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name() if device.type == "cuda" else "cpu"


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, write the run, and give 1 when a way is wrong or fails."""
    parser = argparse.ArgumentParser(prog="segmenter_bench.network_step", description=__doc__)
    parser.add_argument("--variant", required=True)
    parser.add_argument("--batch", type=int, nargs="+", default=[1])
    parser.add_argument("--rounds", type=int, default=9)
    but = ", ".join((COMPILED, *STREAMS))
    parser.add_argument("--way", nargs="+", default=[], help=f"ways by name; without it all but {but}")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(argv)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(usable_cores())
    torch.backends.cudnn.allow_tf32 = False  # the truth is float32, by convolutions too
    command = command_of("python -m segmenter_bench.network_step", argv)

    def keep(run: dict[str, Any]) -> None:
        write_run(run, options.out)

    try:
        config = variant(options.variant)
        run = measured(config, options.batch, options.rounds, device, command, keep, options.way)
    except ConfigError as error:
        parser.error(str(error))
    print(write_run(run, options.out))
    return int(any(row["status"] != "ok" for row in run["rows"]))


if __name__ == "__main__":
    sys.exit(main())
