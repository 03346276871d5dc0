"""Where a network's time goes: each stage measured, beside the least time its work and its traffic allow here.

Stages are named ranges of PyTorch's profiler around the ops and layers of the network in PyTorch, on our kernels with
`--ops triton`. Ranges cost a little, so their sum is shown beside the time of the network without them.
"""

import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np
import torch
from rich import box
from rich.table import Table
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile, record_function

from segmenter import ops as plain_ops
from segmenter.checkpoint import load_model
from segmenter.cli import run as run_command
from segmenter.config import variant
from segmenter.cores import usable_cores
from segmenter.errors import ConfigError, Unavailable
from segmenter.model import Segmenter
from segmenter.preprocess import normalize
from segmenter.vit import Attention, Block
from segmenter_bench.ceilings import Ceilings, best_seconds, ceilings, wait
from segmenter_bench.models import pictures, random_model
from segmenter_bench.roofline import STAGES, Stage, stages
from segmenter_bench.runs import command_of, new_run, require_writable, wide_console, write_run

PREFIX = "stage: "
OF_OP = {
    "attention": "attention",
    "patch_embed": "patch embedding",
    "add_layernorm": "norms and residuals",
    "linear_gelu": "MLP",
    "linear_residual": "MLP",
    "mask_scores": "mask scores",
    "upsample_argmax": "upsample + argmax",
}
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class _Ranges:
    """Names stages for the profiler; what the decoder calls is the decoder's, but for the mask scores."""

    def __init__(self) -> None:
        self.inside_decoder = False

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        if self.inside_decoder and name != "mask scores":
            yield  # the decoder's own range is open
            return
        with record_function(PREFIX + name):
            yield

    def ops(self, module: ModuleType) -> ModuleType:
        """A module of ops whose calls are named."""
        named = ModuleType("named_ops")
        for name, stage in OF_OP.items():
            setattr(named, name, self._named(getattr(module, name), stage))
        return named

    def watch(self, model: Segmenter) -> None:
        """Name what the network does besides ops."""
        decoder = list(model.decoder.modules())
        for module in model.modules():
            if module in decoder:
                continue
            if isinstance(module, Attention):
                module.qkv.forward = self._named(module.qkv.forward, "projections")  # type: ignore[method-assign]
                module.proj.forward = self._named(module.proj.forward, "projections")  # type: ignore[method-assign]
            if isinstance(module, Block):
                module.norm1.forward = self._named(module.norm1.forward, "norms and residuals")  # type: ignore[method-assign]
        norm: nn.Module = model.encoder.norm
        norm.forward = self._named(norm.forward, "norms and residuals")  # type: ignore[method-assign]
        forward = model.decoder.forward

        def decode(*arguments: Any) -> Tensor:
            with record_function(PREFIX + "decoder"):
                self.inside_decoder = True
                try:
                    return forward(*arguments)
                finally:
                    self.inside_decoder = False

        model.decoder.forward = decode  # type: ignore[method-assign]

    def _named(self, function: Callable[..., Any], stage: str) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            with self.stage(stage):
                return function(*arguments, **named)

        return call


def network(
    model: Segmenter, ranges: _Ranges | None, device: torch.device, dtype: torch.dtype
) -> Callable[..., Tensor]:
    """uint8 RGB [B, H, W, 3] in host memory to labels [B, H, W] in host memory; the copies are stages too."""

    def run(images: np.ndarray) -> Tensor:
        with ranges.stage("input copy") if ranges else nullcontext():
            x = normalize(images, model.config.preprocess).to(device, dtype)
        labels = model.labels(x)
        with ranges.stage("label copy") if ranges else nullcontext():
            return labels.cpu()

    return run


def measured_stages(
    run: Callable[[np.ndarray], Tensor], images: np.ndarray, device: torch.device, rounds: int
) -> dict[str, float]:
    """Milliseconds a call of every named stage, the median of `rounds` profiled calls."""
    found: dict[str, list[float]] = defaultdict(list)
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    for _ in range(rounds):
        with profile(activities=activities) as profiled:
            run(images)
            wait(device)
        sums: dict[str, float] = defaultdict(float)
        for event in profiled.key_averages():
            if event.key.startswith(PREFIX):
                took = event.device_time_total if on_gpu else event.cpu_time_total
                sums[event.key.removeprefix(PREFIX)] += took / 1000.0
        # the scores' range lies inside the decoder's
        if "decoder" in sums:
            sums["decoder"] -= sums.get("mask scores", 0.0)
        for name in STAGES:
            found[name].append(sums.get(name, 0.0))
    return {name: float(np.median(times)) for name, times in found.items()}


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

    checkpoint: Path | None = None
    """Checkpoint folder, or an official checkpoint.pth."""
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
        for name in ("batch", "rounds", *(("threads",) if self.threads is not None else ())):
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name} {getattr(self, name)}: wanted at least 1")


@torch.inference_mode()
def profiled(options: Options, command: str) -> dict[str, Any]:
    """Measure and return the run, see `segmenter_bench.runs`.

    Raises ConfigError or CheckpointError for what the options name, Unavailable for kernels without a GPU.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype_name = options.dtype or ("fp16" if device.type == "cuda" else "fp32")
    dtype, threads = DTYPES[dtype_name], options.threads or usable_cores()
    torch.set_num_threads(threads)
    ranges = _Ranges()
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
    whole_ms = best_seconds(lambda: plain(images), device, options.rounds) * 1e3
    took = measured_stages(run, images, device, options.rounds)
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
    }
    model_facts = {"name": config.name, "classes": list(config.classes), "height": height, "width": width}
    found = new_run("stages", command, model_facts, settings)
    found["rows"] = rows(stages(config, height, width, options.batch, dtype.itemsize), took, limits)
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
    console.print(
        f"[bold]{model['name']}[/] {model['height']}x{model['width']}, batch {settings['batch']}, {settings['dtype']},"
        f" {settings['ops']} ops on {settings['device']}; measured ceilings: product {limits['tflops']:.3g} TFLOP/s,"
        f" copy {limits['gb_per_s']:.3g} GB/s"
    )
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("stage", no_wrap=True)
    for title in ("ms", "% of time", "GFLOP", "MB", "bound ms", "% of bound"):
        table.add_column(title, justify="right", no_wrap=True)
    for row in run["rows"]:
        shares = ["-" if row[key] is None else f"{100 * row[key]:.1f}" for key in ("share_of_time", "share_of_bound")]
        work = [f"{row['flops'] / 1e9:.3g}", f"{row['traffic_bytes'] / 1e6:.3g}", f"{row['bound_ms']:.3g}"]
        table.add_row(row["stage"], f"{row['ms']:.3g}", shares[0], *work, shares[1])
    console.print(table)
    console.print(
        f"stages {settings['stages_ms']:.4g} ms in sum; the network without named ranges {settings['whole_ms']:.4g} ms",
        style="dim",
        soft_wrap=True,
    )


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
