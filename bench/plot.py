"""mIoU against images per second as an inline SVG that takes its colours from the page."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import pairwise
from typing import Any

from segmenter_bench.origins import linked
from segmenter_bench.sheets import quantity

CHAR, LINE = 6.8, 14  # advance and height of an 11 px label
GAP = 2 * CHAR  # between labels beside each other, which would read as one
NEAR = 20  # a label this close to its mark needs no line
_MARGIN = {"left": 66, "right": 18, "top": 16, "bottom": 44}
# around the mark, near before far: dx, dy, anchor
_PLACES = [
    (dx * far, dy * far + 4, anchor)
    for far in (1, 2, 3, 4, 5, 6)
    for dx, dy, anchor in (
        (11, 0, "start"),
        (-11, 0, "end"),
        (0, -14, "middle"),
        (0, 14, "middle"),
        (9, -11, "start"),
        (9, 11, "start"),
        (-9, -11, "end"),
        (-9, 11, "end"),
    )
]


@dataclass(frozen=True)
class Mark:
    """One engine. style: CSS class of its colour; shape: circle, square, diamond or triangle."""

    label: str
    x: float  # images per second
    y: float  # mIoU
    style: str
    shape: str
    failed: bool = False
    row: dict[str, Any] | None = field(default=None, compare=False)  # what its speed was read from


Point = tuple[float, float]
Box = tuple[float, float, float, float]  # left, top, right, bottom


def scatter(marks: Sequence[Mark], width: int, height: int, reference: float | None = None) -> str:
    """An SVG of `width` x `height` units: x logarithmic, the Pareto front drawn, labels inside the plot.

    Labels are kept apart where there is room and left out where there is none, but for that of the fastest sound mark.

    reference: mIoU to draw a dashed line at, PyTorch's.
    """
    left, right = _MARGIN["left"], width - _MARGIN["right"]
    top, bottom = _MARGIN["top"], height - _MARGIN["bottom"]
    low_x, high_x = _log_range([mark.x for mark in marks])
    values = [mark.y for mark in marks] + ([reference] if reference is not None else [])
    low_y, high_y = _range(values)

    def at(x: float, y: float) -> tuple[float, float]:
        share_x = (math.log10(x) - low_x) / (high_x - low_x)
        return left + share_x * (right - left), bottom - (y - low_y) / (high_y - low_y) * (bottom - top)

    parts = []
    for value in _log_ticks(low_x, high_x):
        px = at(value, low_y)[0]
        parts.append(f'<line class="grid" x1="{px:.1f}" y1="{top}" x2="{px:.1f}" y2="{bottom}"/>')
        tick = f"{value:,.0f}" if value >= 1 else f"{value:g}"
        parts.append(f'<text class="tick" x="{px:.1f}" y="{bottom + 17}" text-anchor="middle">{tick}</text>')
    for value in _ticks(low_y, high_y):
        py = at(10**low_x, value)[1]
        parts.append(f'<line class="grid" x1="{left}" y1="{py:.1f}" x2="{right}" y2="{py:.1f}"/>')
        parts.append(f'<text class="tick" x="{left - 7}" y="{py + 4:.1f}" text-anchor="end">{value:.4g}</text>')
    if reference is not None:
        py = at(10**low_x, reference)[1]
        parts.append(f'<line class="reference" x1="{left}" y1="{py:.1f}" x2="{right}" y2="{py:.1f}"/>')
    front = pareto([mark for mark in marks if not mark.failed])
    line = [at(mark.x, mark.y) for mark in front]
    if len(front) > 1:
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py in line)
        parts.append(f'<polyline class="front" points="{path}"/>')
    taken: list[Box] = [(px - 7, py - 7, px + 7, py + 7) for px, py in (at(mark.x, mark.y) for mark in marks)]
    frame = (left + 1, top - 10, right, bottom - 1)
    parts += [_symbol(mark, *at(mark.x, mark.y)) for mark in marks]
    # the fastest first and then the rest of the front: these must be read, and the early ones find room
    order = dict.fromkeys([*(mark for mark in front[::-1]), *marks])
    parts += [_label(mark, *at(mark.x, mark.y), taken, line, frame, mark in front[-1:]) for mark in order]
    middle_x, middle_y = (left + right) / 2, (top + bottom) / 2
    parts.append(
        f'<text class="axis" x="{middle_x:.0f}" y="{height - 6}" text-anchor="middle">images per second</text>'
    )
    parts.append(
        f'<text class="axis" transform="translate(12 {middle_y:.0f}) rotate(-90)" text-anchor="middle">mIoU</text>'
    )
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="mIoU against images per second, a mark an engine">'
        f"{''.join(parts)}</svg>"
    )


def pareto(marks: Sequence[Mark]) -> list[Mark]:
    """Marks no other mark beats in both speed and mIoU, slowest first."""
    front: list[Mark] = []
    for mark in sorted(marks, key=lambda mark: (-mark.x, -mark.y)):
        if not front or mark.y > front[-1].y:
            front.append(mark)
    return front[::-1]


def symbol(shape: str, x: float, y: float, style: str, title: str = "") -> str:
    """A mark of 12 units across as SVG."""
    inside = f"<title>{escape(title)}</title>" if title else ""
    if shape == "circle":
        return f'<circle class="{style}" cx="{x:.1f}" cy="{y:.1f}" r="6">{inside}</circle>'
    corners = {
        "square": ((-5.3, -5.3), (5.3, -5.3), (5.3, 5.3), (-5.3, 5.3)),
        "diamond": ((0, -7.2), (7.2, 0), (0, 7.2), (-7.2, 0)),
        "triangle": ((0, -6.8), (6.8, 5.2), (-6.8, 5.2)),
    }[shape]
    points = " ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in corners)
    return f'<polygon class="{style}" points="{points}">{inside}</polygon>'


def _symbol(mark: Mark, px: float, py: float) -> str:
    style = f"mark {mark.style}{' failed' if mark.failed else ''}"
    told = f"{mark.label}: {quantity(mark.x, 3)} images/s, mIoU {mark.y:.4f}"
    return linked(mark.row, symbol(mark.shape, px, py, style, told))


def _label(mark: Mark, px: float, py: float, taken: list[Box], line: Sequence[Point], frame: Box, always: bool) -> str:
    """The label at the first place that is free, off the front's `line` if one is, with a line to its mark when far.

    Where none is: nothing, or, with `always`, above the mark as far as the frame goes, over whatever is there.
    """
    wide = CHAR * len(mark.label)
    free: list[tuple[int, float, float, str, Box]] = []
    for dx, dy, anchor in _PLACES:
        x, y = px + dx, py + dy
        start = x - {"start": 0.0, "middle": wide / 2, "end": wide}[anchor]
        box = (start, y - LINE + 3, start + wide, y + 3)
        inside = box[0] >= frame[0] and box[1] >= frame[1] and box[2] <= frame[2] and box[3] <= frame[3]
        if inside and not any(_overlap(box, other) for other in taken):
            crossed = math.hypot(dx, dy - 4) >= NEAR and not _clear((px, py), (x, y - 4), taken)
            free.append((2 * _meets(line, box) + crossed, x, y, anchor, box))
    if free:
        # the nearest, rather off the front, and rather with a line that runs over nothing
        _, x, y, anchor, box = min(free, key=lambda place: place[0])
        taken.append((box[0] - GAP, box[1], box[2] + GAP, box[3]))
        text = f'<text class="label" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(mark.label)}</text>'
        if math.hypot(x - px, y - 4 - py) < NEAR:
            return text
        return f'<line class="leader" x1="{px:.1f}" y1="{py:.1f}" x2="{x:.1f}" y2="{y - 4:.1f}"/>{text}'
    if not always:
        return ""
    x, y = min(px + wide / 2, frame[2]), max(py - 10, frame[1] + LINE)
    taken.append((x - wide, y - LINE + 3, x, y + 3))
    return f'<text class="label" x="{x:.1f}" y="{y:.1f}" text-anchor="end">{escape(mark.label)}</text>'


def _meets(line: Sequence[Point], box: Box) -> bool:
    """Whether a line of straight parts runs through a box."""
    left, top, right, bottom = box
    for (x0, y0), (x1, y1) in pairwise(line):
        # the share of the part that lies between both pairs of sides
        first, last = 0.0, 1.0
        for start, step, low, high in ((x0, x1 - x0, left, right), (y0, y1 - y0, top, bottom)):
            if step:
                near, far = sorted(((low - start) / step, (high - start) / step))
                first, last = max(first, near), min(last, far)
            elif not low <= start <= high:
                last = -1.0
        if first <= last:
            return True
    return False


def _clear(start: Point, end: Point, taken: Sequence[Box]) -> bool:
    """Whether a line from a mark to its label runs over nothing but the mark."""
    (x0, y0), (x1, y1) = start, end
    steps = [(x0 + (x1 - x0) * step / 16, y0 + (y1 - y0) * step / 16) for step in range(17)]
    others = [box for box in taken if not _overlap(box, (x0 - 0.1, y0 - 0.1, x0 + 0.1, y0 + 0.1))]
    return not any(_overlap(box, (x, y, x, y)) for box in others for x, y in steps)


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _log_range(values: Sequence[float]) -> tuple[float, float]:
    low, high = math.log10(min(values)), math.log10(max(values))
    pad = max(0.08 * (high - low), 0.06)
    return low - pad, high + pad


def _log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 of each decade in range; every decade alone when that is enough."""
    decades = range(math.floor(low), math.ceil(high) + 1)
    steps = (1,) if high - low > 3 else (1, 2, 5)
    return [step * 10.0**power for power in decades for step in steps if low <= math.log10(step) + power <= high]


def _range(values: Sequence[float], smallest: float = 0.02) -> tuple[float, float]:
    """Padded, and never so narrow that rounding errors look like mountains."""
    low, high = min(values), max(values)
    middle, span = (low + high) / 2, max(1.3 * (high - low), smallest)
    return middle - span / 2, middle + span / 2


def _ticks(low: float, high: float) -> list[float]:
    """Round values, about five of them."""
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    return [step * index for index in range(math.ceil(low / step), math.floor(high / step) + 1)]
