"""What the page says in tables, as Markdown: figures link to the lines of the JSON they were read from."""

from collections.abc import Sequence
from typing import Any

from segmenter_bench import ladder
from segmenter_bench.acceptance import Outcome
from segmenter_bench.origins import references
from segmenter_bench.page_hardware import hardware
from segmenter_bench.provenance import told
from segmenter_bench.sections import Line, Section, machine_name, times_head
from segmenter_bench.sheets import DASH, Cell, Sheet, markdown_of, number, quantity


def markdown(
    found: Sequence[Section],
    others: Sequence[dict[str, Any]] = (),
    steps: Sequence[Outcome] = (),
    promised: Sheet | None = None,
) -> str:
    """Tables: a GPU's targets, the steps, each network and what it could not measure, the hardware; never nothing."""
    sheets = hardware(others, steps)
    blocks = [promised.markdown] if promised else []
    blocks += [sheet.markdown for sheet in sheets if sheet.title == "Steps"]
    for section in found:
        blocks += [network_markdown(section), *(sheet.markdown for sheet in ladder.sheets(section))]
    blocks += [sheet.markdown for sheet in sheets if sheet.title != "Steps"]
    text = "\n\n".join(blocks or ["No runs yet."])
    links = references([*(run for section in found for run in section.runs), *others], text)
    return f"{text}\n\n{links}\n" if links else f"{text}\n"


def network_markdown(section: Section) -> str:
    """The table of a network, for a README."""
    run = section.of("throughput") or section.of("miou")
    assert run is not None
    apart = told(section, section.batches[0] if section.batches else None)
    table = f"**{section.name}**, {section.size}, {machine_name(run['machine'])}\n\n{_markdown_table(section)}"
    return f"{table}\n\n{apart}" if apart else table


def _markdown_table(section: Section) -> str:
    batch = section.batches[0] if section.batches else None
    lines = section.lines(batch)
    columns = {
        "engine": [Cell(f"`{one.engine}`") for one in lines],
        "mIoU": [Cell(number(one.miou, ".4f"), one.accuracy) for one in lines],
        "pixels as PyTorch": [Cell(number(one.agreement, ".2%"), one.agreed) for one in lines],
        "images/s": [Cell(quantity(one.images_per_s, 3), one.speed) for one in lines],
        "p50 ms": [Cell(number(_ms(one), ",.1f"), one.speed) for one in lines],
        times_head(lines): [Cell(number(one.speedup, ".1f"), one.speed) for one in lines],
        "verdict": [Cell(one.verdict) for one in lines],
    }
    kept = {title: cells for title, cells in columns.items() if any(cell.text != DASH for cell in cells)}
    return markdown_of(tuple(kept), list(zip(*kept.values(), strict=True)))


def _ms(line: Line) -> float | None:
    timing = line.speed and line.speed.get("timing")
    return timing["ms_p50"] if timing else None
