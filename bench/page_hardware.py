"""The report's account of the hardware: what it can do, kernels and stages beside that, and an acceptance's steps."""

from collections.abc import Callable, Sequence
from typing import Any

from segmenter_bench.acceptance import LOGS, Outcome, log_name
from segmenter_bench.kernel_race import OURS, past
from segmenter_bench.sections import commit_of, when
from segmenter_bench.sheets import DASH, Cell, Sheet, number, quantity

Run = dict[str, Any]


def hardware(runs: Sequence[Run], steps: Sequence[Outcome]) -> list[Sheet]:
    """A table of each thing there is something to say of; of two runs of stages or checks the newer counts.

    Kernels of different GPUs, commits or types have tables of their own, and stages of whatever changes them.
    """
    ordered = sorted(runs, key=lambda run: run["created"])
    found = [_steps(steps)] if steps else []
    found += [_checks(group[-1]) for group in _grouped(ordered, "checks", _judged_on)]
    found += [_ceilings(run) for run in ordered if run["kind"] == "machine"]
    found += [_stages(group[-1]) for group in _grouped(ordered, "stages", _staged)]
    found += [_kernels(group) for group in _grouped(ordered, "kernels", _judged_on)]
    return [sheet for sheet in found if sheet.lines]


def _grouped(runs: Sequence[Run], kind: str, key: Callable[[Run], tuple[Any, ...]]) -> list[list[Run]]:
    groups: dict[tuple[Any, ...], list[Run]] = {}
    for run in runs:
        if run["kind"] == kind:
            groups.setdefault(key(run), []).append(run)
    return list(groups.values())


def _judged_on(run: Run) -> tuple[Any, ...]:
    """What kernels are kernels of: the GPU, the commit and, where they are timed, the type."""
    return run["model"]["name"], commit_of(run["machine"], 7), run["settings"].get("dtype")


def _staged(run: Run) -> tuple[Any, ...]:
    """What decides where the time of a network goes."""
    settings = ("batch", "ops", "dtype", "threads", "device")
    return *(run["model"][name] for name in ("name", "height", "width")), *(
        run["settings"].get(name) for name in settings
    )


def _made(runs: Sequence[Run]) -> str:
    """When runs of one commit were made, and that commit."""
    dates = [when(run) for run in (runs[0], runs[-1])]
    commit = commit_of(runs[0]["machine"], 7)
    return " to ".join(dict.fromkeys(dates)) + (f", commit {commit}" if commit else "")


def _steps(steps: Sequence[Outcome]) -> Sheet:
    lines = [
        (
            Cell(one.step, url=f"{LOGS}/{log_name(one.step)}" if one.seconds else ""),
            Cell(one.status, style="passed" if one.status == "ok" else "failed"),
            Cell(f"{one.seconds:.0f}"),
            Cell(one.reason or DASH),
        )
        for one in steps
    ]
    return Sheet("Steps", "", ("step", "outcome", "seconds", "reason"), lines)


def _ceilings(run: Run) -> Sheet:
    lines = [
        (Cell(row["type"]), Cell(quantity(row["tflops"], 3), row), Cell(quantity(row["gb_per_s"], 3), row))
        for row in run["rows"]
    ]
    hint = "A large matrix product at each type, and a large copy, read and written."
    title = f"Measured ceilings: {run['model']['name']}"
    return Sheet(title, hint, ("type", "TFLOP/s", "copy GB/s"), lines)


def _stages(run: Run) -> Sheet:
    model, settings = run["model"], run["settings"]
    limits = settings["ceilings"]
    threads = f", {settings['threads']} threads" if settings["device"] == "cpu" and "threads" in settings else ""
    sums = (
        f"{quantity(settings['stages_ms'], 4)} ms in sum, {quantity(settings['whole_ms'], 4)} ms without the profiler"
    )
    hint = (
        f"{model['height']}x{model['width']}, batch {settings['batch']}, {settings['dtype']}, {settings['ops']} ops on"
        f" {settings['device']}{threads}; {sums}. The bound is the larger of work at {quantity(limits['tflops'], 3)}"
        f" TFLOP/s and least traffic at {quantity(limits['gb_per_s'], 3)} GB/s."
    )
    lines = []
    for row in run["rows"]:
        texts = (
            quantity(row["ms"], 3),
            number(row["share_of_time"], ".1%"),
            quantity(row["flops"] / 1e9, 3),
            quantity(row["traffic_bytes"] / 1e6, 3),
            quantity(row["bound_ms"], 3),
            number(row["share_of_bound"], ".1%"),
        )
        lines.append((Cell(row["stage"]), *(Cell(text, row) for text in texts)))
    heads = ("stage", "ms", "of the time", "GFLOP", "MB", "bound ms", "of the bound")
    return Sheet(f"Where the time goes: {model['name']}", " ".join((hint, *run.get("notes", ()))), heads, lines)


def _checks(run: Run) -> Sheet:
    """A line an op and type, and one for each shape that is not right."""
    lines: list[tuple[Cell, ...]] = []
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in run["rows"]:
        groups.setdefault((row["op"], row["dtype"]), []).append(row)
    for (op, kind), rows in groups.items():
        right = [row for row in rows if row["status"] == "ok"]
        worst = max(right, key=lambda row: row["error"] / row["budget"], default=None)
        told = f"{worst['error'] / worst['budget']:.0%}" if worst else DASH
        verdict = Cell(f"{len(right)} of {len(rows)} right", style="passed" if len(right) == len(rows) else "failed")
        lines.append((Cell(op), Cell(kind), Cell(told, worst), verdict))
        wrong = [row for row in rows if row["status"] != "ok"]
        lines += [
            (Cell(row["shape"]), Cell(kind), Cell(DASH), Cell(f"{row['status']}: {row['reason']}")) for row in wrong
        ]
    asked = run["settings"]["asked"]
    judged = f"{len(run['rows'])} of {asked} shapes judged, each by its first and last image, against float64."
    hint = f"{judged} {_made([run])}."
    return Sheet(
        f"Kernels judged on {run['model']['name']}", hint, ("kernel", "type", "worst of budget", "verdict"), lines
    )


def _kernels(runs: Sequence[Run]) -> Sheet:
    lines = []
    for run in runs:
        fastest: dict[tuple[str, str], float] = {}
        for row in run["rows"]:
            if row["status"] == "ok" and row["provider"] != OURS:
                key = row["op"], row["shape"]
                fastest[key] = min(fastest.get(key, float("inf")), row["ms_p50"])
        for row in run["rows"]:
            rival, ours = fastest.get((row["op"], row["shape"])), row["provider"] == OURS
            times = rival / row["ms_p50"] if ours and row["ms_p50"] and rival else None
            texts = (
                number(row["ms_p50"], ",.4f"),
                number(row["tflops"], ",.0f"),
                number(row["gb_per_s"], ",.0f"),
                number(row["share"], ".0%"),
                number(times, ".2f"),
            )
            lines.append(
                (
                    Cell(f"{row['op']}, {row['shape']}"),
                    Cell(row["provider"], style="ours" if ours else ""),
                    *(Cell(text, row) for text in texts),
                    Cell("right" if row["status"] == "ok" else f"{row['status']}: {row['reason']}"),
                )
            )
    heads = ("kernel", "by", "ms", "TFLOP/s", "GB/s", "of the ceiling", "x best rival", "verdict")
    told = past([row for run in runs for row in run["rows"]])
    hint = " ".join(filter(None, (f"{runs[0]['settings']['dtype']}. {_made(runs)}.", told)))
    return Sheet(f"Kernels against their rivals: {runs[0]['model']['name']}", hint, heads, lines)
