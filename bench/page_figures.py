"""The page's pictures: the plot, the ladder, and the same photographs through every engine."""

from collections.abc import Sequence
from html import escape

from segmenter_bench.engines import TRUTH
from segmenter_bench.origins import linked
from segmenter_bench.page_tables import swatch
from segmenter_bench.plot import Mark, scatter, symbol
from segmenter_bench.sections import OFFICIAL, Line, Section, speedup_meaning, times_head

SHAPES = {"fp32": "circle", "fp16": "square", "bf16": "diamond", "int8": "triangle"}
FAMILIES = {
    "official": "official",
    "eager": "torch",
    "compiled": "torch",
    "gpu-kernels": "triton",
    "gpu": "torch",
    "triton": "triton",
    "onnxruntime": "onnxruntime",
    "openvino": "openvino",
    "tensorrt": "tensorrt",
}
FAMILY_NAMES = {"official": "official way", "torch": "PyTorch", "onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
FAMILY_NAMES |= {"tensorrt": "TensorRT", "triton": "our Triton kernels", "other": "other"}
IMAGES = ("data:image/png;base64,", "data:image/jpeg;base64,")


def family(engine: str) -> str:
    """CSS class of an engine's colour."""
    return next(
        (name for start, name in FAMILIES.items() if engine == start or engine.startswith(f"{start}-")), "other"
    )


def figures(lines: Sequence[Line]) -> str:
    figures = [figure for figure in (_scatter(lines), _ladder(lines)) if figure]
    return f'<div class="figures{" two" if len(figures) == 2 else ""}">{"".join(figures)}</div>' if figures else ""


def _scatter(lines: Sequence[Line]) -> str:
    marks = [
        Mark(
            one.engine,
            one.images_per_s,
            one.miou,
            family(one.engine),
            SHAPES.get(one.precision, "circle"),
            bool(one.faults),
            one.speed,
        )
        for one in lines
        if one.images_per_s is not None and one.miou is not None
    ]
    if not marks:
        return ""
    truth = next((one.miou for one in lines if one.engine == TRUTH), None)
    wide, narrow = scatter(marks, 660, 400, truth), scatter(marks, 360, 360, truth)
    plots = f'<div class="wide">{wide}</div><div class="narrow">{narrow}</div>'
    colours = list(dict.fromkeys(mark.style for mark in marks))
    shapes = [name for name in SHAPES if any(mark.shape == SHAPES[name] for mark in marks)]
    key = [(symbol("circle", 7, 7, f"mark {name}"), FAMILY_NAMES[name]) for name in colours]
    key += [(symbol(SHAPES[name], 7, 7, "mark shape"), name) for name in shapes]
    items = "".join(
        f'<li><svg viewBox="0 0 14 14" aria-hidden="true">{mark}</svg>{escape(name)}</li>' for mark, name in key
    )
    caption = (
        "Up and right is better. Line: the engines no other beats in both. Dashes: PyTorch's mIoU. Hollow: failed."
    )
    return (
        f"<figure><h3>mIoU against speed</h3>{plots}"
        f'<ul class="key">{items}</ul><figcaption class="hint">{caption}</figcaption></figure>'
    )


def _ladder(lines: Sequence[Line]) -> str:
    rungs = [(one, one.speedup) for one in lines if one.speedup is not None]
    if not rungs:
        return ""
    longest = max(value for _, value in rungs)
    rows = "".join(
        f'<div><span class="name"><code>{escape(one.engine)}</code></span><span class="track">'
        f'<span class="fill {family(one.engine)}" style="width:{100 * value / longest:.1f}%"></span></span>'
        f'<span class="value">{linked(one.speed, f"{value:.2f}x")}</span></div>'
        for one, value in rungs
    )
    # what a rival does is its own row's to say
    told = [
        (one.engine, one.speed["describe"].get("does")) for one, _ in rungs if one.speed and one.speed.get("describe")
    ]
    against = times_head(lines).removeprefix("x ")
    hint = f"<p>{escape(speedup_meaning(min(one.rounds for one, _ in rungs), against))}</p>"
    hint += "".join(f"<p><code>{escape(name)}</code>: {escape(does)}.</p>" for name, does in told if does)
    title = "the official way" if against == OFFICIAL else against
    return (
        f'<figure><h3>Times {escape(title)}</h3><div class="ladder">{rows}</div>'
        f'<figcaption class="hint">{hint}</figcaption></figure>'
    )


def examples(section: Section) -> str:
    run = section.of("miou")
    examples = run.get("examples", ()) if run else ()
    if run is None or not examples:
        return ""
    classes, palette = section.model["classes"], section.model.get("palette", ())
    legend = "".join(f"<li>{swatch(palette, index)}{escape(name)}</li>" for index, name in enumerate(classes))
    slider = (
        '<label class="slider">photo <input type="range" min="0" max="1" step="0.05" value="0.55"'
        " oninput=\"document.documentElement.style.setProperty('--alpha',this.value)\"> labels</label>"
    )
    shots = []
    for example in examples:
        photo = _image(example["photo"])
        tiles = [f'<figure><img src="{photo}" alt="photo"><figcaption>{escape(example["name"])}</figcaption></figure>']
        tiles.append(_shot(example["truth"], "truth", "truth"))
        rows = {row["engine"]: row for row in run["rows"]}
        for name, labels in example["labels"].items():
            share = example.get("agreement", {}).get(name)
            agreed = "" if share is None else f"<br>{linked(rows.get(name), f'{share:.2%}')} as PyTorch"
            caption = f"<code>{escape(name)}</code>{agreed}"
            tiles.append(_shot(labels, name, caption))
        shots.append(f'<div class="shots" style="--photo:url({photo})">{"".join(tiles)}</div>')
    return f'{slider}<ul class="classes">{legend}</ul>{"".join(shots)}'


def _shot(labels: str, name: str, caption: str) -> str:
    picture = f'<img src="{_image(labels)}" alt="labels of {escape(name)}">'
    return f'<figure><div class="stack">{picture}</div><figcaption>{caption}</figcaption></figure>'


def _image(url: str) -> str:
    """An embedded picture; anything that would be fetched is refused."""
    return escape(url) if url.startswith(IMAGES) else IMAGES[0]
