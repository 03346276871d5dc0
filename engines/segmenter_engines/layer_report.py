"""What a builder made of a graph: every layer, what it does and in which precision, held against what was asked.

The text is the same from two sources: a plan's engine inspector, where the plan can be loaded, and the builder's log
where it cannot, as on a machine without a GPU. TensorRT's inspector is read as JSON, in the form of 10 and of 11.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segmenter.errors import EngineError
from segmenter_engines.layer_roles import Layer, Tensor, classify

if TYPE_CHECKING:  # reading a report needs no onnx
    from segmenter_engines.asked import Asked

FORMAT = 1
# what the runtimes call their types
TYPES = {
    "float": "fp32", "fp32": "fp32", "half": "fp16", "fp16": "fp16", "bfloat16": "bf16", "bf16": "bf16", "int8": "int8",
    "fp8": "fp8", "int32": "int32", "int64": "int64", "uint8": "uint8", "bool": "bool",
}  # fmt: skip


@dataclass(frozen=True)
class Ran:
    """A linear layer of the graph and how it runs."""

    name: str  # of the parameter: encoder.blocks.0.attn.qkv
    asked: str  # precision the graph says
    ran: str  # precision of the product, "" when no product names it


@dataclass(frozen=True)
class LayerReport:
    """Every layer of a plan, and the graph's linear layers and attentions beside them."""

    plan: str  # file name
    sha256: str  # of the plan
    engine: str
    version: str
    precision: str
    source: str  # "engine inspector" or "builder's log"
    attentions: int  # that the graph asks for
    linears: tuple[Ran, ...]
    layers: tuple[Layer, ...]
    format: int = FORMAT

    def of(self, role: str) -> tuple[Layer, ...]:
        return tuple(layer for layer in self.layers if layer.role == role)

    @property
    def fused_attentions(self) -> int:
        """Attentions that are one kernel: the runtime's own, or a plugin's."""
        return len(self.of("attention")) + self.plugins["SegmenterAttention"]

    @property
    def plugins(self) -> Counter[str]:
        """Plugins by their op."""
        return Counter(layer.op for layer in self.of("plugin"))

    @property
    def lost(self) -> tuple[Ran, ...]:
        """Linear layers that run in another precision than the graph says."""
        return tuple(linear for linear in self.linears if linear.ran != linear.asked)

    @property
    def unexplained(self) -> tuple[Layer, ...]:
        """Layers that only move or convert data, and nobody knows why."""
        return tuple(layer for layer in self.layers if layer.role in ("reformat", "cast") and not layer.reason)

    def counts(self) -> dict[str, int]:
        """Numbers for the manifest: layers, attentions, products by precision, layers that move or convert data."""
        products = Counter(f"products_{layer.precision}" for layer in self.of("product"))
        return {
            "total": len(self.layers),
            "attentions": self.attentions,
            "fused_attention": self.fused_attentions,
            **dict(sorted(products.items())),
            "plugins": len(self.of("plugin")),
            "reformat": len(self.of("reformat")),
            "cast": len(self.of("cast")),
            "unexplained": len(self.unexplained),
            "linears": len(self.linears),
            "linears_lost": len(self.lost),
        }

    def faults(self) -> tuple[str, ...]:
        """What is slower than the graph promises, a line each. An fp32 attention is never fused, and is no fault."""
        if not self.layers:
            return (f"the {self.source} tells of no layers",)
        found = []
        if self.precision != "fp32" and self.fused_attentions < self.attentions:
            found.append(f"{self.fused_attentions} of {self.attentions} attentions are one fused kernel")
        if self.lost:
            ran = Counter(f"{one.asked} in {one.ran or 'no product of its own'}" for one in self.lost)
            told = ", ".join(f"{count} {how}" for how, count in ran.items())
            found.append(f"{len(self.lost)} of {len(self.linears)} linear layers run otherwise than asked: {told}")
        floats = [layer for layer in self.of("product") if layer.precision == "fp32"]
        if self.precision != "fp32" and floats:
            found.append(f"{len(floats)} products run in fp32")
        if self.unexplained:
            found.append(f"{len(self.unexplained)} layers only move or convert data, for no known reason")
        return tuple(found)

    def text(self) -> str:
        """What its file holds."""
        return json.dumps(asdict(self), indent=1) + "\n"


def report_path(plan: Path) -> Path:
    """Where a plan's layer report lies."""
    return plan.with_name(plan.name + ".layers.json")


def page_path(plan: Path) -> Path:
    """Where it lies as an HTML page."""
    return plan.with_name(plan.name + ".layers.html")


