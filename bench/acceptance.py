"""One command that judges the whole stack on the machine at hand, the most valuable things first.

    python -m bench.acceptance --out DIR --minutes 9

Steps run in processes of their own, each with a time limit. What a step has found is written as it comes, and the page
is written again after every step: a run that is cut keeps all it has, and the same command goes on where it stopped.
A checkout is enough; what a step needs and this machine lacks is named. This file needs nothing but Python.
"""

import argparse
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

# relative, because a checkout has this package under another name
from .acceptance_steps import BENCH, GROUPS, NEEDS, RUNS, Step, plan
from .acceptance_subject import ROOT, SOURCES, code, configs, gpus, machine, tiles_in

STEPS, PAGE, LOGS = "steps.jsonl", "report.html", "logs"
LEAST_SECONDS = 5.0  # left for a step worth starting
PAGE_SECONDS = 60.0
USEFUL_MINUTES = 2.0  # an engine is opened, checked and timed in its first round by then


@dataclass
class Outcome:
    """What became of a step: ok, failed, cut (out of time), or missing (this machine lacks something)."""

    step: str
    group: str
    status: str
    reason: str | None
    seconds: float
    command: str
    # of what it ran on, see `segmenter_bench.acceptance_subject`; tiles are those of the kernels when it ended
    code: str | None = None
    machine: str | None = None
    tiles: str | None = None


@contextmanager
def environment() -> Iterator[dict[str, str]]:
    """Variables under which a child finds the packages: those installed, else those of this checkout."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [str(place) for name, place in SOURCES.items() if importlib.util.find_spec(name) is None]
        if importlib.util.find_spec("segmenter_bench") is None:
            (Path(folder) / "segmenter_bench").symlink_to(ROOT / "bench")
            paths.append(folder)
        inherited = os.environ.get("PYTHONPATH")
        paths += [inherited] if inherited else []
        yield os.environ | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}


class Acceptance:
    """The steps of one folder, run until `deadline` (of `time.monotonic`)."""

    def __init__(self, out: Path, deadline: float, variables: dict[str, str]) -> None:
        self.out, self.deadline, self.variables = out, deadline, variables
        self.code, self.machine, self.configs = code(), machine(), configs()
        self.child: subprocess.Popen[bytes] | None = None
        self._found: dict[str, bool] = {}
        self.targets = ""  # what the last page says of them
        for name in (RUNS, LOGS):
            (out / name).mkdir(parents=True, exist_ok=True)

    def done(self, step: Step, earlier: Sequence[Outcome]) -> bool:
        """Whether a step ended well in an earlier run of this code on this machine, and with the tiles there are now.

        Tuning changes these, so what ran before it runs again; it itself does not, nor what runs no kernel.
        """
        tiles = None if step.group in ("machine", "tune") else tiles_in(self.configs)
        now = (step.command, self.code, self.machine)
        found = (one for one in earlier if (one.command, one.code, one.machine) == now)
        return any(one.status == "ok" and tiles in (None, one.tiles) for one in found)

    def run(self, steps: Sequence[Step]) -> None:
        """Run what is not done yet, and say after each step what there is."""
        stale, earlier = True, outcomes(self.out)
        for step in steps:
            if self.done(step, earlier):
                _say(f"{step.name}: done before")
                continue
            outcome = self._run(step)
            outcome.code, outcome.machine, outcome.tiles = self.code, self.machine, tiles_in(self.configs)
            self._append(outcome)
            _say(
                f"{step.name}: {outcome.status} in {outcome.seconds:.0f} s"
                + (f", {outcome.reason}" if outcome.reason else "")
            )
            stale = not outcome.seconds
            if not stale:
                self.page()
        if stale:
            self.page()

    def page(self) -> None:
        """Write the page of what there is; the one of before stays where that fails."""
        command = [sys.executable, "-m", "segmenter_bench.acceptance_page", str(self.out)]
        try:
            done = subprocess.run(
                command, env=self.variables, capture_output=True, text=True, timeout=PAGE_SECONDS, check=False
            )
        except subprocess.TimeoutExpired:
            _say(f"no page: not written within {PAGE_SECONDS:.0f} s")
            return
        if done.returncode != 0:
            _say(f"no page: {_last_line(done.stderr)}")
            return
        self.targets = "".join(done.stdout.splitlines(keepends=True)[:-1])  # the last names the page

    def stop(self) -> None:
        """End the step that runs, and all it started."""
        if self.child is not None and self.child.poll() is None:
            # engines have sessions of their own: left alive they would be timed along with the next step
            others = _descendants(self.child.pid)
            os.killpg(self.child.pid, signal.SIGKILL)
            for other in others:
                with suppress(ProcessLookupError):
                    os.kill(other, signal.SIGKILL)
            self.child.wait()

    def _run(self, step: Step) -> Outcome:
        command = [sys.executable, "-m", step.module, *step.arguments]
        shown = step.command
        missing = [name for name in step.needs if not self.found(name)]
        if missing:
            return Outcome(step.name, step.group, "missing", f"not installed: {', '.join(missing)}", 0.0, shown)
        left = self.deadline - time.monotonic()
        if left < LEAST_SECONDS:
            return Outcome(step.name, step.group, "cut", "no time left; the same command goes on here", 0.0, shown)
        log, start = self.out / LOGS / log_name(step.name), time.monotonic()
        with log.open("wb") as file:
            self.child = subprocess.Popen(
                command, env=self.variables, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True
            )
            try:
                code = self.child.wait(timeout=min(step.limit_s, left))
                status, reason = ("ok", None) if code == 0 else ("failed", _last_line(log.read_text(errors="replace")))
            except subprocess.TimeoutExpired:
                self.stop()
                status, reason = "cut", f"stopped after {min(step.limit_s, left):.0f} s"
        return Outcome(step.name, step.group, status, reason, time.monotonic() - start, shown)

    def found(self, package: str) -> bool:
        """Whether a child finds a package, whose path is another than this process's."""
        if package not in self._found:
            code = f"import importlib.util as u, sys; sys.exit(u.find_spec({package!r}) is None)"
            done = subprocess.run([sys.executable, "-c", code], env=self.variables, capture_output=True, check=False)
            self._found[package] = done.returncode == 0
        return self._found[package]

    def _append(self, outcome: Outcome) -> None:
        with (self.out / STEPS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(outcome)) + "\n")
            file.flush()
            os.fsync(file.fileno())


