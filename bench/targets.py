"""What was promised of a GPU before any was measured, and what the runs of one show: met, missed, or not measured."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from segmenter.errors import DataError
from segmenter_bench.sections import Section
from segmenter_bench.sheets import DASH, Cell, Sheet

Row = dict[str, Any]
Run = dict[str, Any]
OURS = "triton"
BATCHES = (1, 8)
TOKENS = (197, 577, 785, 1025, 1174, 1601, 1750, 4097)  # Segmenter's, of `segmenter_kernels.workloads`
ATTENTION_RIVALS = ("sdpa-cudnn", "sdpa-flash")
UPSAMPLE_US = 10.0  # of one image, 150 classes at 512 x 512
COPY_SHARE = 0.85
BOUND_BY_MEMORY = ("patch_embed", "add_layernorm", "mask_scores")
NETWORK, COMPILED, FLOATS, EIGHT_BITS = "Seg-B-Mask/16", "compiled-fp16", "triton-fp16", ("triton-int8", "triton-fp8")
OVER_COMPILED, OVER_FLOATS = 1.3, 1.4
UNMEASURED = "not measured"
_RACED = (OURS, *ATTENTION_RIVALS)
_SHARE = f"{COPY_SHARE:.0%} of the copy"


@dataclass(frozen=True)
class Target:
    """One promise. found: what was measured, empty where nothing was; met: None where that does not decide it."""

    what: str
    wanted: str
    found: str = ""
    met: bool | None = None
    row: Row | None = None

    @property
    def verdict(self) -> str:
        return UNMEASURED if self.met is None else "met" if self.met else "missed"


def of_gpu(runs: Iterable[Run], sections: Iterable[Section]) -> bool:
    """Whether there is anything of a GPU among these, which alone is judged by targets."""
    rows = [row for section in sections for run in section.speeds for row in run["rows"]]
    return any(run["kind"] in ("kernels", "checks") for run in runs) or any(
        row.get("device", "cpu") != "cpu" for row in rows
    )


def targets(runs: Iterable[Run], sections: Iterable[Section]) -> list[Target]:
    """Every promise, judged by the newest rows there are. runs: those of kernels; others are passed over.

    Raises DataError for rows of more than one GPU: what one met says nothing of another.
    """
    sections = list(sections)
    kernels = [run for run in sorted(runs, key=lambda run: run["created"]) if run["kind"] == "kernels"]
    _require_one_gpu(kernels, sections)
    rows = {
        (row["op"], row["shape"], row["provider"]): (row, run["settings"]["ceilings"])
        for run in kernels
        for row in run["rows"]
        if row["dtype"] == "float16"
    }
    return [*_of_kernels(rows), *_of_networks([one for one in sections if one.name == NETWORK])]


def _require_one_gpu(kernels: Sequence[Run], sections: Sequence[Section]) -> None:
    networks = {row.get("device", "cpu") for section in sections for run in section.speeds for row in run["rows"]}
    gpus = {run["model"]["name"] for run in kernels} | (networks - {"cpu"})
    if len(gpus) > 1:
        raise DataError(f"runs of different GPUs ({'; '.join(sorted(gpus))}); make one report a machine")


def _of_kernels(rows: dict[tuple[str, str, str], tuple[Row, Any]]) -> list[Target]:
    found = []
    for N in TOKENS:
        for B in BATCHES:
            shape = f"{B} x {N}, 12 x 64"
            found.append(_attention(f"attention, {shape}", [rows.get(("attention", shape, one)) for one in _RACED]))
    for B in BATCHES:
        row, _ = rows.get(("upsample_argmax", f"{B} x 150 x 32 x 32 to 512 x 512", OURS), (None, None))
        what, wanted = f"upsample_argmax, 150 classes, 512 x 512, batch {B}", f"at most {UPSAMPLE_US:g} us an image"
        if row is None or not row["ms_p50"]:
            found.append(Target(what, wanted, _why(row)))
            continue
        us = 1e3 * row["ms_p50"] / B
        found.append(Target(what, wanted, f"{us:.1f} us", us <= UPSAMPLE_US, row))
    for op in BOUND_BY_MEMORY:
        ours = [one for (name, shape, by), one in rows.items() if (name, by) == (op, OURS) and "768" in shape]
        found += [_of_memory(op, *one) for one in ours] or [Target(f"{op}, width 768", _SHARE)]
    return found


def _attention(what: str, raced: Sequence[tuple[Row, Any] | None]) -> Target:
    wanted = f"as fast as {' and '.join(ATTENTION_RIVALS)}"
    ours, *rivals = (one[0] if one else None for one in raced)
    if ours is None or not ours["ms_p50"]:
        return Target(what, wanted, _why(ours))
    times = [rival["ms_p50"] / ours["ms_p50"] if rival and rival["ms_p50"] else None for rival in rivals]
    told = [
        f"{time:.2f} x {name}" if time else f"{name} {_why(rival) or UNMEASURED}"
        for name, rival, time in zip(ATTENTION_RIVALS, rivals, times, strict=True)
    ]
    decided = [time for time in times if time is not None]
    # one that is slower decides; one that could not be timed keeps it from being met
    met = False if any(time < 1.0 for time in decided) else True if len(decided) == len(times) else None
    return Target(what, wanted, ", ".join(told), met, ours)


def _of_memory(op: str, row: Row, ceilings: dict[str, Any]) -> Target:
    what = f"{op}, {row['shape']}"
    if not row["ms_p50"]:
        return Target(what, _SHARE, _why(row))
    copy = row["gb_per_s"] / ceilings["gb_per_s"]
    product = ceilings["tflops"].get("float")
    # the promise stands as it was made: of the copy, though where products take longer that is no bound that can be
    # reached. Both shares are shown
    share = max(copy, row["tflops"] / product) if product else copy
    told = f"{copy:.0%}" if share == copy else f"{copy:.0%}; {share:.0%} of its bound, which is the product"
    told += ", more than PyTorch's copy" if copy > 1.0 else ""
    return Target(what, _SHARE, told, copy >= COPY_SHARE, row)


def _of_networks(sections: Sequence[Section]) -> list[Target]:
    found = []
    pairs = [(FLOATS, COMPILED, OVER_COMPILED), *((name, FLOATS, OVER_FLOATS) for name in EIGHT_BITS)]
    for B in BATCHES:
        for name, than, least in pairs:
            what, wanted = f"{NETWORK}, {name}, batch {B}", f"{least:g} x {than}"
            runs = sorted((run for section in sections for run in section.speeds), key=lambda run: run["created"])
            found.append(_network(what, wanted, least, [_timed(run, (name, than), B) for run in runs]))
    return found


def _timed(run: Run, engines: Sequence[str], batch: int) -> list[Row | None]:
    rows = {
        row["engine"]: row for row in run["rows"] if row["batch"] == batch and row.get("region", "labels") == "labels"
    }
    return [rows.get(engine) for engine in engines]


def _network(what: str, wanted: str, least: float, runs: Sequence[Sequence[Row | None]]) -> Target:
    """By the newest run that timed both, for ratios are of one run; not where either has failed since.

    runs: the rows of ours and of its rival in each, the newest last.
    """
    for column in zip(*runs, strict=True):
        newest = next((row for row in reversed(column) if row is not None), None)
        if _why(newest):
            return Target(what, wanted, _why(newest))
    for ours, theirs in reversed(runs):
        if ours is not None and theirs is not None and ours["timing"] and theirs["timing"]:
            times = theirs["timing"]["ms_p50"] / ours["timing"]["ms_p50"]
            return Target(what, wanted, f"{times:.2f} x", times >= least, ours)
    return Target(what, wanted)


def _why(row: Row | None) -> str:
    return f"{row['status']}: {row['reason']}" if row is not None and row["status"] != "ok" else ""


def sheet(runs: Iterable[Run], sections: Iterable[Section]) -> Sheet | None:
    """The table of all targets, or None where no GPU was measured."""
    runs, sections = list(runs), list(sections)
    if not of_gpu(runs, sections):
        return None
    found = targets(runs, sections)
    styles = {"met": "passed", "missed": "failed", UNMEASURED: ""}
    lines = [
        (
            Cell(one.what),
            Cell(one.wanted),
            Cell(one.found or DASH, one.row),
            Cell(one.verdict, style=styles[one.verdict]),
        )
        for one in found
    ]
    counts = ", ".join(f"{sum(one.verdict == verdict for one in found)} {verdict}" for verdict in styles)
    return Sheet("Targets", f"{counts}.", ("target", "wanted", "measured", "verdict"), lines)
