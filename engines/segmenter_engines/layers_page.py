"""A layer report as one HTML page that needs nothing else: no network, no script."""

from collections import Counter
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from segmenter_engines.layer_report import LayerReport
from segmenter_engines.layer_roles import Layer, Tensor

ROLES = {
    "attention": "attention in one kernel",
    "product": "matrix products, with what is fused to them",
    "convolution": "convolutions",
    "plugin": "plugins",
    "pointwise": "norms, activations and other arithmetic",
    "reformat": "layers that only move data, or add a bias on the way",
    "cast": "layers that only convert types",
    "host": "sizes worked out on the host",
}


def page(report: LayerReport) -> str:
    """The whole document."""
    style = Path(__file__).with_name("layers_page.css").read_text(encoding="utf-8")
    title = f"Layers of {report.plan}"
    body = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="meta">{escape(report.precision)}, {escape(report.engine)} {escape(report.version)}, told by the'
        f" {escape(report.source)}. Plan SHA-256 <code>{escape(report.sha256)}</code>.</p>",
        _tiles(report),
        _faults(report),
        "<h2>What the layers do</h2>",
        _table(("layers", "role"), _roles(report)),
        "<h2>Why layers that only move or convert data are there</h2>",
        _table(("layers", "reason"), reasons(report)),
        "<h2>Linear layers</h2>",
        '<p class="hint">Asked: what the graph says. Ran: the precision of the product.</p>',
        _linears(report),
        "<h2>Every layer, in order</h2>",
        _layers(report.layers),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{style}</style></head><body><main>{''.join(body)}</main></body></html>\n"
    )


def reasons(report: LayerReport) -> list[tuple[str, str]]:
    """(count, reason) of the layers that only move or convert data, most first."""
    found = Counter(layer.reason or "no known reason" for layer in (*report.of("reformat"), *report.of("cast")))
    return [(str(count), reason) for reason, count in found.most_common()]


def _roles(report: LayerReport) -> list[tuple[str, str]]:
    found = Counter(layer.role for layer in report.layers)
    return [(str(found[role]), meaning) for role, meaning in ROLES.items() if found[role]]


def _tiles(report: LayerReport) -> str:
    products = Counter(layer.precision for layer in report.of("product"))
    moved = len(report.of("reformat")) + len(report.of("cast"))
    tiles = [
        (f"{report.fused_attentions} of {report.attentions}", "attentions are one kernel"),
        *((str(count), f"products in {name}") for name, count in products.most_common()),
        *((str(count), f"plugins {op or 'of unknown ops'}") for op, count in report.plugins.most_common()),
        (str(moved), "layers only move or convert data"),
        (str(len(report.layers)), "layers"),
    ]
    inside = "".join(
        f'<div class="tile"><b>{escape(big)}</b><span>{escape(small)}</span></div>' for big, small in tiles
    )
    return f'<div class="tiles">{inside}</div>'


def _faults(report: LayerReport) -> str:
    if not report.faults():
        return '<p class="whole">All runs as the graph asks.</p>'
    return "".join(f'<p class="fault">Slower than the graph asks: {escape(fault)}.</p>' for fault in report.faults())


def _linears(report: LayerReport) -> str:
    lost = ' class="lost"'
    rows = "".join(
        f"<tr><td><code>{escape(one.name)}</code></td><td>{escape(one.asked)}</td>"
        f"<td{lost if one in report.lost else ''}>{escape(one.ran or 'no product of its own')}</td></tr>"
        for one in report.linears
    )
    return f'<div class="scroll"><table>{_head(("layer", "asked", "ran"))}<tbody>{rows}</tbody></table></div>'


def _layers(layers: Sequence[Layer]) -> str:
    rows = "".join(
        f"<tr><td>{escape(one.role)}</td><td>{escape(one.precision)}</td><td><code>{escape(one.name)}</code></td>"
        f"<td>{_tensors((*one.inputs, *one.constants))}</td><td>{_tensors(one.outputs)}</td>"
        f"<td>{escape(one.reason or one.op or ', '.join(one.onnx))}</td></tr>"
        for one in layers
    )
    head = _head(
        ("role", "precision", "layer", "inputs and constants", "outputs", "reason, op of a plugin, or ONNX nodes")
    )
    return (
        f"<details><summary>{len(layers)} layers</summary>"
        f'<div class="scroll"><table>{head}<tbody>{rows}</tbody></table></div></details>'
    )


def _tensors(tensors: Iterable[Tensor]) -> str:
    return "<br>".join(f"{escape(one.type)} {escape('x'.join(map(str, one.shape)))}" for one in tensors)


def _table(names: Sequence[str], rows: Iterable[tuple[str, str]]) -> str:
    inside = "".join(f'<tr><td class="number">{escape(count)}</td><td>{escape(text)}</td></tr>' for count, text in rows)
    return f'<div class="scroll"><table>{_head(names)}<tbody>{inside}</tbody></table></div>'


def _head(names: Sequence[str]) -> str:
    cells = "".join(f'<th scope="col">{escape(name)}</th>' for name in names)
    return f"<thead><tr>{cells}</tr></thead>"
