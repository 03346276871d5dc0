"""What the reader of a race's rows must know: what their labels cannot show, and where and beside whom they ran."""

import math
from collections.abc import Sequence
from typing import Any

from segmenter_bench.engines import REFERENCE
from segmenter_bench.machine import busiest, busy_note

RANDOM_NOTE = (
    "Random weights: a random network has near ties at every pixel, so only fp32 engines are judged by agreement;"
    " 8 and 16 bit engines are judged on trained networks."
)


def notes_of(rows: Sequence[dict[str, Any]], trained: bool) -> list[str]:
    """What the reader of these rows must know, a line each; of a run that is cut too."""
    notes = [] if trained else [RANDOM_NOTE]
    if elsewhere := elsewhere_of(rows):
        notes.append(
            f"No ratio for {', '.join(elsewhere)}: not on the device {REFERENCE} ran on; how much faster one device is"
            " than another is no merit of an engine."
        )
    notes += placement_notes(rows)
    busy = busy_note(busiest(rows))
    return [*notes, busy] if busy else notes


def placement_notes(rows: Sequence[dict[str, Any]]) -> list[str]:
    """How rows are to be read that were timed while the cores moved, a line for each region and batch."""
    found: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for row in rows:
        if row.get("cores_moved") and row["timing"]:
            found.setdefault((row["region"], row["batch"]), []).append(row)
    return [_placement_note(f"{region}, batch {batch}", own) for (region, batch), own in found.items()]


def _placement_note(what: str, rows: Sequence[dict[str, Any]]) -> str:
    first = rows[0]
    start = f"The cores moved meanwhile, as a virtual machine's do ({what}): "
    if first["core_to_core_ns"] is None:
        return start + "they stayed equally far apart in too few rounds, so figures are of all rounds, and unsure."
    ns, rounds = first["core_to_core_ns"], len(first["rounds_ms"])
    counted = f"figures are of the {rounds} rounds in which a cache line took {ns:.0f} ns between them"
    if not first["other_placements"]:
        return f"{start}{counted}."
    other = first["other_placements"][0]
    changes = {row["engine"]: row["other_placements"][0]["timing"]["ms_p50"] / row["timing"]["ms_p50"] for row in rows}
    most = max(changes, key=lambda name: abs(math.log(changes[name])))
    return (
        f"{start}{counted}; in {len(other['rounds_ms'])} it took {other['core_to_core_ns']:.0f} ns, and {most}"
        f" {changes[most]:.2f} times as long."
    )


def elsewhere_of(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Engines that were timed and have no ratio because the reference ran on another device."""
    apart = (row for row in rows if row["timing"] and row["reference_device"] not in (None, row["device"]))
    return list(dict.fromkeys(row["engine"] for row in apart))
