"""The page's tables: one line an engine, and the IoU of every class."""

from collections.abc import Callable, Mapping, Sequence
from html import escape

from segmenter_bench.engines import TRUTH
from segmenter_bench.sections import Line, Section, drop_cell, times_head
from segmenter_bench.sheets import DASH, Cell, number, quantity
from segmenter_bench.timing import shown

FOLDED_CLASSES = 30  # longer tables of classes start folded
VISIBLE_LOSS = 0.02  # IoU below PyTorch's that is worth a frame


def results(lines: Sequence[Line], best: Line | None) -> str:
    columns: list[tuple[str, Callable[[Line], Cell]]] = [
        ("mIoU", lambda one: Cell(number(one.miou, ".4f"), one.accuracy)),
        ("vs PyTorch", lambda one: Cell(drop_cell(one.drop), one.accuracy)),
        ("pixels as PyTorch", lambda one: Cell(number(one.agreement, ".2%"), one.agreed)),
        ("images/s", lambda one: Cell(quantity(one.images_per_s, 4), one.speed)),
        *((f"{name} ms", _timing(f"ms_{name}")) for name in ("p50", "p90", "p99")),
        ("memory MB", lambda one: Cell(number(_megabytes(one), ",.0f"), one.speed)),
        ("J/image", _timing("joules_per_image")),
        (times_head(lines), lambda one: Cell(number(one.speedup, ".2f"), one.speed)),
    ]
    # a column nobody has a value for only takes room
    columns = [(title, cell) for title, cell in columns if any(cell(one).text != DASH for one in lines)]
    head = "".join(
        f'<th scope="col">{escape(title)}</th>' for title in ("engine", *(title for title, _ in columns), "verdict")
    )
    rows = []
    for one in lines:
        cells = "".join(_cell(title, cell(one), one) for title, cell in columns)
        mark = {"passed": "passed", "failed": "failed"}.get(one.verdict, "")
        chosen = " class=best" if best is not None and one.engine == best.engine else ""
        rows.append(
            f'<tr{chosen}><th scope="row"><code>{escape(one.engine)}</code></th>{cells}'
            f'<td class="{mark}" data-label="verdict">{one.verdict}</td></tr>'
        )
    why = "".join(
        f'<p class="why"><code>{escape(one.engine)}</code>: {escape("; ".join(one.faults))}</p>'
        for one in lines
        if one.faults
    )
    return f'<table class="results"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>{why}'


def _cell(title: str, cell: Cell, one: Line) -> str:
    nothing = " class=none" if cell.text == DASH else ""
    spread = one.spread if title.startswith("x ") and not nothing else None
    quartiles = f' <span class="spread">{spread[0]:.2f} to {spread[1]:.2f}</span>' if spread else ""
    return f'<td data-label="{escape(title)}"{nothing}>{cell.html}{quartiles}</td>'


def _timing(key: str) -> Callable[[Line], Cell]:
    def cell(one: Line) -> Cell:
        timing = one.speed and one.speed.get("timing")
        return Cell(quantity(shown(timing, key) if timing else None, 4), one.speed)

    return cell


def _megabytes(one: Line) -> float | None:
    held = one.speed.get("memory_bytes") if one.speed else None
    return held / 1e6 if held is not None else None


def heat(section: Section) -> str:
    run = section.of("miou")
    rows = [row for row, _ in section.judged.values() if row.get("iou")]
    if run is None or not rows:
        return ""
    classes, palette = section.model["classes"], section.model.get("palette", ())
    truth = next((row["iou"] for row in rows if row["engine"] == TRUTH), None)
    head = "".join(f'<th scope="col">{escape(row["engine"])}</th>' for row in rows)
    body = []
    for index, name in enumerate(classes):
        cells = []
        for row in rows:
            value = row["iou"][index]
            lower = value is not None and truth is not None and (truth[index] or 0.0) - value > VISIBLE_LOSS
            shade = f' style="--v:{value:.3f}"' if value is not None else ""
            cell = Cell(number(value, ".3f"), row).html
            cells.append(f"<td{' class=lower' if lower else ''}{shade}>{cell}</td>")
        body.append(f'<tr><th scope="row">{swatch(palette, index)}{escape(name)}</th>{"".join(cells)}</tr>')
    settings = run["settings"]
    hint = (
        f'<p class="hint">{escape(str(settings.get("dataset", "")))} {escape(str(settings.get("split", "")))},'
        f" {settings.get('images', '?')} images. A dash: the class occurs in neither truth nor labels. Framed: more"
        f" than {VISIBLE_LOSS} below PyTorch.</p>"
    )
    table = (
        f'<div class="scroll"><table class="heat"><thead><tr><th scope="col">class</th>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )
    is_open = " open" if len(classes) <= FOLDED_CLASSES else ""
    return (
        f'<section class="part"><details{is_open}><summary>IoU of each class</summary>{hint}{table}</details></section>'
    )


def missing(reasons: Mapping[str, Sequence[str]]) -> str:
    """A line a reason, with the engines it keeps from being measured; or nothing."""
    items = "".join(
        f"<li>{', '.join(f'<code>{escape(engine)}</code>' for engine in engines)}: {escape(reason)}</li>"
        for reason, engines in reasons.items()
    )
    return f'<ul class="missing">{items}</ul>' if items else ""


def swatch(palette: Sequence[Sequence[int]], index: int) -> str:
    if index >= len(palette):
        return ""
    red, green, blue = (int(value) for value in palette[index])
    return f'<span class="swatch" style="background:rgb({red} {green} {blue})"></span>'
