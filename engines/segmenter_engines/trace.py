"""A module to a slim ONNX graph that explains itself."""

import gc
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from logging import CRITICAL, getLogger
from typing import Any

import onnx
import onnxslim
import torch

from segmenter.config import SegmenterConfig
from segmenter.errors import EngineError
from segmenter_engines.graph import Graph, Span, is_range
from segmenter_engines.manifest import NORMALIZED, PIXELS
from segmenter_engines.weight_names import name_weights

OPSETS = {torch.bfloat16: 22}  # the first whose Conv takes it
OPSET = 20  # of other types: the first with Gelu as one op; every runtime used here reads it
INPUT = "images"
# of a graph with nothing free it makes a Gemm between reshapes of every linear layer, which loses the weight's name and
# with it what `segmenter quantize` knows a layer by
KEPT_APART = ["FusionGemm"]

Translations = Mapping[Callable[..., Any], Callable[..., Any]]


def trace(module: Graph, batch: Span, height: Span, width: Span, table: Translations) -> onnx.ModelProto:
    """The graph of a module, with one input, `images`; what is a range becomes a dimension named B, H or W.

    table: how operators that stay whole are written in ONNX.
    Raises EngineError when PyTorch gives no graph, or has no memory for images of the largest size.
    """
    patch_size = module.model.config.encoder.patch_size
    spans = {"B": batch, "H": height, "W": width}
    # as large as they come, because one image or one patch would be taken for a constant; and not a square
    B, H, W = (span[2] for span in spans.values())
    B = max(batch[0], min(B, 2))
    if is_range(width) and H == W:
        W = max(width[0], W - patch_size)
    pixels = module.normalize is not None
    axes = dict(zip(spans, (0, 1, 2) if pixels else (0, 2, 3), strict=True))
    free = {
        axes[name]: torch.export.Dim(name, min=span[0], max=span[2]) for name, span in spans.items() if is_range(span)
    }
    with _quiet(), _uncollected(), torch.no_grad(), _enough_memory(f"{B} images of {H}x{W}"):
        sample = torch.zeros(B, H, W, 3, dtype=torch.uint8) if pixels else torch.zeros(B, 3, H, W)
        program = torch.onnx.export(
            module.eval(),
            (sample,),
            dynamo=True,
            dynamic_shapes={INPUT: free},
            input_names=[INPUT],
            output_names=list(module.outputs),
            opset_version=OPSETS.get(module.dtype, OPSET),
            custom_translation_table=dict(table),
            verbose=False,
        )
        if program is None:
            raise EngineError("torch.onnx.export gave no program; report this with the checkpoint's config.json")
        # the exporter wrote every tensor's type; to infer them again, node by node, takes a quarter of exporting Seg-L
        graph = onnxslim.slim(program.model_proto, no_shape_infer=True, skip_fusion_patterns=KEPT_APART)
    _cut_before_cast(graph.graph)
    name_weights(graph.graph, module)
    _name_sizes(graph.graph, spans)
    _describe(graph, module.model.config, PIXELS if pixels else NORMALIZED)
    return graph


def _cut_before_cast(graph: onnx.GraphProto) -> None:
    """Cut labels of a graph between sizes while they are int32: TensorRT has uint8 for inputs and outputs alone."""
    makers = {name: node for node in graph.node for name in node.output}
    for cast in [node for node in graph.node if node.op_type == "Cast"]:
        maker = makers.get(cast.input[0])
        if maker is None or maker.op_type != "SegmenterUpsampleArgmax":
            continue
        cuts: list[onnx.NodeProto] = []
        name = cast.output[0]
        while len(users := [node for node in graph.node if name in node.input]) == 1 and users[0].op_type == "Slice":
            cuts.append(users[0])
            name = users[0].output[0]
        if not cuts:
            continue
        cuts[0].input[0], cuts[-1].output[0] = cast.input[0], f"{name}_{cast.input[0]}"
        after = onnx.NodeProto()
        after.CopyFrom(cast)
        after.input[0], after.output[0] = cuts[-1].output[0], name
        graph.node.insert(list(graph.node).index(cuts[-1]) + 1, after)
        graph.node.remove(cast)
        # their type changed
        stale = {cast.output[0], *(cut.output[0] for cut in cuts)}
        kept = [info for info in graph.value_info if info.name not in stale]
        del graph.value_info[:]
        graph.value_info.extend(kept)


def _name_sizes(graph: onnx.GraphProto, spans: Mapping[str, Span]) -> None:
    """Sizes of outputs by the input's names; the exporter writes out how it came by them instead."""
    for output in graph.output:
        dims = output.type.tensor_type.shape.dim
        names = ("B", "H", "W") if len(dims) == 3 else ("B", None, "H", "W")
        for dim, name in zip(dims, names, strict=True):
            if name is None or not dim.dim_param:
                continue
            if output.name == "masks" and name != "B":
                name = f"{name}_patches"
            dim.dim_param = name


@contextmanager
def _enough_memory(images: str) -> Iterator[None]:
    """Raises EngineError, naming the images, where PyTorch cannot allocate what they take."""
    try:
        yield
    except RuntimeError as error:
        if "allocate memory" not in f"{error}{error.__cause__}":
            raise
        raise EngineError(f"{images}: too large for this machine's memory to trace; export a smaller size") from error


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


@contextmanager
def _uncollected() -> Iterator[None]:
    """Without the garbage collector, which looks at all that tracing keeps to its end, again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _describe(graph: onnx.ModelProto, config: SegmenterConfig, kind: str) -> None:
    """Producer and metadata, so that the file explains itself without its manifest."""
    del graph.metadata_props[:]
    facts = {
        "model": config.name,
        "classes": "\n".join(config.classes),
        "palette": "\n".join(" ".join(map(str, colour)) for colour in config.palette),
        "patch_size": str(config.encoder.patch_size),
        "input": kind,
        "mean": " ".join(map(str, config.preprocess.mean)),
        "std": " ".join(map(str, config.preprocess.std)),
        "colour_order": "RGB",
    }
    onnx.helper.set_model_props(graph, facts)
    graph.producer_name = "segmenter"
