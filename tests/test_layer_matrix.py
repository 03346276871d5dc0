"""Real TensorRT-RTX plans of the paper's networks, built without a GPU: every attention fused, every layer as asked.

Seg-Ti, and Seg-S with fewer of its equal blocks, in every precision, of one shape, of a range of batches and of a
range of sizes.

A new version of TensorRT-RTX may fuse otherwise: then this fails, and the report says what changed.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from segmenter.config import variant
from segmenter.model import Segmenter
from segmenter_engines.build import build
from segmenter_engines.export import export
from segmenter_engines.layer_report import read_report
from segmenter_engines.quantize import quantize

pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
pytestmark = [pytest.mark.tensorrt, pytest.mark.slow]

SIDE = 512
SIDES = (256, SIDE, 768)
TI, S = "Seg-Ti-Mask/16", "Seg-S-Mask/16"
FLOATS, EIGHT_BITS = ("fp32", "fp16", "bf16"), ("int8", "fp8")
ATTENTIONS = {TI: 12 + 2, S: 3 + 2}
IN_8_BITS = {TI: 57, S: 21}
TAIL = {"decoder.proj_patch", "decoder.proj_classes"}  # stay in 16 bits

CASES = [
    (name, precision, shape)
    for name in (TI, S)
    for precision in (*FLOATS, *EIGHT_BITS)
    for shape in ("fixed", "batches", "sizes")
]


@pytest.fixture(scope="module")
def graphs(tmp_path_factory):
    """Exported and quantised graphs, each made once."""
    folder = tmp_path_factory.mktemp("matrix")
    made: dict[tuple[str, str, bool], Path] = {}

    def network(name):
        torch.manual_seed(0)
        config = variant(name)
        depth = ATTENTIONS[name] - config.decoder.depth
        model = Segmenter(replace(config, encoder=replace(config.encoder, depth=depth))).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                # a bias of zeros would be folded away, and other kernels built than for a trained network
                parameter.add_(torch.randn_like(parameter) * 0.05)
        return model

    def graph(name, precision, sizes):
        key = (name, precision, sizes)
        if key not in made:
            out = folder / f"{len(made)}.{precision}.onnx"
            if precision in EIGHT_BITS:
                images = np.random.default_rng(0).integers(0, 256, (2, SIDE, SIDE, 3), dtype=np.uint8)
                quantize(graph(name, "fp16", sizes), out, images, target="tensorrt", precision=precision, threads=2)
            else:
                sides = SIDES if sizes else SIDE
                export(network(name), out, height=sides, width=sides, precision=precision)
            made[key] = out
        return made[key]

    return graph


@pytest.mark.parametrize(("name", "precision", "shape"), CASES)
def test_nothing_is_lost_on_the_way_to_a_plan(graphs, tmp_path, name, precision, shape):
    source = graphs(name, precision, shape == "sizes")
    plan = tmp_path / "m.plan"
    manifest = build(source, plan, batch=(1, 1, 1) if shape == "fixed" else (1, 1, 8))
    report = read_report(plan, manifest.sha256)
    counts, attentions = report.counts(), ATTENTIONS[name]
    linears = 4 * attentions + 3  # qkv, proj, fc1, fc2 of each block; the decoder's three projections
    told = f"{name} {precision} {shape}: {counts}, {report.faults()}, {[layer.name for layer in report.unexplained]}"
    assert not report.faults(), told
    assert not report.unexplained, told
    assert report.attentions == attentions, told
    assert len(report.linears) == linears, told
    resizing = 2 if shape == "sizes" else 0  # products of the position embeddings
    if precision == "fp32":
        # RTX 1.7.1 has no fused attention in fp32; two products each, and that of patches and classes
        assert report.fused_attentions == 0, told
        assert counts["products_fp32"] == linears + 2 * attentions + 1 + resizing, told
        return
    assert report.fused_attentions == attentions, told
    assert "products_fp32" not in counts, told
    if precision in EIGHT_BITS:
        assert {one.name for one in report.linears if one.ran == "fp16"} == TAIL, told
        assert counts[f"products_{precision}"] == linears - len(TAIL) == IN_8_BITS[name], told
        assert counts["products_fp16"] == len(TAIL) + 1 + resizing, told
    else:
        assert counts[f"products_{precision}"] == linears + 1 + resizing, told
    # at most: q, k and v in front of each attention, its heads behind, the images, the labels, the residual's order
    # once a block, and with a range of sizes what resizes the embeddings
    assert counts["reformat"] + counts["cast"] <= 5 * attentions + 2 + 6 * (resizing > 0), told
