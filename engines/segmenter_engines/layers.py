"""`segmenter layers`: what a plan's layers are, from the report that `segmenter build` left beside it."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.table import Table

from segmenter.cli import run
from segmenter.errors import EngineError
from segmenter.files import atomic_path
from segmenter_engines.layer_report import LayerReport, read_report
from segmenter_engines.layers_page import page, reasons
from segmenter_engines.manifest import read_manifest


@dataclass(frozen=True)
class Options:
    """Say what a plan's layers are: what is fused, what only moves or converts data and why, precision by layer."""

    plan: Annotated[Path, tyro.conf.Positional]
    """The .plan, with the layer report that `segmenter build` wrote beside it."""
    all: bool = False
    """List every layer."""
    html: Path | None = None
    """Write the report as an HTML page here too."""
    strict: bool = False
    """Exit with 2 when something runs otherwise than the graph asks."""


def show_layers(options: Options) -> int:
    manifest = read_manifest(options.plan)
    if manifest.kind != "plan":
        raise EngineError(f"{options.plan}: is a graph; pass a plan, or build one with `segmenter build`")
    report = read_report(options.plan, manifest.sha256)
    console = Console()
    _summary(console, report)
    if options.all:
        _every_layer(console, report)
    if options.html is not None:
        with atomic_path(options.html) as temporary:
            temporary.write_text(page(report), encoding="utf-8")
    faults = report.faults()
    for fault in faults:
        console.print(f"slower than the graph asks: {fault}", style="red", markup=False)
    if faults and options.strict:
        raise EngineError(f"{options.plan}: {'; '.join(faults)}")
    if not faults:
        console.print("all runs as the graph asks")
    return 0


def _summary(console: Console, report: LayerReport) -> None:
    console.print(
        f"{report.plan}: {report.precision}, {report.engine} {report.version}, {len(report.layers)} layers, told by the"
        f" {report.source}",
        markup=False,
        soft_wrap=True,
    )
    console.print(f"{report.fused_attentions} of {report.attentions} attentions are one kernel")
    if report.plugins:
        told = ", ".join(f"{count} {op or 'of unknown ops'}" for op, count in report.plugins.most_common())
        console.print(f"plugins: {told}", soft_wrap=True)
    counts = report.counts()
    products = {name.removeprefix("products_"): count for name, count in counts.items() if name.startswith("products_")}
    console.print("products: " + ", ".join(f"{count} in {name}" for name, count in products.items()))
    kept = len(report.linears) - len(report.lost)
    console.print(f"{kept} of {len(report.linears)} linear layers run in the precision the graph says")
    table = Table("layers", "only move or convert data because they are")
    for count, reason in reasons(report):
        table.add_row(count, reason)
    console.print(table)
    for one in report.lost:
        ran = one.ran or "no product of its own"
        console.print(f"  {one.name}: asked {one.asked}, ran {ran}", markup=False, soft_wrap=True)


def _every_layer(console: Console, report: LayerReport) -> None:
    for layer in report.layers:
        sides = " -> ".join(
            ", ".join(f"{tensor.type}{list(tensor.shape)}" for tensor in tensors)
            for tensors in ((*layer.inputs, *layer.constants), layer.outputs)
        )
        what = layer.reason or layer.op or " ".join(layer.onnx)
        told = f"{layer.role:11} {layer.precision:5} {layer.name}  {sides}  {what}"
        console.print(told.rstrip(), markup=False, highlight=False, soft_wrap=True)


def main(argv: Sequence[str] | None = None) -> int:
    return run(show_layers, Options, argv)


if __name__ == "__main__":
    sys.exit(main())
