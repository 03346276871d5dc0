"""Runs as one HTML page that needs nothing else: no network, no script but the overlay's slider."""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from segmenter_bench.acceptance import Outcome
from segmenter_bench.origins import embedded
from segmenter_bench.page_figures import examples, figures
from segmenter_bench.page_hardware import hardware
from segmenter_bench.page_ladder import ladders
from segmenter_bench.page_tables import heat, missing, results
from segmenter_bench.provenance import told
from segmenter_bench.sections import OFFICIAL, Line, Section, by_reason, commit_of, drop_cell, machine_name, rounds_of
from segmenter_bench.sheets import Cell, Sheet, quantity
from segmenter_bench.timing import IN_PROCESSES

# what was timed besides the way from images to labels
REGIONS = {
    "network": (
        "The network alone",
        "From normalised images, or pixels where the engine takes those, to class masks on the patch grid.",
    ),
    "logits": ("By way of logits", "To labels by way of logits at image resolution, the long way; for its memory."),
}


def page(
    title: str,
    found: Sequence[Section],
    command: str,
    others: Sequence[dict[str, Any]] = (),
    steps: Sequence[Outcome] = (),
    promised: Sheet | None = None,
) -> str:
    """The whole document.

    command: what makes it again; others: runs that are of no network's engines; promised: a GPU's targets.
    """
    style = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")
    runs = [*(run for section in found for run in section.runs), *others]
    dates = sorted({run["created"][:10] for run in runs})
    machines = list(dict.fromkeys(machine_name(run["machine"]) for run in runs))
    body = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="meta">{escape(", ".join(dates))}. {escape("; ".join(machines))}.</p>',
        f'<section class="model">{_part(promised.title, promised.html)}</section>' if promised else "",
        *map(_section, found),
        _hardware(others, steps),
        _made_on(runs),
        _commands(runs, command),
        _part("Rows", embedded(runs)),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{style}</style></head><body><main>{''.join(body)}</main></body></html>\n"
    )


def _section(section: Section) -> str:
    model, batch = section.model, section.batches[0] if section.batches else None
    lines = section.lines(batch)
    weights = "trained" if model.get("trained") else "random weights"
    parts = [
        f"<h2>{escape(section.name)}</h2>",
        f'<p class="meta">{escape(section.size)} pixels, {len(model.get("classes", ()))} classes, {weights}</p>',
        _tiles(section),
        _notes(*section.speeds),
        figures(lines),
    ]
    sizes: list[int | None] = [*section.batches] or [None]
    for size in sizes:
        title = "Results" if len(section.batches) < 2 else f"Results, batch {size}"
        parts.append(_part(title, _table(section, size, "labels", section.best)))
    for region, (title, meaning) in REGIONS.items():
        if section.has_region(region):
            tables = "".join(_table(section, size, region, None) for size in section.batches)
            parts.append(_part(title, f'<p class="hint">{meaning}</p>{tables}'))
    parts += [
        _part("The ablation ladder", ladders(section)),
        heat(section),
        _part("The same pictures through every engine", examples(section)),
        _unavailable(section),
        _timed(section),
    ]
    return f'<section class="model">{"".join(parts)}</section>'


def _table(section: Section, batch: int | None, region: str, best: Line | None) -> str:
    apart = told(section, batch, region)
    hint = f'<p class="hint">{escape(apart)}</p>' if apart else ""
    return hint + results(section.lines(batch, region), best)


def _hardware(runs: Sequence[dict[str, Any]], steps: Sequence[Outcome]) -> str:
    parts = "".join(_part(sheet.title, sheet.html) for sheet in hardware(runs, steps))
    return f'<section class="model"><h2>The machine</h2>{parts}</section>' if parts else ""


def _part(title: str, inside: str) -> str:
    return f'<section class="part"><h3>{escape(title)}</h3>{inside}</section>' if inside else ""


