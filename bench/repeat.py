"""Everything `segmenter_bench.acceptance` measures, twice, and how far each ratio moved from one run to the other.

    segmenter bench-repeat --folder demo/engines --out runs/repeat

Each run is a whole report of its own, `1/report.html` and `2/report.html`. Ratios are to the official way in the same
rounds; for those to repeat the machine must be quiet, and how busy it was is in the table.
"""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from rich import box
from rich.table import Table

from segmenter.cli import run as run_command
from segmenter.datasets.option import DATASET
from segmenter.errors import ConfigError, DataError, VerificationError
from segmenter_bench.acceptance import PAGE
from segmenter_bench.acceptance_steps import RUNS
from segmenter_bench.runs import read_run, require_writable, wide_console
from segmenter_bench.sections import speedup

Key = tuple[str, str, int, str]  # network, engine, batch, region


@dataclass(frozen=True)
class Options:
    """A whole report twice or more, and the spread of each engine's ratio to the official way.

    Exits with 2 when one is past --limit.
    """

    folder: Path | None = None
    """Engine folder of a trained network, such as the demo's, besides Seg-Ti-Mask/16 with random weights."""
    dataset: Annotated[str, DATASET] = "shapes"
    """Dataset of the trained network."""
    data: Path | None = None
    """Root folder of the dataset."""
    times: int = 2
    """Runs."""
    minutes: float = 20.0
    """At most so long for each run."""
    limit: float = 0.1
    """Largest spread of a ratio, (largest - smallest) / smallest over the runs, that passes."""
    out: Path = Path("runs/repeat")
    """Folder of the runs, each a folder 1, 2, ...; runs already whole there are not made again."""

    def __post_init__(self) -> None:
        if self.times < 2:
            raise ConfigError(f"--times {self.times}: wanted at least 2, or there is nothing to compare")
        if not 0.0 < self.limit <= 10.0:
            raise ConfigError(f"--limit {self.limit}: wanted above 0 and at most 10; 10 % is 0.1")


def ratios(folder: Path) -> dict[Key, tuple[float, float]]:
    """Times the official way of every engine of an acceptance run, and the largest share of the cores others took."""
    found: dict[Key, tuple[float, float]] = {}
    for file in sorted((folder / RUNS).glob("throughput-*.json")):
        run = read_run(file)
        reference = run["settings"]["reference"]
        own = {(row["batch"], row["region"]): row for row in run["rows"] if row["engine"] == reference}
        for row in run["rows"]:
            value = speedup(row, own.get((row["batch"], row["region"])), run["settings"]["rounds"])
            if value is not None and row["engine"] != reference:
                key = (run["model"]["name"], row["engine"], row["batch"], row["region"])
                found[key] = value, row.get("others_busy") or 0.0
    return found


def spreads(runs: Sequence[Mapping[Key, tuple[float, float]]]) -> dict[Key, float]:
    """(largest - smallest) / smallest of every ratio that all runs have, the largest first."""
    shared = [key for key in runs[0] if all(key in run for run in runs)]
    found = {key: max(run[key][0] for run in runs) / min(run[key][0] for run in runs) - 1.0 for key in shared}
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def show(runs: Sequence[Mapping[Key, tuple[float, float]]], found: Mapping[Key, float], limit: float) -> None:
    """Print every ratio of every run as a table on stdout."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("network", "engine", "region"):
        table.add_column(title, no_wrap=True)
    for title in ("batch", *(f"run {number}" for number in range(1, len(runs) + 1)), "spread", "others busy"):
        table.add_column(title, justify="right", no_wrap=True)
    for key, spread in found.items():
        name, engine, batch, region = key
        busy = max(run[key][1] for run in runs)
        cells = [str(batch), *(f"{run[key][0]:.2f}" for run in runs), f"{spread:.1%}", f"{busy:.0%}"]
        table.add_row(name, engine, region, *cells, style="red" if spread > limit else None)
    wide_console().print(table)


def repeat(options: Options) -> int:
    require_writable(options.out)
    folders = [options.out.resolve() / str(number) for number in range(1, options.times + 1)]
    more: list[str] = []
    if options.folder is not None:
        more = ["--folder", str(options.folder.resolve()), "--dataset", options.dataset]
        more += ["--data", str(options.data.resolve())] if options.data else []
    for folder in folders:
        # by the name that an installed wheel has it under too
        command = [sys.executable, "-m", "segmenter_bench.acceptance", "--out", str(folder)]
        command += ["--minutes", str(options.minutes)]
        if subprocess.run([*command, *more], check=False).returncode:
            raise VerificationError(f"{folder / PAGE}: not whole, see its steps; the same command goes on there")
    runs = [ratios(folder) for folder in folders]
    found = spreads(runs)
    show(runs, found, options.limit)
    if not found:
        raise DataError(f"{options.out}: no ratio that all runs have; see the reports in it")
    past = [f"{key[1]} of {key[0]} {spread:.1%}" for key, spread in found.items() if spread > options.limit]
    if past:
        raise VerificationError(f"ratios that moved more than {options.limit:.0%} between runs: {'; '.join(past)}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(repeat, Options, argv)


if __name__ == "__main__":
    sys.exit(main())
