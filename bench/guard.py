"""The guard of continuous integration: a short speed run, held against one that is committed.

    segmenter bench-guard            # about a minute on one core; exits with 2 when an engine became slower
    segmenter bench-guard --renew    # measures the committed run again, on a quiet machine and a clean checkout

Speeds are ratios to the official way in the same rounds, so another machine moves them little; the tolerance is for
what it does move, and for noise: a slowdown is found from about 2.4x on. Ratios of 8 and 16 bit engines hang on the
CPU's instructions, and are compared where these are the same alone. With other versions of the runtimes a slower
engine is told and is no failure.
"""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from segmenter.checkpoint import save_model
from segmenter.cli import run as run_command
from segmenter.config import variant
from segmenter.errors import DataError, VerificationError
from segmenter.files import atomic_path
from segmenter_bench.circumstances import instructions
from segmenter_bench.comparison import compare, require_tolerance
from segmenter_bench.comparison_table import show
from segmenter_bench.engines import REFERENCE, TRUTH, Entry, choose
from segmenter_bench.machine import BUSY, busiest
from segmenter_bench.models import CALIBRATION_IMAGES, pictures
from segmenter_bench.race import Pace, opened, race
from segmenter_bench.race_notes import notes_of
from segmenter_bench.random_weights import random_model
from segmenter_bench.runs import command_of, new_run, read_run, write_run
from segmenter_bench.timing import IN_PROCESSES
from segmenter_engines.folder import CHECKPOINT, FP32, INT8

REFERENCE_RUN = Path(__file__).parent / "results" / "guard-cpu.json"
NETWORK, SIDE, CLASSES = "Seg-Ti-Mask/16", 192, 150
ENGINES = ("official", "eager", "eager-fused-labels", "onnxruntime", "openvino-fp32", "openvino-int8")
THREADS = 1  # a machine of one free core measures the same
RUNTIMES = ("torch", "onnxruntime", "openvino")
PACE = Pace(rounds=9, burst_seconds=0.2, min_calls=2, warmup=1)


def fill(folder: Path) -> None:
    """The network with random weights, exported in fp32 and int8: an engine folder without plans."""
    from segmenter_engines.export import export
    from segmenter_engines.quantize import quantize

    save_model(random_model(variant(NETWORK, CLASSES, image_size=(SIDE, SIDE))), folder / CHECKPOINT)
    export(folder / CHECKPOINT, folder / FP32, height=SIDE, width=SIDE)
    quantize(folder / FP32, folder / INT8, pictures(CALIBRATION_IMAGES, (SIDE, SIDE), "train"))


def measured(folder: Path, chosen: Sequence[Entry], command: str) -> dict[str, Any]:
    """A speed run of some engines of the folder, as `segmenter_bench.throughput` makes it but shorter."""
    model = {"name": NETWORK, "classes": [str(index) for index in range(CLASSES)], "height": SIDE, "width": SIDE}
    settings = {"threads": THREADS, "reference": REFERENCE, "truth": TRUTH, **asdict(PACE)}
    run = new_run("throughput", command, model | {"trained": False}, settings) | {"how": IN_PROCESSES}
    with opened(chosen, choose((REFERENCE, TRUTH)), folder, THREADS) as (contestants, unavailable):
        run["unavailable"] = unavailable
        run["rows"] = race(contestants, pictures(2, (SIDE, SIDE)), [1], ["labels"], PACE, trained=False)
    run["notes"] = notes_of(run["rows"], trained=False)
    return run


def require_renewable(run: dict[str, Any]) -> None:
    """See that a run may be what later ones are held against.

    Raises VerificationError where others took the cores, an engine failed, or no commit has the code that was measured.
    """
    failed = [row["engine"] for row in run["rows"] if row["status"] != "ok"]
    if failed or run["unavailable"]:
        told = ", ".join([*failed, *(one["engine"] for one in run["unavailable"])])
        raise VerificationError(f"not renewed: {told} failed or cannot run here; every engine has to be in a reference")
    if (busy := busiest(run["rows"])) > BUSY:
        raise VerificationError(
            f"not renewed: others took up to {busy:.0%} of the cores, wanted at most {BUSY:.0%}; measure on a quiet"
            " machine"
        )
    if (run["machine"].get("git") or {}).get("dirty", True):
        raise VerificationError("not renewed: wanted a checkout without local changes; commit them and measure again")