def _tiles(section: Section) -> str:
    best = section.best
    tiles: list[tuple[Cell, str]] = []
    if best is not None:
        what = "fastest engine whose labels passed" if best.judged else "fastest engine"
        speed = Cell(quantity(best.images_per_s, 3) + " img/s", best.speed)
        tiles.append((speed, f"{best.engine}, {what}"))
        if best.speedup is not None:
            of = "the official implementation's way" if best.against == OFFICIAL else best.against
            way = f"{of}, same run, same threads"
            tiles.append((Cell(f"{best.speedup:.1f}x", best.speed), way))
        if best.miou is not None:
            fall = f"{drop_cell(best.drop)} vs PyTorch" if best.drop is not None else "of PyTorch itself"
            tiles.append((Cell(f"{best.miou:.4f}", best.accuracy), f"its mIoU, {fall}"))
    lines = section.lines(section.batches[0] if section.batches else None)
    to_judge = [one for one in lines if one.compared and (one.judged or one.faults)]
    faithful = [one for one in to_judge if one.verdict == "passed"]
    if faithful:
        alone = len(lines) - len(to_judge)
        others = f"; {alone} more {'is' if alone == 1 else 'are'} there for speed alone" if alone else ""
        told = f"engines whose labels were judged and passed{others}"
        tiles.append((Cell(f"{len(faithful)} of {len(to_judge)}"), told))
    inside = "".join(f'<div class="tile"><b>{big.html}</b><span>{escape(small)}</span></div>' for big, small in tiles)
    return f'<div class="tiles">{inside}</div>' if tiles else ""


def _unavailable(section: Section) -> str:
    return _part("Not measured here", missing(by_reason(section.unavailable)))


def _notes(*runs: dict[str, Any] | None) -> str:
    notes = dict.fromkeys(note for run in runs if run for note in run.get("notes", ()))
    return "".join(f'<p class="note">{escape(note)}</p>' for note in notes)


def _timed(section: Section) -> str:
    parts = [_notes(section.of("miou"))]
    for timed in section.speeds:
        settings = timed["settings"]
        pace = ""
        if {"burst_seconds", "warmup"} <= settings.keys():  # of a run of before they were written by all: not known
            pace = f" of at least {settings['burst_seconds']} s after {settings['warmup']} untimed calls"
        told = (
            f"{settings.get('threads', '?')} CPU threads for every engine. They take turns, {rounds_of(timed)} rounds"
            f"{pace}; images/s is the batch over the median call. {timed.get('how', IN_PROCESSES)}"
        )
        parts += [f'<p class="hint">{escape(meaning)}.</p>' for meaning in timed.get("timed", {}).values()]
        parts.append(f'<p class="hint">{escape(told)}</p>')
    return _part("What was timed", "".join(dict.fromkeys(parts)))


def _made_on(runs: Sequence[dict[str, Any]]) -> str:
    seen, parts = set(), []
    for run in runs:
        machine = run["machine"]
        facts = {**_machine_facts(machine)}
        key = str(sorted(facts.items()))
        if key not in seen:
            seen.add(key)
            items = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts.items())
            parts.append(f'<dl class="facts">{items}</dl>')
    return f'<section class="model">{_part("Machine and versions", "".join(parts))}</section>'


def _machine_facts(machine: dict[str, Any]) -> dict[str, str]:
    cpu = machine.get("cpu") or {}
    memory = machine.get("memory_bytes")
    facts = {
        "CPU": f"{cpu.get('model', 'unknown')}, {cpu.get('usable_cores', '?')} of {cpu.get('cores', '?')} cores",
        "instructions": ", ".join(cpu.get("flags") or ()) or "none of note",
        "memory": f"{memory / 2**30:.1f} GiB" if memory else "unknown",
        "GPU": "; ".join(_gpu(gpu) for gpu in machine.get("gpus") or ()) or "none",
        "system": f"{machine.get('system', 'unknown')}, Python {machine.get('python', '?')}",
        "packages": ", ".join(f"{name} {value}" for name, value in (machine.get("versions") or {}).items()),
    }
    if commit := commit_of(machine, 12):
        facts["commit"] = commit
    return facts


def _gpu(gpu: dict[str, Any]) -> str:
    memory = gpu.get("memory_bytes")
    parts = [str(gpu.get("name", "unnamed"))]
    parts += [f"{memory / 2**30:.0f} GiB"] if memory else []
    parts += [f"driver {gpu['driver']}"] if gpu.get("driver") else []
    return ", ".join(parts)


def _commands(runs: Sequence[dict[str, Any]], command: str) -> str:
    lines = list(dict.fromkeys([*(run["command"] for run in runs), command]))
    return _part("Commands", "".join(f"<pre>{escape(line)}</pre>" for line in lines))
