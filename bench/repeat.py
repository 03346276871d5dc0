"""Everything `segmenter_bench.acceptance` measures, twice, and how far each ratio moved from one run to the other.

    segmenter bench-repeat --folder demo/engines --out runs/repeat

Each run is a whole report of its own, `1/report.html` and `2/report.html`. Ratios are to the official way in the same
rounds, and compared at the nearest distance of cores that both runs have (`segmenter_bench.placement`); where there is
none, a third is made. For ratios to repeat the machine must be quiet, and how busy it was is in the table.
"""

import math
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from segmenter.cli import run as run_command
from segmenter.datasets.option import DATASET
from segmenter.errors import DataError, VerificationError
from segmenter.option import require
from segmenter_bench.acceptance import PAGE
from segmenter_bench.acceptance_steps import RUNS
from segmenter_bench.placement import comparable, settled
from segmenter_bench.runs import read_run, require_writable, table_of, wide_console
from segmenter_bench.sections import counted_rounds, speedup

Key = tuple[str, str, int, str]  # network, engine, batch, region


@dataclass(frozen=True)
class Measured:
    """A ratio to the official way, how far apart the cores were meanwhile, and the share of them that others took."""

    ratio: float
    core_to_core_ns: float | None
    others_busy: float


@dataclass(frozen=True)
class Spread:
    """Ratios of one engine, in the order of the runs, with the cores equally far apart; runs without one are None."""

    key: Key
    measured: tuple[Measured | None, ...]

    @property
    def found(self) -> list[Measured]:
        return [one for one in self.measured if one is not None]

    @property
    def spread(self) -> float:
        """(largest - smallest) / smallest."""
        ratios = [one.ratio for one in self.found]
        return max(ratios) / min(ratios) - 1.0


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
    """The dataset's folder; shapes needs none."""
    times: int = 2
    """Runs. Where the cores moved more are made, at most one fewer than these, for as many at one distance."""
    minutes: float = 20.0
    """At most so long for each run."""
    limit: float = 0.1
    """Largest spread of a ratio, (largest - smallest) / smallest over the runs, that passes."""
    out: Path = Path("runs/repeat")
    """Folder of the runs, each a folder 1, 2, ...; runs already whole there are not made again."""

    def __post_init__(self) -> None:
        require(self.times >= 2, "--times", self.times, "at least 2, or there is nothing to compare")
        require(0.0 < self.limit <= 10.0, "--limit", self.limit, "above 0 and at most 10; 10 % is 0.1")


def ratios(folder: Path) -> dict[Key, list[Measured]]:
    """Times the official way of every engine of an acceptance run, one for each distance the cores were apart."""
    found: dict[Key, list[Measured]] = {}
    # by name, which ends in the time: where a step was measured again, the newest counts
    for file in sorted((folder / RUNS).glob("throughput-*.json")):
        run = read_run(file)
        reference = run["settings"]["reference"]
        own = {(row["batch"], row["region"]): row for row in run["rows"] if row["engine"] == reference}
        for row in run["rows"]:
            theirs = own.get((row["batch"], row["region"]))
            if row["engine"] == reference or theirs is None:
                continue
            key = (run["model"]["name"], row["engine"], row["batch"], row["region"])
            found[key] = []
            # placements are of whole rounds, so both have the same, but for one that failed
            for ours, reference_row in zip(settled(row), settled(theirs), strict=False):
                value = speedup(ours, reference_row, counted_rounds(ours, run["settings"]["rounds"]))
                if value is not None:
                    busy = row.get("others_busy") or 0.0
                    found[key].append(Measured(value, ours.get("core_to_core_ns"), busy))
    return {key: measured for key, measured in found.items() if measured}


def spreads(runs: Sequence[Mapping[Key, list[Measured]]], times: int) -> tuple[list[Spread], list[Key]]:
    """For each ratio, those at the nearest distance of cores that `times` runs share; the largest spread first.

    And the keys of which no distance is shared by so many runs, as where an engine failed in one.
    """
    found: list[Spread] = []
    apart: list[Key] = []
    for key in dict.fromkeys(key for run in runs for key in run):
        measured = [run.get(key, []) for run in runs]
        distances = {one.core_to_core_ns for own in measured for one in own}
        groups = (
            Spread(
                key, tuple(next((one for one in own if comparable(one.core_to_core_ns, ns)), None) for own in measured)
            )
            for ns in sorted(distances, key=lambda ns: math.inf if ns is None else ns)
        )
        nearest = next((group for group in groups if len(group.found) >= times), None)
        if nearest is None:
            apart.append(key)
        else:
            found.append(nearest)
    return sorted(found, key=lambda one: -one.spread), apart


def show(found: Sequence[Spread], limit: float) -> None:
    """Print every ratio of every run as a table on stdout."""
    runs = max((len(one.measured) for one in found), default=0)
    figures = ("batch", "cores apart", *(f"run {index + 1}" for index in range(runs)), "spread", "others busy")
    table = table_of(("network", "engine", "region"), figures)
    for one in found:
        name, engine, batch, region = one.key
        ns = one.found[0].core_to_core_ns
        cells = [str(batch), "-" if ns is None else f"{ns:.0f} ns"]
        cells += ["-" if own is None else f"{own.ratio:.2f}" for own in one.measured]
        cells += [f"{one.spread:.1%}", f"{max(own.others_busy for own in one.found):.0%}"]
        table.add_row(name, engine, region, *cells, style="red" if one.spread > limit else None)
    wide_console().print(table)


def repeat(options: Options) -> int:
    require_writable(options.out)
    more: list[str] = []
    if options.folder is not None:
        more = ["--folder", str(options.folder.resolve()), "--dataset", options.dataset]
        more += ["--data", str(options.data.resolve())] if options.data else []
    runs: list[dict[Key, list[Measured]]] = []
    found: list[Spread] = []
    apart: list[Key] = []
    # with two distances, so many runs always have `times` of one
    while len(runs) < options.times or (apart and len(runs) < 2 * options.times - 1):
        runs.append(ratios(_whole_run(options.out.resolve() / str(len(runs) + 1), options.minutes, more)))
        found, apart = spreads(runs, options.times)
    show(found, options.limit)
    if not found:
        raise DataError(f"{options.out}: no ratio to compare; see the reports in it")
    if apart:
        told = "; ".join(f"{engine} of {name}, {region}" for name, engine, _, region in apart)
        raise DataError(
            f"{options.out}: wanted {options.times} runs with the cores equally far apart, and found fewer of {told};"
            " see the reports in it, and measure again in another folder"
        )
    past = [f"{one.key[1]} of {one.key[0]} {one.spread:.1%}" for one in found if one.spread > options.limit]
    if past:
        raise VerificationError(f"ratios that moved more than {options.limit:.0%} between runs: {'; '.join(past)}")
    return 0


def _whole_run(folder: Path, minutes: float, more: Sequence[str]) -> Path:
    """Make a run, or what it still lacks. Raises VerificationError where it does not get whole."""
    # by the name that an installed wheel has it under too
    command = [sys.executable, "-m", "segmenter_bench.acceptance", "--out", str(folder), "--minutes", str(minutes)]
    if subprocess.run([*command, *more], check=False).returncode:
        raise VerificationError(f"{folder / PAGE}: not whole, see its steps; the same command goes on there")
    return folder


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(repeat, Options, argv)


if __name__ == "__main__":
    sys.exit(main())
