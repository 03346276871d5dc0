"""Runs put together for people: one section a network, one line an engine, speed and accuracy side by side."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from segmenter.errors import DataError
from segmenter.metrics import change
from segmenter_bench.sheets import DASH

Row = dict[str, Any]
Place = tuple[str, Any, str]  # of a throughput row: engine, batch, region
OFFICIAL = "official"
ENOUGH_ROUNDS = 5  # below, one noisy round moves the median over rounds, and quartiles say nothing


@dataclass(frozen=True)
class Line:
    """An engine at a batch size: its throughput row, its mIoU row, or both."""

    engine: str
    batch: int | None
    speed: Row | None
    accuracy: Row | None
    reference: Row | None = None  # throughput row of the engine ratios are against, where it was listed
    rounds: int = 0
    against: str = OFFICIAL  # the engine that ratios are against

    @property
    def precision(self) -> str:
        return str((self.speed or self.accuracy or {}).get("precision") or "")

    @property
    def images_per_s(self) -> float | None:
        timing = self.speed and self.speed.get("timing")
        return timing["images_per_s"] if timing else None

    @property
    def speedup(self) -> float | None:
        return speedup(self.speed, self.reference, self.rounds) if self.speed else None

    @property
    def spread(self) -> tuple[float, float] | None:
        """Quartiles of the speedup over rounds, where there were enough of them."""
        ratio = self.speed and self.speed.get("ratio")
        return (ratio["low"], ratio["high"]) if ratio and self.rounds >= ENOUGH_ROUNDS else None

    @property
    def miou(self) -> float | None:
        return self.accuracy.get("miou") if self.accuracy else None

    @property
    def drop(self) -> float | None:
        return self.accuracy.get("drop") if self.accuracy else None

    @property
    def agreed(self) -> Row | None:
        """The row its agreement is read from: of the dataset where it was judged on one, else of the throughput run."""
        rows = [row for row in (self.accuracy, self.speed) if row and row.get("agreement") is not None]
        return rows[0] if rows else None

    @property
    def agreement(self) -> float | None:
        return self.agreed["agreement"] if self.agreed else None

    @property
    def faults(self) -> list[str]:
        """Why it failed, each reason once."""
        rows = [row for row in (self.accuracy, self.speed) if row and row.get("status") == "failed"]
        return list(dict.fromkeys(str(row.get("reason") or "no reason given") for row in rows))

    @property
    def judged(self) -> bool:
        """Whether its labels or class masks were held to a limit at all; on random weights not all engines are."""
        rows = [row for row in (self.accuracy, self.speed) if row]
        return any(row.get(limit) is not None for row in rows for limit in ("agreement_limit", "error_limit"))

    @property
    def compared(self) -> bool:
        """Whether it is this network at all; another one is there for its speed alone."""
        return bool((self.speed or {}).get("compared", True))

    @property
    def verdict(self) -> str:
        if self.faults or self.judged:
            return "failed" if self.faults else "passed"
        return "not judged" if self.compared else "other network"


@dataclass
class Section:
    """Everything known of one network: its runs, and their rows joined by engine."""

    model: dict[str, Any]
    runs: list[dict[str, Any]] = field(default_factory=list)

    def of(self, kind: str) -> dict[str, Any] | None:
        """The newest run of a kind."""
        found = self._of(kind)
        return found[-1] if found else None

    @property
    def speeds(self) -> list[dict[str, Any]]:
        """Speed runs, the oldest first, of which a row is shown: of each engine, batch and region the newest row is."""
        shown = list(self._speed_rows().values())
        return [run for run in self._of("throughput") if not run["rows"] or any(run is one for _, one in shown)]

    @property
    def name(self) -> str:
        return str(self.model.get("name", "unnamed"))

    @property
    def size(self) -> str:
        return f"{self.model.get('height', '?')}x{self.model.get('width', '?')}"

    @property
    def batches(self) -> list[int]:
        return sorted({batch for _, batch, region in self._speed_rows() if region == "labels"})

    def lines(self, batch: int | None, region: str = "labels") -> list[Line]:
        """Engines in the order of the table: those timed at `batch`, and at the first batch those only judged."""
        accuracy = {name: row for name, (row, _) in self.judged.items()} if region == "labels" else {}
        found = self._speed_rows()
        speed = {name: one for (name, *place), one in found.items() if place == [batch, region]}
        names = dict.fromkeys([*speed, *(accuracy if batch in (None, *self.batches[:1]) else ())])
        lines = []
        for name in names:
            row, run = speed.get(name, (None, None))
            if row is None or run is None:
                lines.append(Line(name, batch, None, accuracy.get(name)))
                continue
            against = reference_of(run)
            reference = next((one for one in run["rows"] if _place(one) == (against, batch, region)), None)
            rounds = counted_rounds(row, rounds_of(run))
            judged = accuracy.get(name)
            if judged is not None and not of_one_file(row, judged):
                judged = None
            lines.append(Line(name, batch, row, judged, reference, rounds, against))
        return lines

    def races(self, batch: int | None, region: str = "labels") -> list[tuple[dict[str, Any], list[str]]]:
        """The speed runs that the lines of a table are of, each with its engines there: those were raced together."""
        found: dict[int, tuple[dict[str, Any], list[str]]] = {}
        for (engine, *place), (row, run) in self._speed_rows().items():
            if place == [batch, region] and row.get("timing"):
                found.setdefault(id(run), (run, []))[1].append(engine)
        return list(found.values())

    def has_region(self, region: str) -> bool:
        return any(each == region for _, _, each in self._speed_rows())

    @property
    def judged(self) -> dict[str, tuple[Row, dict[str, Any]]]:
        """The newest mIoU row of each engine, with its run, of those runs that saw the images of the newest."""
        runs = self._of("miou")
        alike = [run for run in runs if _images_of(run) == _images_of(runs[-1])]
        return {row["engine"]: (row, run) for run in alike for row in run["rows"]}

    @property
    def unavailable(self) -> dict[str, str]:
        """Engines no run could open, and those the newest run that asked for them could not, with the reason."""
        opened = {row["engine"] for run in self.runs for row in run["rows"]}
        found: dict[str, str] = {}
        for kind, figure in (("miou", "mIoU"), ("throughput", "speed")):
            before: set[str] = set()
            for run in self._of(kind):
                rows = {row["engine"] for row in run["rows"]}
                found = {name: reason for name, reason in found.items() if name not in rows}
                before |= rows
                for one in run["unavailable"]:
                    if one["engine"] in before:
                        found[one["engine"]] = f"{one['reason']}; the {figure} shown is of an older run"
                    elif one["engine"] not in opened:
                        found[one["engine"]] = one["reason"]
        return found

    @property
    def best(self) -> Line | None:
        """The fastest engine at the smallest batch that did not fail."""
        if not self.batches:
            return None
        sound = [
            one
            for one in self.lines(self.batches[0])
            if one.images_per_s is not None and one.compared and not one.faults
        ]
        return max(sound, key=lambda one: one.images_per_s or 0.0) if sound else None

    def _of(self, kind: str) -> list[dict[str, Any]]:
        return sorted((run for run in self.runs if run["kind"] == kind), key=lambda run: run["created"])

    def _speed_rows(self) -> dict[Place, tuple[Row, dict[str, Any]]]:
        """The newest throughput row of each engine, batch and region, with its run.

        One that was right and not timed, as a run was cut, does not hide one that was timed before.
        """
        found: dict[Place, tuple[Row, dict[str, Any]]] = {}
        for run in self._of("throughput"):
            for row in run["rows"]:
                before, _ = found.get(_place(row), ({}, None))
                if row.get("timing") or row.get("status") == "failed" or not before.get("timing"):
                    found[_place(row)] = row, run
        return found


def _place(row: Row) -> Place:
    return row["engine"], row.get("batch"), row.get("region", "labels")


def _images_of(run: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(run["settings"].get(key) for key in ("dataset", "split", "images"))


def of_one_file(speed: Row, accuracy: Row) -> bool:
    """Whether rows of an engine are of the same file, as far as both noted its hash."""
    files = speed.get("sha256"), accuracy.get("sha256")
    return None in files or files[0] == files[1]


def reference_of(run: dict[str, Any]) -> str:
    """The engine that a throughput run's ratios are against."""
    return str(run["settings"].get("reference", OFFICIAL))


