"""Checkpoint to ONNX: one graph, its precision in its tensors, labels at image resolution.

Two lowerings: `native` is standard ONNX ops, which every runtime reads; `plugin` keeps the fused ops as nodes of domain
`segmenter` (defined in `segmenter_kernels.onnx_ops`), for a runtime that has their plugins.
"""

import copy
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from logging import CRITICAL, getLogger
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal

import onnx
import onnxslim
import torch
import tyro
from torch import Tensor, nn

from segmenter import load_model
from segmenter.cli import run
from segmenter.errors import EngineError
from segmenter.files import atomic_path, sha256
from segmenter.model import Segmenter
from segmenter_engines.manifest import (
    NORMALIZED,
    Manifest,
    command_line,
    machine_name,
    versions_of,
    vouched,
    weights_of,
)
from segmenter_engines.weight_names import name_weights

FLOATS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
OPSET = 20  # the first with Gelu as one op; every runtime used here reads it
LOWERINGS = ("native", "plugin")
PLUGIN_DOMAIN = "segmenter"
INPUT = "images"
MAX_BATCH = 64


class _Graph(nn.Module):
    """What the ONNX computes: normalised float32 images to labels, class masks, and logits when asked."""

    def __init__(self, model: Segmenter, dtype: torch.dtype, with_logits: bool) -> None:
        super().__init__()
        self.model, self.dtype, self.with_logits = model.to(dtype), dtype, with_logits

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        masks = self.model.masks(images.to(self.dtype))
        P, size = self.model.config.encoder.patch_size, (int(images.shape[-2]), int(images.shape[-1]))
        padded = masks.shape[2] * P, masks.shape[3] * P
        outputs = [self.model.ops.upsample_argmax(masks, padded, size), masks.float()]
        if self.with_logits:
            logits = nn.functional.interpolate(masks, padded, mode="bilinear", align_corners=False)
            outputs.append(logits[..., : size[0], : size[1]].float())
        return tuple(outputs)


def export(
    checkpoint: Path | str | Segmenter,
    out: Path | str,
    *,
    height: int | None = None,
    width: int | None = None,
    precision: Literal["fp32", "fp16", "bf16"] = "fp32",
    logits: bool = False,
    lowering: Literal["native", "plugin"] = "native",
) -> Manifest:
    """Write a network as ONNX, with its manifest beside it.

    The graph takes `images` float32 [B, 3, H, W], normalised, B from 1 to 64, and gives `labels` uint8 [B, H, W] (int16
    when K > 256), `masks` float32 [B, K, h, w] on the patch grid, and, when asked, `logits` float32 [B, K, H, W].
    height, width: pixels; the size the checkpoint was trained at when None. Sizes that are no multiple of the patch are
    padded and cropped inside the graph. precision: type of weights and activations; inputs and outputs stay as above.
    lowering: see the module; `plugin` needs the package triton.
    Raises CheckpointError for the checkpoint, EngineError for a size or precision that cannot be exported.
    """
    out = Path(out)
    if out.suffix != ".onnx":
        raise EngineError(f"{out}: an exported graph is named *.onnx; pass such a name")
    if precision not in FLOATS:
        raise EngineError(
            f"precision {precision!r}: export knows {', '.join(FLOATS)}; for int8 use `segmenter quantize`"
        )
    if lowering not in LOWERINGS:
        raise EngineError(f"lowering {lowering!r}: export knows {' and '.join(LOWERINGS)}")
    ops, table = _plugins() if lowering == "plugin" else (None, {})
    model = _loaded(checkpoint, ops)
    config = model.config
    height, width = height or config.encoder.image_size[0], width or config.encoder.image_size[1]
    if min(height, width) < config.encoder.patch_size:
        raise EngineError(
            f"size {height}x{width} is smaller than one {config.encoder.patch_size} pixel patch; enlarge it"
        )
    model.eval().fold_layer_scale()
    module = _Graph(model, FLOATS[precision], logits)
    graph = _trace(module, height, width, logits, table)
    name_weights(graph.graph, module)
    _describe(graph, model)
    with atomic_path(out) as temporary:
        onnx.save(graph, temporary)
        onnx.checker.check_model(temporary, full_check=True)
    manifest = Manifest(
        artifact=out.name,
        kind="onnx",
        engine="any",
        precision=precision,
        sha256=sha256(out),
        source={"checkpoint": _source(checkpoint)},
        model=config.name,
        patch_size=config.encoder.patch_size,
        input=NORMALIZED,
        height=(height, height, height),
        width=(width, width, width),
        batch=(1, 1, MAX_BATCH),
        outputs=("labels", "masks", *(("logits",) if logits else ())),
        classes=config.classes,
        palette=config.palette,
        preprocess=config.preprocess,
        command=command_line(),
        versions=versions_of("onnx", "onnxscript", "onnxslim"),
        machine=machine_name(),
        plugins=tuple(sorted({node.op_type for node in graph.graph.node if node.domain == PLUGIN_DOMAIN})),
        details={"opset": OPSET, "nodes": len(graph.graph.node)},
    )
    manifest.write(out)
    return manifest