def other_versions(baseline: dict[str, Any], candidate: dict[str, Any]) -> list[str]:
    """Runtimes that are not of one version in both runs, in words."""
    mine, theirs = (run["machine"].get("versions") or {} for run in (candidate, baseline))
    return [
        f"{name} {mine.get(name, 'none')} (then {theirs.get(name, 'none')})"
        for name in RUNTIMES
        if mine.get(name) != theirs.get(name)
    ]


def comparable(baseline: dict[str, Any], candidate: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Both runs with the engines that compare between their machines: of other instructions, those in fp32 alone.

    And those that failed or could not be opened: no instructions excuse that.
    """
    apart = instructions(baseline) ^ instructions(candidate)
    if not apart:
        return baseline, candidate
    print(f"other instructions ({', '.join(sorted(apart))}): speeds in fp32 alone", file=sys.stderr)
    broken = {one["engine"] for one in candidate["unavailable"]}
    broken |= {row["engine"] for row in candidate["rows"] if row["status"] == "failed"}
    both = [
        run | {"rows": [row for row in run["rows"] if row["precision"] == "fp32" or row["engine"] in broken]}
        for run in (baseline, candidate)
    ]
    return both[0], both[1]


def require_as_fast(baseline: dict[str, Any], candidate: dict[str, Any], tolerance: float) -> None:
    """Print the comparison of two runs.

    Slower engines of other versions of the runtimes are told and pass: their reference has to be measured again.
    Raises VerificationError for an engine that broke or became slower, DataError where there is nothing to compare.
    """
    found = compare(*comparable(baseline, candidate), tolerance)
    show(found)
    if found.broken:
        raise VerificationError(f"engines that ran in the committed run fail here: {'; '.join(found.broken)}")
    if not found.changes:
        raise DataError("no engine of the committed run was timed here; nothing was compared")
    if found.slower:
        told = "; ".join(f"{one.engine} {one.change:.2f}x ({one.low:.2f} to {one.high:.2f})" for one in found.slower)
        told = f"slower than the committed run, both against {REFERENCE}: {told}"
        if versions := other_versions(baseline, candidate):
            print(f"other versions: {', '.join(versions)}; {told}; measure it again with --renew", file=sys.stderr)
            return
        raise VerificationError(told)


@dataclass(frozen=True)
class Options:
    """Time a few engines of Seg-Ti-Mask/16 in about a minute, and compare them with the committed run.

    Exits with 2 when one became slower or broke.
    """

    reference: Path = REFERENCE_RUN
    """Run to compare with."""
    tolerance: float = 1.0
    """Share by which a speed-up over the official way may change; 1.0 is half as fast, or twice."""
    renew: bool = False
    """Measure the reference again instead of comparing; refused on a busy machine or with local changes."""
    out: Path = Path("runs/guard")
    """Folder for the JSON of the run."""

    def __post_init__(self) -> None:
        require_tolerance(self.tolerance)


def guard(options: Options) -> int:
    # before a minute of work
    baseline = None if options.renew else read_run(options.reference)
    with TemporaryDirectory() as name:
        fill(Path(name))
        run = measured(Path(name), choose(ENGINES), command_of("segmenter bench-guard", None))
    if baseline is not None:
        print(write_run(run, options.out))
        require_as_fast(baseline, run, options.tolerance)
        return 0
    written = write_run(run, options.out)
    require_renewable(run)
    with atomic_path(options.reference) as temporary:
        temporary.write_bytes(written.read_bytes())
    print(options.reference)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(guard, Options, argv)


if __name__ == "__main__":
    sys.exit(main())
