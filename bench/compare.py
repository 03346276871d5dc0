"""Which engines became slower, or broke, from one speed run of a network to another."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from segmenter.cli import run as run_command
from segmenter.errors import DataError, VerificationError
from segmenter_bench.comparison import compare, require_tolerance
from segmenter_bench.comparison_table import show
from segmenter_bench.runs import read_run


@dataclass(frozen=True)
class Options:
    """Compare two speed runs of one network; exits with 2 when an engine became slower beyond noise and tolerance.

    So it does when one that was timed in the baseline failed, or could not be opened, in the candidate.
    """

    baseline: Annotated[Path, tyro.conf.Positional]
    """JSON of bench-throughput to compare with."""
    candidate: Annotated[Path, tyro.conf.Positional]
    """JSON of bench-throughput to judge."""
    tolerance: float = 0.1
    """Share by which a speed-up over the reference may change."""

    def __post_init__(self) -> None:
        require_tolerance(self.tolerance)


def bench(options: Options) -> int:
    found = compare(read_run(options.baseline), read_run(options.candidate), options.tolerance)
    show(found)
    if found.broken:
        raise VerificationError(
            f"{options.candidate}: failed where {options.baseline} did not: {'; '.join(found.broken)}"
        )
    if not found.changes:
        raise DataError(f"{options.candidate}: nothing was compared with {options.baseline}, see above")
    if found.slower:
        told = "; ".join(f"{one.engine} {one.change:.2f}x (batch {one.batch})" for one in found.slower)
        raise VerificationError(f"{options.candidate}: slower than {options.baseline}: {told}")
    if found.unlike:
        raise DataError(
            f"{options.candidate}: {len(found.unlike)} engines were not compared, see above; time them again"
        )
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(bench, Options, argv)


if __name__ == "__main__":
    sys.exit(main())
