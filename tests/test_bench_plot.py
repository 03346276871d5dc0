"""Pictures of a report: plots that keep everything inside, and label maps."""

import itertools
import re

import numpy as np
import pytest

from segmenter_bench.examples import label_map
from segmenter_bench.plot import Mark, pareto, scatter


def test_the_pareto_front_is_what_nothing_beats():
    marks = [Mark(str(index), x, y, "other", "circle") for index, (x, y) in enumerate([(1, 5), (2, 5), (3, 4), (2, 3)])]
    assert [mark.label for mark in pareto(marks)] == ["1", "2"]


@pytest.mark.parametrize("points", [[(3.0, 0.5)], [(1e-3, 0.0), (1e4, 1.0)], [(2.0, 0.6)] * 9])
def test_plots_keep_everything_inside(points):
    marks = [Mark(f"engine-{index}", x, y, "other", "triangle") for index, (x, y) in enumerate(points)]
    svg = scatter(marks, 360, 300, reference=0.6)
    assert "nan" not in svg
    for value, limit in re.findall(r'\b(?:x|cx|x1|x2)="(-?[\d.]+)"()', svg):
        assert 0 <= float(value) <= 360, limit
    assert svg.count("<title>") == len(points)
    ticks = re.findall(r'class="tick"[^>]*>([^<]*)<', svg)
    assert len(ticks) >= 2


def labels_of(svg):
    """Extent of every label along x, by its text; an 11 px monospace letter is at most 6.7 px wide."""
    found = {}
    for x, anchor, text in re.findall(r'class="label" x="([\d.]+)" y="[\d.]+" text-anchor="(\w+)">([^<]*)<', svg):
        wide = 6.7 * len(text)
        start = float(x) - {"start": 0.0, "middle": wide / 2, "end": wide}[anchor]
        found[text] = start, start + wide
    return found


@pytest.mark.parametrize("crowd", [1, 9, 400])
@pytest.mark.parametrize("width", [360, 660])
def test_labels_stay_inside_the_plot_and_the_winner_has_one(width, crowd):
    marks = [Mark("an-engine-far-behind", 1.0, 0.5, "other", "circle")]
    marks += [Mark(f"engine-{index:03}-int8", 98 + index / crowd, 0.55, "other", "circle") for index in range(crowd)]
    marks += [Mark("failed-engine-int8", 105.0, 0.1, "other", "circle", failed=True)]
    marks += [
        Mark("openvino-bf16", 99.5, 0.551, "other", "diamond"),
        Mark("openvino-int8", 100.0, 0.549, "o", "square"),
    ]
    labels = labels_of(scatter(marks, width, 360, reference=0.55))
    assert "openvino-int8" in labels
    for text, (start, end) in labels.items():
        assert start >= 66, text
        assert end <= width - 18, text


def test_labels_beside_each_other_do_not_read_as_one():
    # the third and fourth would fit between their marks, end to end
    speeds = {"official": 3.82, "eager": 4.55, "compiled": 4.63, "onnxruntime-fp32": 8.85, "openvino-fp32": 9.69}
    marks = [Mark(name, x, 0.6981, "other", "circle") for name, x in (speeds | {"openvino-bf16": 16.69}).items()]
    marks += [Mark(name, x, 0.6967, "other", "circle") for name, x in (("onnx-int8", 13.99), ("openvino-int8", 21.44))]
    svg = scatter(marks, 660, 360, reference=0.6981)
    placed = re.findall(r'class="label" x="[\d.]+" y="([\d.]+)" text-anchor="\w+">([^<]*)<', svg)
    extents = labels_of(svg)
    assert len(placed) == len(marks)
    for (y, one), (other_y, other) in itertools.combinations(placed, 2):
        (start, end), (other_start, other_end) = extents[one], extents[other]
        if abs(float(y) - float(other_y)) < 10:
            assert other_start - end > 6.7 or start - other_end > 6.7, (one, other)


@pytest.mark.parametrize("width", [360, 660])
def test_the_front_runs_through_no_label_where_there_is_room(width):
    # each label's first place is right of its mark, on the line
    speeds = [(4.0, 0.602), (6.0, 0.601), (9.0, 0.6), (14.0, 0.599)]
    svg = scatter([Mark(f"engine-{x:g}", x, y, "other", "circle") for x, y in speeds], width, 360)
    points = re.search(r'class="front" points="([^"]*)"', svg)
    xs, ys = np.array([point.split(",") for point in points[1].split()], float).T
    labels = re.findall(r'class="label" x="([\d.]+)" y="([\d.]+)" text-anchor="(\w+)">([^<]*)<', svg)
    assert len(labels) == len(speeds)
    for _, y, _, text in labels:
        start, end = labels_of(svg)[text]
        across = np.linspace(max(start, xs[0]), min(end, xs[-1]), 200)  # empty of a label beside the front
        line = np.interp(across, xs, ys)
        inside = (across >= start) & (across <= end) & (line > float(y) - 10) & (line < float(y) + 2)
        assert not inside.any(), text


@pytest.mark.parametrize("classes", [3, 255, 300])
def test_label_maps_of_any_number_of_classes_become_pictures(classes):
    import base64
    import io

    from PIL import Image

    palette = [(index % 256, index // 256, 7) for index in range(classes)]
    labels = np.full((4, 6), classes, np.int32)
    labels[0, 0] = classes - 1
    url = label_map(labels, palette)
    picture = Image.open(io.BytesIO(base64.b64decode(url.removeprefix("data:image/png;base64,")))).convert("RGBA")
    assert picture.getpixel((0, 0)) == (*palette[-1], 255)
    assert picture.getpixel((5, 3))[3] == 0
