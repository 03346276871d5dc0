"""Tables of the page and of its Markdown: cells of text, each with the row it was read from."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from html import escape
from typing import Any

from segmenter_bench.origins import linked, linked_markdown

DASH = "-"  # what is not known
LONGEST_FIGURE = 16  # letters; longer ones are words, broken into lines


@dataclass(frozen=True)
class Cell:
    """Plain text. row: what it was read from; style: CSS class; url: where it leads instead of the row."""

    text: str
    row: dict[str, Any] | None = None
    style: str = ""
    url: str = ""

    @property
    def html(self) -> str:
        text = escape(self.text)
        if self.style:
            text = f'<span class="{self.style}">{text}</span>'
        if self.url:
            return f'<a href="{escape(self.url)}">{text}</a>'
        return text if self.text == DASH else linked(self.row, text)

    @property
    def markdown(self) -> str:
        text = self.text.replace("|", "\\|").replace("\n", " ")
        return text if self.text == DASH else linked_markdown(self.row, text)


@dataclass(frozen=True)
class Sheet:
    """A titled table; the first cell of a line is its head."""

    title: str
    hint: str
    heads: Sequence[str]
    lines: Sequence[Sequence[Cell]]

    @property
    def html(self) -> str:
        wordy = [any(len(cell.text) > LONGEST_FIGURE for cell in column) for column in zip(*self.lines, strict=True)]
        kinds = ["words" if one else "figure" for one in wordy]
        head = "".join(
            f'<th scope="col" class="{kind}">{escape(title)}</th>'
            for title, kind in zip(self.heads, kinds, strict=True)
        )
        body = []
        for first, *others in self.lines:
            cells = "".join(
                f'<td data-label="{escape(title)}" class="{kind if cell.text != DASH else "none"}">{cell.html}</td>'
                for title, kind, cell in zip(self.heads[1:], kinds[1:], others, strict=True)
            )
            body.append(f'<tr><th scope="row">{first.html}</th>{cells}</tr>')
        hint = f'<p class="hint">{escape(self.hint)}</p>' if self.hint else ""
        return f'{hint}<table class="results"><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table>'

    @property
    def markdown(self) -> str:
        parts = [f"**{self.title}**", self.hint, markdown_of(self.heads, self.lines)]
        return "\n\n".join(part for part in parts if part)


def markdown_of(heads: Sequence[str], lines: Iterable[Sequence[Cell]]) -> str:
    """A Markdown table, numbers to the right."""
    rows = [list(heads), ["---", *["---:"] * (len(heads) - 1)], *([cell.markdown for cell in line] for line in lines)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def number(value: float | None, form: str) -> str:
    """Formatted, or a dash for what is not known."""
    return DASH if value is None else format(value, form)


def quantity(value: float | None, digits: int) -> str:
    """So many significant digits as people write them, 1,990 and 0.000120; a dash for what is not known."""
    if value is None:
        return DASH
    rounded = Decimal(f"{value:#.{digits}g}")
    return f"{rounded:,f}"
