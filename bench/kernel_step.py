"""Kernels against their rivals for `segmenter_bench.acceptance`: no package but PyTorch, Triton and NumPy is needed."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from segmenter_bench.kernel_race import DTYPES, OURS, measured
from segmenter_bench.runs import command_of, write_run


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, write the run, and give 1 when a kernel of ours is wrong or fails."""
    from segmenter_kernels.workloads import WIDTHS

    parser = argparse.ArgumentParser(prog="segmenter_bench.kernel_step", description=__doc__)
    parser.add_argument("--op", nargs="+", required=True)
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="fp16")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    widths = "networks by name; all when left out"
    parser.add_argument("--width", nargs="+", choices=tuple(WIDTHS), default=[], help=widths)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(argv)
    command = command_of("python -m segmenter_bench.kernel_step", argv)

    def keep(run: dict[str, Any]) -> None:
        write_run(run, options.out)

    run = measured(options.op, options.dtype, options.batch, True, command, options.width, keep)
    print(write_run(run, options.out))
    return int(any(row["status"] != "ok" for row in run["rows"] if row["provider"] == OURS))


if __name__ == "__main__":
    sys.exit(main())
