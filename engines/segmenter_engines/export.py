"""Checkpoint to ONNX: one graph, its precision in its tensors, labels at image resolution.

Two lowerings: `native` is standard ONNX ops, which every runtime reads; `plugin` keeps the fused ops as nodes of domain
`segmenter` (defined in `segmenter_kernels.onnx_ops`), for a runtime that has their plugins.
"""

import copy
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Annotated, Literal

import onnx
import torch
import tyro

from segmenter import load_model
from segmenter.cli import run
from segmenter.errors import EngineError
from segmenter.files import require_writable, sha256
from segmenter.model import Segmenter
from segmenter.option import ANY_CHECKPOINT
from segmenter_engines.graph import OUTPUTS, Graph, Span
from segmenter_engines.graph_file import write_graph
from segmenter_engines.manifest import (
    NORMALIZED,
    PIXELS,
    Manifest,
    command_line,
    machine_name,
    require_rgb,
    versions_of,
    vouched,
    weights_of,
)
from segmenter_engines.manifest_fields import MAX_BATCH, MAX_SIDE
from segmenter_engines.trace import Translations, trace

FLOATS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
LOWERINGS = ("native", "plugin")
INPUTS = (NORMALIZED, PIXELS)
PLUGIN_DOMAIN = "segmenter"
USUAL_BATCH = 64  # largest of a graph where nothing else is asked
MAX_CLASSES = 32767  # labels of more than 256 classes are int16

Sides = int | tuple[int, int, int]  # of fixed size, or smallest, usual and largest


def export(
    checkpoint: Path | str | Segmenter,
    out: Path | str,
    *,
    height: Sides | None = None,
    width: Sides | None = None,
    batch: Sides = (1, 1, USUAL_BATCH),
    precision: Literal["fp32", "fp16", "bf16"] = "fp32",
    input: Literal["normalized", "pixels"] = "normalized",
    outputs: Sequence[str] = ("labels", "masks"),
    lowering: Literal["native", "plugin"] = "native",
) -> Manifest:
    """Write a network as ONNX, with its manifest beside it.

    height, width, batch: one number each, or a range (min, opt, max); sides are pixels, those the checkpoint was
    trained at when None. Sides that are no multiple of the patch are padded and cropped inside the graph. A range of
    sides costs the resizing of position embeddings in every call, which a fixed size has done before.
    input: the graph takes `images`, `normalized` float32 [B, 3, H, W], or `pixels`, uint8 RGB [B, H, W, 3].
    outputs: `labels` uint8 [B, H, W] (int16 when K > 256) and `masks` float32 [B, K, h, w] on the patch grid are always
    among them; `logits` float32 [B, K, H, W] and `confidence` float32 [B, H, W], the softmax probability of the winning
    class, when asked. precision: type of weights and activations; inputs and outputs stay as above.
    lowering: see the module; `plugin` needs the package triton.
    Raises CheckpointError for the checkpoint, EngineError, naming it, for what cannot be exported,
    OSError naming `out` where no file can be put there.
    """
    out = Path(out)
    if out.suffix != ".onnx":
        raise EngineError(f"{out}: an exported graph is named *.onnx; pass such a name")
    require_writable(out)
    if precision not in FLOATS:
        raise EngineError(
            f"precision {precision!r}: export knows {', '.join(FLOATS)}; for int8 use `segmenter quantize`"
        )
    if lowering not in LOWERINGS:
        raise EngineError(f"lowering {lowering!r}: export knows {' and '.join(LOWERINGS)}")
    if input not in INPUTS:
        raise EngineError(f"input {input!r}: export knows {' and '.join(INPUTS)}")
    outputs = _outputs(outputs)
    ops, table = _plugins() if lowering == "plugin" else (None, {})
    model = _loaded(checkpoint, ops)
    config = model.config
    require_rgb(config)
    if config.num_classes > MAX_CLASSES:
        raise EngineError(f"{config.num_classes} classes: labels are int16, which ends at {MAX_CLASSES}; merge classes")
    P, trained = config.encoder.patch_size, config.encoder.image_size
    sides = f"smaller than one {P} pixel patch; enlarge it"
    heights = _span("height", trained[0] if height is None else height, P, MAX_SIDE, sides)
    widths = _span("width", trained[1] if width is None else width, P, MAX_SIDE, sides)
    batches = _span("batch", batch, 1, MAX_BATCH, "wanted at least 1")
    model.eval().fold_layer_scale()
    preprocess = config.preprocess if input == PIXELS else None
    module = Graph(model, FLOATS[precision], outputs, heights, widths, preprocess, scaled=lowering == "plugin")
    graph = trace(module, batches, heights, widths, table)
    manifest = Manifest(
        artifact=out.name,
        kind="onnx",
        engine="any",
        precision=precision,
        sha256="",
        source={"checkpoint": _source(checkpoint)},
        model=config.name,
        patch_size=P,
        input=input,
        height=heights,
        width=widths,
        batch=batches,
        outputs=outputs,
        classes=config.classes,
        palette=config.palette,
        preprocess=config.preprocess,
        command=command_line(),
        versions=versions_of("onnx", "onnxscript", "onnxslim"),
        machine=machine_name(),
        plugins=tuple(sorted({node.op_type for node in graph.graph.node if node.domain == PLUGIN_DOMAIN})),
        details={"opset": _opset(graph), "nodes": len(graph.graph.node)},
    )
    return write_graph(graph, manifest, out)