def rounds_of(run: dict[str, Any]) -> int:
    """Rounds that figures of a throughput run are of, at the least.

    Fewer than were planned of one that was cut, and where the cores moved (`segmenter_bench.placement`).
    """
    planned = int(run["settings"].get("rounds", 0))
    return min([planned, *(len(row["rounds_ms"]) for row in run["rows"] if row.get("rounds_ms"))])


def counted_rounds(row: Row, planned: int) -> int:
    """Rounds that the figures of a throughput row are of; `planned` for a row that does not hold them."""
    return len(row.get("rounds_ms") or ()) or planned


def times_of(lines: Iterable[Line]) -> str:
    """The engine that every ratio of some lines is against, where it is one."""
    against = {line.against for line in lines if line.speed}
    return against.pop() if len(against) == 1 else "reference"


def times_head(lines: Iterable[Line]) -> str:
    """Head of the column of how many times faster."""
    return f"x {times_of(lines)}"


def speedup(row: Row, reference: Row | None, rounds: int) -> float | None:
    """How many times faster a throughput row is than the reference's, None where they do not compare.

    The median of the rounds' own ratios, which a machine that slows down for a while hardly moves; of few rounds the
    ratio of the images per second, so that one round cannot put engines in another order than their speed.
    """
    ratio, ours, theirs = row.get("ratio"), row.get("timing"), (reference or {}).get("timing")
    if not ratio:
        return None
    if rounds >= ENOUGH_ROUNDS:
        return float(ratio["median"])
    if "of_p50" in ratio:
        return float(ratio["of_p50"])
    # a run of before that field
    return float(ours["images_per_s"] / theirs["images_per_s"] if ours and theirs else ratio["median"])


