"""A comparison of two speed runs for people: a table of the engines, and what else its reader must know."""

from segmenter_bench.comparison import Change, Comparison
from segmenter_bench.runs import table_of, wide_console
from segmenter_bench.sheets import DASH, quantity


def show(found: Comparison) -> None:
    """Print a comparison as a table on stdout; engines whose change is unsure are named in the last line."""
    console = wide_console()
    titles = ("baseline ms", "candidate ms", "baseline x", "candidate x", "change", "interval of these rounds")
    table = table_of(("engine", "region"), ("batch", *titles))
    table.add_column("verdict", no_wrap=True)
    for one in found.changes:
        cells = [quantity(ms, 4) for ms in one.ms]
        cells += [DASH if one.reference_ms is None else f"{value:.2f}" for value in (one.baseline, one.candidate)]
        cells += [f"{one.change:.2f}", f"{one.low:.2f} to {one.high:.2f}"]
        style = {"slower": "red", "faster": "green"}.get(one.verdict)
        table.add_row(one.engine, one.region, str(one.batch), *cells, one.verdict, style=style)
    console.print(table)
    for line in (*_references(found), *found.differences):
        console.print(line, style="dim", soft_wrap=True)
    for line in (*found.apart, *found.unlike):
        console.print(line, style="yellow", soft_wrap=True)
    for line in found.broken:
        console.print(line, style="red", soft_wrap=True)
    if found.unsure:
        told = (
            f"unsure: {_names(found.unsure)}; an interval knows the noise within a run and not from run to run: time"
            " both again, for longer"
        )
        console.print(told, style="yellow", soft_wrap=True)


def _references(found: Comparison) -> list[str]:
    """How the reference's own time changed, which every change by ratio rests on, and for which engines it is none."""
    places = {(one.batch, one.region, one.reference_ms): None for one in found.changes if one.reference_ms}
    lines = [
        f"{found.reference}, the reference, batch {batch}, {region}: {quantity(before, 4)} ms, now {quantity(now, 4)}:"
        f" {now / before:.2f} times as long"
        for batch, region, (before, now) in places
    ]
    if alone := [one for one in found.changes if one.reference_ms is None]:
        lines.append(f"by their own ms, as {found.reference} ran on another device: {_names(alone)}")
    return lines


def _names(changes: list[Change]) -> str:
    return ", ".join(f"{one.engine} (batch {one.batch})" for one in changes)