def read_report(plan: Path, digest: str) -> LayerReport:
    """The layer report beside a plan. digest: the plan's SHA-256 as its manifest has it.

    Raises EngineError when there is none, it is not one, or it is of another plan.
    """
    path = report_path(plan)
    again = "build the plan again with `segmenter build`"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values["format"] != FORMAT:
            raise EngineError(f"{path}: layer report format {values['format']}, wanted {FORMAT}; {again}")
        values["linears"] = tuple(Ran(**one) for one in values["linears"])
        values["layers"] = tuple(_layer(one) for one in values["layers"])
        report = LayerReport(**values)
    except FileNotFoundError as error:
        raise EngineError(f"{plan}: no layer report {path.name} beside it; {again}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise EngineError(f"{path}: not a layer report ({type(error).__name__}: {error}); {again}") from error
    if report.sha256 != digest:
        raise EngineError(f"{path}: is of another plan than {plan.name} (SHA-256 differs); {again}")
    return report


def _layer(values: dict[str, Any]) -> Layer:
    tensors = {
        key: tuple(Tensor(one["name"], tuple(one["shape"]), one["type"]) for one in values[key])
        for key in ("inputs", "constants", "outputs")
    }
    return Layer(**{**values, **tensors, "onnx": tuple(values["onnx"])})


def with_ops(wanted: "Asked", layers: Iterable[Layer]) -> tuple[Layer, ...]:
    """The same layers, plugins with the op each is: by the ONNX node it names, or is named after."""
    return tuple(
        replace(
            layer, op=next((wanted.plugins[node] for node in (*layer.onnx, layer.name) if node in wanted.plugins), "")
        )
        if layer.role == "plugin"
        else layer
        for layer in layers
    )


def linears_of(wanted: "Asked", layers: Sequence[Layer]) -> tuple[Ran, ...]:
    """How each linear layer of a graph runs, by the ONNX nodes that its products name."""
    ran: dict[str, set[str]] = {}
    for layer in layers:
        if layer.role == "product":
            for node in layer.onnx:
                ran.setdefault(re.sub(r"/\d+$", "", node), set()).add(layer.precision)  # parts of a split product
    return tuple(
        Ran(linear.name, linear.precision, "+".join(sorted(ran.get(linear.node, ())))) for linear in wanted.linears
    )


def layers_in_text(lines: Iterable[str], inputs: Sequence[str], outputs: Sequence[str]) -> tuple[Layer, ...]:
    """Layers of an inspector's text or a builder's log; other lines are passed over. inputs, outputs: of the graph."""
    found = []
    for line in lines:
        head = re.match(r"Name: (.*?), LayerType: ([^,]*)", line)
        if head is not None:
            found.append(
                Layer(
                    name=head[1],
                    kind=head[2],
                    inputs=_tensors(line, "Inputs"),
                    constants=_tensors(line, "Constants"),
                    outputs=_tensors(line, "Outputs"),
                    onnx=_nodes(line.rpartition("Metadata: ")[2]),
                )
            )
    return classify(found, inputs, outputs)


def layers_in_json(text: str, inputs: Sequence[str], outputs: Sequence[str]) -> tuple[Layer, ...]:
    """Layers of an inspector's JSON; () where it holds their names alone, as a plan built without details does."""
    entries = json.loads(text).get("Layers", [])
    if not all(isinstance(entry, dict) for entry in entries):
        return ()
    found = [
        Layer(
            name=str(entry.get("Name", "")),
            kind=str(entry.get("LayerType", "")),
            inputs=tuple(map(_json_tensor, entry.get("Inputs", ()))),
            constants=tuple(map(_json_tensor, entry.get("Constants", ()))),
            outputs=tuple(map(_json_tensor, entry.get("Outputs", ()))),
            onnx=_nodes(str(entry.get("Metadata", ""))),
        )
        for entry in entries
    ]
    return classify(found, inputs, outputs)


def _tensors(line: str, side: str) -> tuple[Tensor, ...]:
    # shapes and strides are brackets of their own inside
    block = re.search(rf"{side}: \[((?:[^\[\]]|\[[^\]]*\])*)\]", line)
    if block is None:
        return ()
    return tuple(
        Tensor(found[1], _shape(found[2]), type_name(found[3]))
        for found in re.finditer(r"\{ ?Name: (.*?), .*?Dimensions: \[(.*?)\].*?[Dd]ata[Tt]ype: ([^,}]*)", block[0])
    )


def _json_tensor(entry: dict[str, Any]) -> Tensor:
    kind = entry.get("DataType") or entry.get("Datatype") or entry.get("Format/Datatype") or ""
    return Tensor(str(entry.get("Name", "")), tuple(entry.get("Dimensions", ())), type_name(str(kind)))


def _shape(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(",") if part.strip())


def type_name(said: str) -> str:
    """fp16 of Half, or of "Row major linear FP16 format"; what is not known stays as it was said."""
    words = [TYPES[word] for word in re.findall(r"\w+", said.lower()) if word in TYPES]
    return words[0] if words else said.strip()


def _nodes(metadata: str) -> tuple[str, ...]:
    return tuple(re.findall(r"\[ONNX Layer: (.*?)\]", metadata))
