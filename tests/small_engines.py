"""A small network with every feature as an engine folder, and pictures for it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

from segmenter.checkpoint import save_model
from segmenter_engines.export import export
from segmenter_engines.folder import CHECKPOINT, FP16, FP32, INT8, INT8_TENSORRT
from segmenter_engines.graph import OUTPUTS
from segmenter_engines.quantize import quantize
from segmenter_engines.sessions.onnxruntime import session_options
from tests.networks import small_network

HEIGHTS, WIDTHS = (16, 56, 160), (16, 72, 200)  # of the graphs between sizes
RANGED, PIXELS = "ranged.onnx", "pixels.onnx"
TINY = 32  # side in pixels of the tiny engine's images
H, W = 56, 72  # no multiples of the patch: padding and cropping happen inside the graph


def pictures(count, height=H, width=W, seed=0):
    """Smooth random images: noise would put every pixel near a tie."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (count, height // 8, width // 8, 3), dtype=np.uint8)
    return coarse.repeat(8, axis=1).repeat(8, axis=2)


def masks(graph: onnx.ModelProto | Path, batch: np.ndarray, precision: str = "") -> np.ndarray:
    """Class masks of normalised images by ONNX Runtime, by options that keep its sums of int8 exact on any CPU."""
    model = graph if isinstance(graph, onnx.ModelProto) else onnx.load(graph)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), session_options(1, precision), providers=["CPUExecutionProvider"]
    )
    return session.run(["masks"], {"images": batch})[0]


def network():
    return small_network(distilled=True, layer_scale=True, image_size=(64, 80))


def fill_ranged(folder: Path) -> None:
    """Graphs between sizes, of normalised images with every output and of pixels."""
    sides = {"height": HEIGHTS, "width": WIDTHS, "batch": (1, 1, 4)}
    export(network(), folder / RANGED, outputs=OUTPUTS, **sides)
    export(network(), folder / PIXELS, input="pixels", outputs=("labels", "masks", "confidence"), **sides)


def fill(folder: Path) -> None:
    """Checkpoint and every graph made from it."""
    save_model(network(), folder / CHECKPOINT)
    export(folder / CHECKPOINT, folder / FP32, height=H, width=W)
    export(folder / CHECKPOINT, folder / FP16, height=H, width=W, precision="fp16")
    quantize(folder / FP32, folder / INT8, pictures(4, seed=1))
    quantize(folder / FP16, folder / INT8_TENSORRT, pictures(4, seed=1), target="tensorrt")


def fill_tiny(folder: Path) -> None:
    """A graph that takes images one at a time, as quick as they get."""
    save_model(small_network("linear", width=32, depth=1, mlp_width=32, image_size=(TINY, TINY)), folder / CHECKPOINT)
    export(folder / CHECKPOINT, folder / "tiny.onnx", height=TINY, width=TINY)
    change_manifest(folder / "tiny.onnx", batch=[1, 1, 1])


def change_manifest(artifact: Path, **values: Any) -> None:
    path = artifact.with_name(artifact.name + ".json")
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
