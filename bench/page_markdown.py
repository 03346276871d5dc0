"""What the page says in tables, as Markdown: figures link to the lines of the JSON they were read from."""

from collections.abc import Sequence
from typing import Any

from segmenter_bench import ladder
from segmenter_bench.acceptance import Outcome
from segmenter_bench.origins import references
from segmenter_bench.page_hardware import hardware
from segmenter_bench.sections import Section, network_markdown
from segmenter_bench.sheets import Sheet


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