def outcomes(out: Path) -> list[Outcome]:
    """What `steps.jsonl` of a folder says, the last word on each step; a line cut short is left out."""
    found: dict[str, Outcome] = {}
    path = out / STEPS
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            one = Outcome(**json.loads(line))
        except (ValueError, TypeError):
            continue
        found[one.step] = one
    return list(found.values())


def log_name(step: str) -> str:
    """File of what a step printed, in the folder of logs."""
    return "".join(letter if letter.isalnum() else "-" for letter in step.lower()) + ".txt"


def _descendants(pid: int) -> list[int]:
    """Processes that a process started, and those that these started; none where the system does not tell."""
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    found = [pid]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found[1:]


def _last_line(text: str) -> str:
    return next((line.strip()[:300] for line in reversed(text.splitlines()) if line.strip()), "it said nothing")


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def _stopped(*_: object) -> None:
    raise KeyboardInterrupt


def main(argv: Sequence[str] | None = None) -> int:
    """Judge; 0 when no step failed, 1 when one did or was cut, 2 for options that are none, 130 when stopped."""
    parser = argparse.ArgumentParser(
        prog="bench.acceptance", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", required=True, help="folder of the runs, the log of steps and the page")
    parser.add_argument(
        "--minutes",
        type=float,
        default=9.0,
        help="time for all steps; 9 by default. A step that this cuts keeps what it has, the run then ends with 1 and\n"
        f"the same command goes on there; below {USEFUL_MINUTES:g} there is little but the machine's ceilings",
    )
    parser.add_argument(
        "--only",
        nargs="+",
        type=lambda text: text.split(","),
        metavar="GROUP",
        help=f"steps of these groups alone, of {', '.join(GROUPS)}",
    )
    parser.add_argument(
        "--tune",
        action="store_true",
        help="on a GPU: tune the kernels that decide the most first, and measure with the tiles found, which are\n"
        "written into kernels/segmenter_kernels/configs",
    )
    parser.add_argument("--folder", help="engine folder of a trained network, to judge its accuracy too")
    parser.add_argument("--dataset", default="shapes", help="dataset it is judged on")
    parser.add_argument("--data", help="root folder of the dataset")
    parser.add_argument("--images", type=int, default=0, help="at most so many images; 0 for all")
    options = parser.parse_args(argv)
    if not 0.0 < options.minutes <= 24 * 60:
        parser.error(f"--minutes {options.minutes}: wanted above 0 and at most a day")
    if options.only is not None:
        options.only = [group for part in options.only for group in part]
        if unknown := [group for group in options.only if group not in GROUPS]:
            parser.error(f"--only {', '.join(unknown)}: wanted some of {', '.join(GROUPS)}")
    start = time.monotonic()
    signal.signal(signal.SIGTERM, _stopped)
    with environment() as variables:
        try:
            # a tenth, at most half a minute, is kept for the page
            seconds = 60.0 * options.minutes
            run = Acceptance(Path(options.out), start + seconds - min(0.1 * seconds, 30.0), variables)
        except OSError as error:
            parser.error(f"--out {options.out}: cannot write there ({error.strerror}); pass another folder")
        steps = plan(options, bool(gpus()), bare=not all(map(run.found, BENCH)))
        here = {step.group for step in steps}
        if absent := [f"{group} needs {NEEDS[group]}" for group in options.only or () if group not in here]:
            if not steps:
                parser.error(f"nothing to do: {'; '.join(absent)}")
            _say(f"left out: {'; '.join(absent)}")
        if options.minutes < USEFUL_MINUTES:
            _say(f"--minutes {options.minutes:g}: little will be done; {USEFUL_MINUTES:g} is the useful minimum")
        try:
            run.run(steps)
        except KeyboardInterrupt:
            run.stop()
            run.page()
            _say(f"stopped; what was done is in {run.out / PAGE}")
            return 130
    print(f"{run.targets}{run.out / PAGE}")
    last = {one.step: one.status for one in outcomes(run.out)}
    unfinished = [step.name for step in steps if last.get(step.name) in ("failed", "cut")]
    if unfinished:
        _say(f"not whole: {', '.join(unfinished)}; the same command goes on there")
    return int(bool(unfinished))


if __name__ == "__main__":
    sys.exit(main())