def _plugins() -> tuple[ModuleType, Mapping[Callable[..., Any], Callable[..., Any]]]:
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


def _trace(
    module: nn.Module, height: int, width: int, logits: bool, table: Mapping[Callable[..., Any], Callable[..., Any]]
) -> onnx.ModelProto:
    # a sample batch of one would freeze the batch; the trace needs two
    sample = torch.zeros(2, 3, height, width)
    batch = torch.export.Dim("B", min=1, max=MAX_BATCH)
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            module.eval(),
            (sample,),
            dynamo=True,
            dynamic_shapes={"images": {0: batch}},
            input_names=[INPUT],
            output_names=["labels", "masks", "logits"][: 3 if logits else 2],
            opset_version=OPSET,
            custom_translation_table=dict(table),
            verbose=False,
        )
        if program is None:
            raise EngineError("torch.onnx.export gave no program; report this with the checkpoint's config.json")
        return onnxslim.slim(program.model_proto)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's notes on packages it does not need and arguments it renames."""
    logger = getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _describe(graph: onnx.ModelProto, model: Segmenter) -> None:
    """Producer and metadata, so that the file explains itself without its manifest."""
    config: Any = model.config
    del graph.metadata_props[:]
    facts = {
        "model": config.name,
        "classes": "\n".join(config.classes),
        "mean": " ".join(map(str, config.preprocess.mean)),
        "std": " ".join(map(str, config.preprocess.std)),
        "colour_order": "RGB",
    }
    onnx.helper.set_model_props(graph, facts)
    graph.producer_name = "segmenter"


def _source(checkpoint: Path | str | Segmenter) -> str:
    if isinstance(checkpoint, Segmenter):
        return "a network in memory"
    return vouched(sha256(weights_of(Path(checkpoint))))


@dataclass(frozen=True)
class Options:
    """Export a checkpoint to ONNX."""

    checkpoint: Annotated[Path, tyro.conf.Positional]
    """Checkpoint folder, or an official checkpoint.pth beside its variant.yml."""
    out: Path
    """The .onnx file to write; its manifest goes beside it."""
    height: int | None = None
    """Image height in pixels; the training height when left out."""
    width: int | None = None
    """Image width in pixels."""
    precision: Literal["fp32", "fp16", "bf16"] = "fp32"
    """Type of weights and activations in the graph."""
    logits: bool = False
    """Add full-resolution logits as a third output."""
    lowering: Literal["native", "plugin"] = "native"
    """Standard ONNX ops (native), or Segmenter* nodes for a runtime with plugins (plugin)."""


def export_checkpoint(options: Options) -> int:
    manifest = export(
        options.checkpoint,
        options.out,
        height=options.height,
        width=options.width,
        precision=options.precision,
        logits=options.logits,
        lowering=options.lowering,
    )
    print(
        f"{options.out}: {manifest.precision}, images {manifest.size[0]}x{manifest.size[1]}, "
        f"{len(manifest.classes)} classes, {options.out.stat().st_size / 1e6:.1f} MB"
    )
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    return run(export_checkpoint, Options, argv)


if __name__ == "__main__":
    sys.exit(main())
