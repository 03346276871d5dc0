"""Runs put together for people: one section a network, one line an engine, speed and accuracy side by side."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from segmenter.errors import DataError
from segmenter_bench.sheets import DASH, Cell, markdown_of, number, quantity

Row = dict[str, Any]
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
        """Whether its labels were held to a limit at all; on random weights only fp32 engines are."""
        rows = [row for row in (self.accuracy, self.speed) if row]
        return any(row.get("agreement_limit") is not None for row in rows)

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
        found = [run for run in self.runs if run["kind"] == kind]
        return max(found, key=lambda run: run["created"]) if found else None

    @property
    def name(self) -> str:
        return str(self.model.get("name", "unnamed"))

    @property
    def size(self) -> str:
        return f"{self.model.get('height', '?')}x{self.model.get('width', '?')}"

    @property
    def batches(self) -> list[int]:
        return sorted({row["batch"] for row in self._rows("throughput") if row.get("region", "labels") == "labels"})

    def lines(self, batch: int | None, region: str = "labels") -> list[Line]:
        """Engines in the order of the table: those timed at `batch`, and at the first batch those only judged."""
        accuracy = {row["engine"]: row for row in self._rows("miou")} if region == "labels" else {}
        speed = {
            row["engine"]: row
            for row in self._rows("throughput")
            if row.get("batch") == batch and row.get("region", "labels") == region
        }
        names = dict.fromkeys([*speed, *(accuracy if batch in (None, *self.batches[:1]) else ())])
        settings = (self.of("throughput") or {}).get("settings", {})
        reference = speed.get(settings.get("reference", ""))
        return [Line(name, batch, speed.get(name), accuracy.get(name), reference, self.rounds) for name in names]

    @property
    def rounds(self) -> int:
        """Turns each engine had in the throughput run; of one that was cut, fewer than were planned."""
        planned = int((self.of("throughput") or {}).get("settings", {}).get("rounds", 0))
        return min([planned, *(len(row["rounds_ms"]) for row in self._rows("throughput") if row.get("rounds_ms"))])

    def has_region(self, region: str) -> bool:
        return any(row.get("region") == region for row in self._rows("throughput"))

    @property
    def unavailable(self) -> dict[str, str]:
        """Engines no run could open, with the reason."""
        found: dict[str, str] = {}
        for run in self.runs:
            found.update((one["engine"], one["reason"]) for one in run["unavailable"])
        opened = {row["engine"] for run in self.runs for row in run["rows"]}
        return {name: reason for name, reason in found.items() if name not in opened}

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

    def _rows(self, kind: str) -> list[Row]:
        run = self.of(kind)
        return list(run["rows"]) if run else []


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
    """Runs grouped by network (weights and image size), in the order they come; of two runs of a kind the newer counts.

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


def network_markdown(section: Section) -> str:
    """The table of a network, for a README."""
    run = section.of("throughput") or section.of("miou")
    assert run is not None
    return f"**{section.name}**, {section.size}, {machine_name(run['machine'])}\n\n{_markdown_table(section)}"


def _markdown_table(section: Section) -> str:
    batch = section.batches[0] if section.batches else None
    lines = section.lines(batch)
    columns = {
        "engine": [Cell(f"`{one.engine}`") for one in lines],
        "mIoU": [Cell(number(one.miou, ".4f"), one.accuracy) for one in lines],
        "pixels as PyTorch": [Cell(number(one.agreement, ".2%"), one.agreed) for one in lines],
        "images/s": [Cell(quantity(one.images_per_s, 3), one.speed) for one in lines],
        "p50 ms": [Cell(number(_ms(one), ",.1f"), one.speed) for one in lines],
        "x official": [Cell(number(one.speedup, ".1f"), one.speed) for one in lines],
        "verdict": [Cell(one.verdict) for one in lines],
    }
    kept = {title: cells for title, cells in columns.items() if any(cell.text != DASH for cell in cells)}
    return markdown_of(tuple(kept), list(zip(*kept.values(), strict=True)))


def _ms(line: Line) -> float | None:
    timing = line.speed and line.speed.get("timing")
    return timing["ms_p50"] if timing else None


def signed(drop: float | None) -> str:
    """A loss of mIoU as it is shown everywhere, engine minus PyTorch: -0.0031 where it lost, 0.0000 without a sign."""
    if drop is None:
        return DASH
    change = f"{-drop:+.4f}"
    return change[1:] if float(change) == 0 else change
