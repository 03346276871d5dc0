"""Where a figure comes from: each row of a report's runs knows its file and its place there, and figures link to it.

The page holds the rows as text: a link shows the row it goes to, without a script. In Markdown links go to the files.
"""

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from segmenter_bench.runs import read_run

Row = dict[str, Any]
Run = dict[str, Any]
KEY = "origin"  # of a row in memory; no file has it
_NUMBERS = re.compile(r"\[\n([^\[\]{}\"]*)\]")  # a list of nothing else, which goes on one line
LONGEST_LIST = 24  # items of a list that the page shows; times of single calls are thousands


@dataclass(frozen=True)
class Origin:
    """A row's file, relative to the report's folder, its index among the rows there, and its line where that is known.

    anchor: its id on the page.
    """

    file: str
    index: int
    line: int | None
    anchor: str


def read_runs(files: Sequence[Path], beside: Path) -> list[Run]:
    """Runs whose rows know where they come from; `beside` is the folder the report is written into.

    Raises DataError for a file that is none.
    """
    runs = []
    for number, file in enumerate(files):
        run = read_run(file)
        lines = _lines(file.read_text(encoding="utf-8"))
        place = Path(os.path.relpath(file.resolve(), beside.resolve())).as_posix()
        run["file"] = place
        for index, row in enumerate(run["rows"]):
            line = lines[index] if index < len(lines) else None
            row[KEY] = Origin(place, index, line, f"run{number}-row{index}")
        runs.append(run)
    return runs


def _lines(text: str) -> list[int]:
    """Line numbers, from 1, at which the rows begin in what `write_run` wrote; none for a file laid out otherwise."""
    lines = text.splitlines()
    if ' "rows": [' not in lines:
        return []
    start = lines.index(' "rows": [')
    return [number for number, line in enumerate(lines, 1) if number > start and line == "  {"]


def linked(row: Row | None, text: str) -> str:
    """HTML `text` as a link to the row it was read from."""
    origin = (row or {}).get(KEY)
    return text if origin is None else f'<a class="from" href="#{origin.anchor}">{text}</a>'


def linked_markdown(row: Row | None, text: str) -> str:
    """Markdown `text` as a link to the row in its file, by a reference that `references` defines."""
    origin = (row or {}).get(KEY)
    return text if origin is None else f"[{text}][{origin.anchor}]"


def references(runs: Sequence[Run], text: str) -> str:
    """Definitions of the references to rows in a Markdown text: file, line, and the row's index as the link's title."""
    found = [row[KEY] for run in runs for row in run["rows"] if KEY in row]
    lines = [
        f'[{one.anchor}]: {quote(one.file)}{"" if one.line is None else f"#L{one.line}"} "{one.file}, row {one.index}"'
        for one in found
        if f"][{one.anchor}]" in text
    ]
    return "\n".join(lines)


def embedded(runs: Sequence[Run]) -> str:
    """HTML of every row that knows where it comes from; only the one a link went to is shown, or all of a run."""
    parts = []
    for number, run in enumerate(runs):
        rows = [row for row in run["rows"] if KEY in row]
        if not rows:
            continue
        count = "1 row" if len(rows) == 1 else f"{len(rows)} rows"
        parts.append(
            f'<div class="rows" id="rows{number}"><p><a href="#rows{number}"><code>{escape(run["file"])}</code></a>:'
            f" {escape(run['kind'])}, {count}</p>{''.join(map(_row, rows))}</div>"
        )
    hint = (
        '<p class="hint">Figures on this page are links to the row of JSON they were read from; it is shown here. A'
        " file's name shows all of its rows. Of long lists the first values are shown, the files have them whole.</p>"
    )
    return hint + "".join(parts) if parts else ""


def _row(row: Row) -> str:
    origin: Origin = row[KEY]
    line = "" if origin.line is None else f", line {origin.line}"
    content = _shortened({key: value for key, value in row.items() if key != KEY})
    text = _NUMBERS.sub(
        lambda found: f"[{' '.join(found[1].split())}]", json.dumps(content, ensure_ascii=False, indent=1)
    )
    place = f"{escape(origin.file)}, row {origin.index} (counted from 0){line}"
    return f'<div class="row" id="{origin.anchor}"><p>{place}</p><pre>{escape(text)}</pre></div>'


def _shortened(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _shortened(item) for key, item in value.items()}
    if not isinstance(value, list):
        return value
    shown = [_shortened(item) for item in value[:LONGEST_LIST]]
    more = len(value) - len(shown)
    return [*shown, f"and {more} more in the file"] if more else shown
