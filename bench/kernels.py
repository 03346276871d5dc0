"""Every kernel against its rivals at Segmenter's shapes: milliseconds, TFLOP/s or GB/s, share of what the GPU can do.

Calls are timed in CUDA graphs on data that are not in the GPU's cache. An answer is judged before it is timed, and a
wrong one has no speed. Without a GPU the table of what each kernel needs (registers, shared memory) is printed instead.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from segmenter.cli import run as run_command
from segmenter.errors import ConfigError, EngineError
from segmenter.option import require
from segmenter_bench.kernel_race import OURS, measured, past
from segmenter_bench.runs import command_of, print_styled, table_of, wide_console, write_run


@dataclass(frozen=True)
class Options:
    """Times each Triton kernel against PyTorch's own at Segmenter's shapes; without a GPU says what each needs."""

    op: tuple[str, ...] = ()
    """Ops by name (attention, linear_gelu, ...); all when left out."""
    dtype: Literal["fp16", "bf16"] = "fp16"
    """Type of all tensors."""
    batch: tuple[int, ...] = (1, 8)
    """Batch sizes."""
    rivals: bool = True
    """Time PyTorch's ways too."""
    architectures: tuple[int, ...] = ()
    """Without a GPU: architectures to compile for (80, 86, 89, 90, 100, 120); all when left out."""
    out: Path = Path("runs/kernels")
    """Folder for the JSON of the run; without a GPU nothing is timed, and none is written."""

    def __post_init__(self) -> None:
        require(min(self.batch, default=0) >= 1, "--batch", " ".join(map(str, self.batch)), "sizes of at least 1")


def _ops(options: Options) -> tuple[str, ...]:
    from segmenter_kernels.workloads import OPS

    if unknown := [op for op in options.op if op not in OPS]:
        raise ConfigError(f"op {unknown[0]!r} is unknown; choose from {', '.join(OPS)}")
    return options.op or OPS


def show(run: Mapping[str, Any]) -> None:
    """Print a run as one table on stdout."""
    console, ceilings = wide_console(), run["settings"]["ceilings"]
    products = ", ".join(f"{name} product {tflops:.0f} TFLOP/s" for name, tflops in ceilings["tflops"].items())
    measured = f"{products}, copy {ceilings['gb_per_s']:.0f} GB/s"
    print_styled(console, run["model"]["name"], "bold", f" {run['settings']['dtype']}; measured ceilings: {measured}")
    table = table_of(("op", "shape", "by"), ("p50 ms", "p20", "p80", "TFLOP/s", "GB/s", "share %"))
    for row in run["rows"]:
        if row["status"] == "ok":
            cells = [f"{row[key]:.4f}" for key in ("ms_p50", "ms_p20", "ms_p80")]
            cells += [f"{row['tflops']:.0f}", f"{row['gb_per_s']:.0f}"]
            cells.append("-" if row["share"] is None else f"{100 * row['share']:.0f}")
        else:
            cells = [row["status"]]
        style = "bold" if row["provider"] == OURS else None
        table.add_row(row["op"], row["shape"], row["provider"], *cells, style=style)
    console.print(table)
    if told := past(run["rows"]):
        console.print(told, style="dim", soft_wrap=True)
    for missing in run["unavailable"]:
        print_styled(console, "unavailable", "yellow", f" {missing['engine']}: {missing['reason']}")
    for row in run["rows"]:
        if row["status"] == "wrong" or (row["status"] == "failed" and row["provider"] == OURS):
            what = f"{row['provider']} {row['op']} {row['shape']}"
            print_styled(console, row["status"], "red", f" {what}: {row['reason']}")


def needs(options: Options) -> int:
    """Compile every kernel and print what each needs; 1 when one is past its budget."""
    from segmenter_kernels import aot
    from segmenter_kernels.compiling import faults
    from segmenter_kernels.tiles import ARCHITECTURES

    if unknown := [one for one in options.architectures if one not in ARCHITECTURES]:
        raise ConfigError(f"architecture {unknown[0]}: wanted some of {', '.join(map(str, ARCHITECTURES))}")
    print("no CUDA device here, so nothing is timed; compiling every kernel to see what it needs", file=sys.stderr)
    _ops(options)
    architectures, ops = options.architectures or ARCHITECTURES, options.op or ("",)
    total = sum(len(aot.jobs_of(architectures, op)) for op in ops)
    made = (kernel for op in ops for kernel in aot.compile_all(architectures, only=op))
    try:
        kernels = list(aot.told(made, total))
    except RuntimeError as error:
        raise EngineError(str(error)) from error
    print(aot.table(kernels))
    return int(any(faults(kernel) for kernel in kernels))


def bench(options: Options) -> int:
    if not torch.cuda.is_available():
        return needs(options)
    ops, command = _ops(options), command_of("segmenter bench-kernels", None)

    def keep(run: dict[str, Any]) -> None:
        # a run that is cut keeps the shapes it has
        write_run(run, options.out)

    run = measured(ops, options.dtype, options.batch, options.rivals, command, keep=keep)
    show(run)
    print(write_run(run, options.out))
    return int(any(row["status"] != "ok" for row in run["rows"] if row["provider"] == OURS))


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(bench, Options, argv)


if __name__ == "__main__":
    sys.exit(main())
