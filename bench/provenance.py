"""What the reader of a table must know of the runs its rows are from: which, when, where, and whether of one file."""

from collections.abc import Mapping, Sequence
from typing import Any

from segmenter_bench.circumstances import instructions, same_machine
from segmenter_bench.sections import Section, commit_of, machine_name, of_one_file, times_of, when

Run = dict[str, Any]


def told(section: Section, batch: int | None, region: str = "labels") -> str:
    """Sentences on the rows of one table; empty for that of one speed run."""
    return " ".join([*_of_speed(section, batch, region), *_of_accuracy(section, batch, region)])


def _of_speed(section: Section, batch: int | None, region: str) -> list[str]:
    races = section.races(batch, region)
    if len(races) < 2:
        return []
    threads = {run["settings"].get("threads") for run, _ in races}
    each = []
    for run, engines in races:
        counted = f", {run['settings'].get('threads', '?')} threads" if len(threads) > 1 else ""
        each.append(f"{', '.join(engines)} ({_made(run, section)}{counted})")
    return [
        f"Raced apart, in {len(races)} runs: {'; '.join(each)}. How many times faster an engine is, is against the"
        f" {times_of(section.lines(batch, region))} of its own run; images/s of different runs are no race."
    ]


def _of_accuracy(section: Section, batch: int | None, region: str) -> list[str]:
    lines, judged = section.lines(batch, region), section.judged
    shown = {line.engine: judged[line.engine][1] for line in lines if line.accuracy}
    sentences = []
    if shown:
        settings = next(iter(shown.values()))["settings"]
        on = f"{settings.get('dataset', '?')} {settings.get('split', '?')}, {settings.get('images', '?')} images"
        sentences.append(f"mIoU is of {on}: {_each(shown, section)}{_of_the_race(section, batch, region)}.")
    if any(line.speed and line.accuracy and None in _files(line.speed, line.accuracy) for line in lines):
        sentences.append("Whether speed and mIoU are of the same engine files is not known of runs that noted none.")
    others = [
        line.engine
        for line in lines
        if region == "labels" and line.speed and line.engine in judged
        if not of_one_file(line.speed, judged[line.engine][0])
    ]
    if others:
        sentences.append(
            f"The mIoU of {', '.join(others)} is left out: it is of another engine file than was timed; judge and time"
            " the same folder."
        )
    return sentences


def _files(*rows: Mapping[str, Any]) -> Sequence[str | None]:
    return [row.get("sha256") for row in rows]


def _each(shown: Mapping[str, Run], section: Section) -> str:
    """When runs were made, with the engines of each where there are several."""
    engines: dict[str, list[str]] = {}
    for engine, run in shown.items():
        engines.setdefault(_made(run, section), []).append(engine)
    if len(engines) == 1:
        return next(iter(engines))
    return "; ".join(f"{', '.join(names)} ({made})" for made, names in engines.items())


def _of_the_race(section: Section, batch: int | None, region: str) -> str:
    """When the speeds beside were measured, where no other sentence says so."""
    races = section.races(batch, region)
    return f"; speed: {_made(races[0][0], section)}" if len(races) == 1 else ""


def _made(run: Run, section: Section) -> str:
    """When a run was made, of which commit and, where it is not that of the section's newest speeds, on what."""
    commit = commit_of(run["machine"], 7)
    parts = [when(run), *([f"commit {commit}"] if commit else [])]
    speeds = section.of("throughput")
    if speeds is not None and not same_machine(run, speeds):
        parts.append(
            f"{machine_name(run['machine'])} with {', '.join(sorted(instructions(run))) or 'no instructions of note'}"
        )
    return ", ".join(parts)
