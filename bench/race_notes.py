"""What the reader of a race's rows must know: what their labels cannot show, and where and beside whom they ran."""

from collections.abc import Sequence
from typing import Any

from segmenter_bench.engines import REFERENCE
from segmenter_bench.machine import busy_note

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
    busy = busy_note(busiest(rows))
    return [*notes, busy] if busy else notes


def elsewhere_of(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Engines that were timed and have no ratio because the reference ran on another device."""
    apart = (row for row in rows if row["timing"] and row["reference_device"] not in (None, row["device"]))
    return list(dict.fromkeys(row["engine"] for row in apart))


def busiest(rows: Sequence[dict[str, Any]]) -> float:
    """The largest share of the CPU cores others took while these rows were timed."""
    return max((row["others_busy"] or 0.0 for row in rows), default=0.0)
