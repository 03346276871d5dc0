"""Kernels against their rivals for `segmenter_bench.acceptance`: no package but PyTorch, Triton and NumPy is needed."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from segmenter_bench.kernel_race import DTYPES, OURS, measured
from segmenter_bench.runs import write_run


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, write the run, and give 1 when a kernel of ours is wrong or fails."""
    parser = argparse.ArgumentParser(prog="segmenter_bench.kernel_step", description=__doc__)
    parser.add_argument("--op", nargs="+", required=True)
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="fp16")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(argv)
    command = f"segmenter bench-kernels --op {' '.join(options.op)} --dtype {options.dtype}"
    run = measured(options.op, options.dtype, options.batch, True, command)
    print(write_run(run, options.out))
    return int(any(row["status"] != "ok" for row in run["rows"] if row["provider"] == OURS))


if __name__ == "__main__":
    sys.exit(main())