def _outputs(wanted: Sequence[str]) -> tuple[str, ...]:
    """Those wanted, in the graph's order. Raises EngineError for one it does not have or cannot be without."""
    unknown = [name for name in wanted if name not in OUTPUTS]
    if unknown:
        raise EngineError(f"output {unknown[0]!r}: export knows {', '.join(OUTPUTS)}")
    for name, reason in (("labels", "that is what a graph is for"), ("masks", "engines make labels from them")):
        if name not in wanted:
            raise EngineError(f"outputs {' '.join(wanted) or 'none'}: {name} cannot be left out, {reason}; add it")
    return tuple(name for name in OUTPUTS if name in wanted)


def _span(name: str, value: Sides, least: int, most: int, otherwise: str) -> Span:
    """`value` as (min, opt, max).

    Raises EngineError for an unordered one, one that begins below `least` (told as `otherwise`), or ends past `most`.
    """
    numbers = tuple(value) if isinstance(value, Sequence) else (value, value, value)
    told = f"{name} {' '.join(map(str, dict.fromkeys(numbers)))}"
    if len(numbers) != 3 or not all(isinstance(number, int) for number in numbers):
        raise EngineError(f"{told}: wanted one whole number, or three: smallest, usual, largest")
    smallest, usual, largest = numbers
    if smallest < least:
        raise EngineError(f"{told}: {otherwise}")
    if not smallest <= usual <= largest:
        raise EngineError(f"{told}: wanted smallest <= usual <= largest, in that order")
    if largest > most:
        raise EngineError(f"{told}: wanted at most {most}")
    return smallest, usual, largest


def _plugins() -> tuple[ModuleType, Translations]:
    """The ops that a traced graph keeps whole, and how each is written in ONNX."""
    from segmenter_kernels import library, onnx_ops

    return library, onnx_ops.translations()


def _loaded(checkpoint: Path | str | Segmenter, ops: ModuleType | None) -> Segmenter:
    if not isinstance(checkpoint, Segmenter):
        return load_model(checkpoint, ops=ops)
    if ops is None:
        return copy.deepcopy(checkpoint)
    model = Segmenter(checkpoint.config, ops)
    if all(block.ls1 is None for block in checkpoint.encoder.blocks):
        model.fold_layer_scale()
    model.load_state_dict(checkpoint.state_dict())
    return model


def _opset(graph: onnx.ModelProto) -> int:
    return next(entry.version for entry in graph.opset_import if entry.domain == "")


def _source(checkpoint: Path | str | Segmenter) -> str:
    if isinstance(checkpoint, Segmenter):
        return "a network in memory"
    return vouched(sha256(weights_of(Path(checkpoint))))


@dataclass(frozen=True)
class Options:
    """Export a checkpoint to ONNX."""

    checkpoint: Annotated[Path, tyro.conf.Positional, ANY_CHECKPOINT]
    out: Path
    """The .onnx file to write; its manifest goes beside it."""
    height: int | tuple[int, int, int] | None = None
    """Image height in pixels, or smallest, usual and largest; the training height when left out."""
    width: int | tuple[int, int, int] | None = None
    """Image width in pixels, or smallest, usual and largest; the training width when left out."""
    batch: int | tuple[int, int, int] = (1, 1, USUAL_BATCH)
    """Images in a call, or fewest, usual and most."""
    precision: Literal["fp32", "fp16", "bf16"] = "fp32"
    """Type of weights and activations in the graph."""
    input: Literal["normalized", "pixels"] = "normalized"
    """What the graph takes: normalised float32 [B, 3, H, W], or uint8 RGB [B, H, W, 3], normalised inside (pixels)."""
    outputs: tuple[Literal["labels", "masks", "logits", "confidence"], ...] = ("labels", "masks")
    """What the graph gives: labels and class masks always; logits and the winner's probability at full resolution."""
    lowering: Literal["native", "plugin"] = "native"
    """Standard ONNX ops (native), or Segmenter* nodes, which our plugins for TensorRT run (plugin)."""


def export_checkpoint(options: Options) -> int:
    manifest = export(
        options.checkpoint,
        options.out,
        height=options.height,
        width=options.width,
        batch=options.batch,
        precision=options.precision,
        input=options.input,
        outputs=options.outputs,
        lowering=options.lowering,
    )
    sides = "x".join("..".join(map(str, dict.fromkeys(side[::2]))) for side in (manifest.height, manifest.width))
    print(
        f"{options.out}: {manifest.precision}, {manifest.input} images {sides}, {len(manifest.classes)} classes,"
        f" {options.out.stat().st_size / 1e6:.1f} MB"
    )
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    return run(export_checkpoint, Options, argv)


if __name__ == "__main__":
    sys.exit(main())