def speedup_meaning(rounds: int, reference: str) -> str:
    """What `speedup` is, for the reader of a page."""
    if rounds >= ENOUGH_ROUNDS:
        return (
            f"Median of how much faster than {reference} each of {rounds} rounds was; in the table with its quartiles."
            " A machine that slows down for a while moves it less than images/s, so the two may differ a little."
        )
    return f"Images/s over {reference}'s; {rounds} rounds are too few for a range."


def by_reason(reasons: Mapping[str, str]) -> dict[str, list[str]]:
    """Engines that share a reason for not being measured, by that reason."""
    found: dict[str, list[str]] = {}
    for engine, reason in reasons.items():
        found.setdefault(reason, []).append(engine)
    return found


def of_engines(run: dict[str, Any]) -> bool:
    """Whether a run is of a network's engines, and not of kernels, stages or the machine."""
    return run["kind"] in ("throughput", "miou")


def sections(runs: Iterable[dict[str, Any]]) -> list[Section]:
    """Runs grouped by network (weights and image size), in the order they come.

    Of speed runs the newest row of each engine, batch and region counts, of mIoU runs on the same images that of each
    engine.
    Runs that are not of engines are left out.
    Raises DataError when two speed runs of one network come from different machines: their numbers do not compare.
    """
    found: dict[tuple[Any, ...], Section] = {}
    for run in filter(of_engines, runs):
        model = run["model"]
        key = (model.get("weights_sha256") or model.get("name"), model.get("height"), model.get("width"))
        found.setdefault(key, Section(model)).runs.append(run)
    for section in found.values():
        machines = {machine_name(run["machine"]) for run in section.runs if run["kind"] == "throughput"}
        if len(machines) > 1:
            raise DataError(
                f"{section.name}: throughput runs from different machines ({'; '.join(sorted(machines))});"
                " make one report a machine"
            )
    return list(found.values())


def machine_name(machine: dict[str, Any]) -> str:
    """CPU and GPUs in a few words."""
    cpu = machine.get("cpu") or {}
    parts = [f"{cpu.get('model', 'unknown CPU')}, {cpu.get('usable_cores', '?')} cores"]
    parts += [str(gpu.get("name", "unnamed GPU")) for gpu in machine.get("gpus") or ()]
    return " + ".join(parts)


def when(run: dict[str, Any]) -> str:
    """When a run was made, UTC, for people."""
    return str(run["created"]).removesuffix("Z").replace("T", " ")


def commit_of(machine: dict[str, Any], digits: int) -> str:
    """The commit of the checkout that was run, with its local changes told; empty where it is not known."""
    git = machine.get("git")
    return f"{git['commit'][:digits]}{' with local changes' if git.get('dirty') else ''}" if git else ""


def drop_cell(drop: float | None) -> str:
    """A loss of mIoU as `verify` shows it, a dash where there is none."""
    return DASH if drop is None else change(drop)
