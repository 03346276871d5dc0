"""The page's account of the hardware: what it can do, kernels and stages beside that, and an acceptance's steps."""

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from segmenter_bench.acceptance import LOGS, Outcome, log_name
from segmenter_bench.sections import DASH, number

Run = dict[str, Any]
OURS = "triton"


def table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Cells that are HTML already; the first of a row is its head."""
    head = "".join(f'<th scope="col">{escape(title)}</th>' for title in titles)
    body = []
    for first, *others in rows:
        cells = "".join(
            f'<td data-label="{escape(title)}"{" class=none" if cell == DASH else ""}>{cell}</td>'
            for title, cell in zip(titles[1:], others, strict=True)
        )
        body.append(f'<tr><th scope="row">{first}</th>{cells}</tr>')
    return f'<table class="results"><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table>'


def hardware(runs: Sequence[Run], steps: Sequence[Outcome]) -> list[tuple[str, str]]:
    """Title and content of each part there is something to say in."""
    parts = [("Steps", _steps(steps))]
    newest: dict[tuple[str, str], Run] = {}
    for run in sorted(runs, key=lambda run: run["created"]):
        key = (
            f"{run['model']['name']} {run['settings'].get('batch', '')}" if run["kind"] == "stages" else run["created"]
        )
        newest[run["kind"], key] = run
    kernels = []
    for (kind, _), run in newest.items():
        if kind == "machine":
            parts.append((f"Measured ceilings: {run['model']['name']}", _ceilings(run)))
        elif kind == "stages":
            parts.append((f"Where the time goes: {run['model']['name']}", _stages(run)))
        elif kind == "kernels":
            kernels.append(run)
    if kernels:
        parts.append((f"Kernels against their rivals: {kernels[0]['model']['name']}", _kernels(kernels)))
    return [(title, content) for title, content in parts if content]


def _steps(steps: Sequence[Outcome]) -> str:
    if not steps:
        return ""
    rows = [
        (
            f'<a href="{LOGS}/{log_name(one.step)}">{escape(one.step)}</a>' if one.seconds else escape(one.step),
            f'<span class="{"passed" if one.status == "ok" else "failed"}">{one.status}</span>',
            f"{one.seconds:.0f}",
            escape(one.reason or "") or DASH,
        )
        for one in steps
    ]
    return table(("step", "outcome", "seconds", "reason"), rows)


def _ceilings(run: Run) -> str:
    rows = [(row["type"], number(row["tflops"], ".3g"), number(row["gb_per_s"], ".3g")) for row in run["rows"]]
    hint = '<p class="hint">A large matrix product at each type, and a large copy, read and written.</p>'
    return hint + table(("type", "TFLOP/s", "copy GB/s"), rows)


def _stages(run: Run) -> str:
    model, settings = run["model"], run["settings"]
    limits = settings["ceilings"]
    hint = (
        f"{model['height']}x{model['width']}, batch {settings['batch']}, {settings['dtype']}, {settings['ops']} ops on"
        f" {settings['device']}; {settings['stages_ms']:.4g} ms in sum, {settings['whole_ms']:.4g} ms without the"
        f" profiler. The bound is the larger of work at {limits['tflops']:.3g} TFLOP/s and least traffic at"
        f" {limits['gb_per_s']:.3g} GB/s."
    )
    rows = [
        (
            escape(row["stage"]),
            number(row["ms"], ".3g"),
            number(row["share_of_time"], ".1%"),
            number(row["flops"] / 1e9, ".3g"),
            number(row["traffic_bytes"] / 1e6, ".3g"),
            number(row["bound_ms"], ".3g"),
            number(row["share_of_bound"], ".1%"),
        )
        for row in run["rows"]
    ]
    titles = ("stage", "ms", "of the time", "GFLOP", "MB", "bound ms", "of the bound")
    return f'<p class="hint">{escape(hint)}</p>' + table(titles, rows)


def _kernels(runs: Sequence[Run]) -> str:
    rows = []
    for run in runs:
        fastest: dict[tuple[str, str], float] = {}
        for row in run["rows"]:
            if row["status"] == "ok" and row["provider"] != OURS:
                key = row["op"], row["shape"]
                fastest[key] = min(fastest.get(key, float("inf")), row["ms_p50"])
        for row in run["rows"]:
            rival = fastest.get((row["op"], row["shape"]))
            times = rival / row["ms_p50"] if row["provider"] == OURS and row["ms_p50"] and rival else None
            name = f"{escape(row['op'])}, {escape(row['shape'])}"
            cells = [
                number(row[key], form) for key, form in (("ms_p50", ".4f"), ("tflops", ".0f"), ("gb_per_s", ".0f"))
            ]
            provider = f"<b>{escape(row['provider'])}</b>" if row["provider"] == OURS else escape(row["provider"])
            share = number(row["share"], ".0%")
            verdict = "right" if row["status"] == "ok" else escape(f"{row['status']}: {row['reason']}")
            rows.append((name, provider, *cells, share, number(times, ".2f"), verdict))
    titles = ("kernel", "by", "ms", "TFLOP/s", "GB/s", "of the ceiling", "x best rival", "verdict")
    return table(titles, rows)
