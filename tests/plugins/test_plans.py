"""TensorRT-RTX loads the plugin library and builds plans of it, of the paper's networks too; no GPU is needed for that.

Each plan is built by the command in a process of its own: TensorRT keeps one registry of plugins a process.
"""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import onnx
import pytest

from segmenter.config import variant
from segmenter_bench.models import random_model
from segmenter_engines.export import export
from segmenter_engines.layer_report import LayerReport, read_report
from segmenter_engines.manifest import read_manifest
from tests.cpp_build import run
from tests.networks import small_network
from tests.plugins.building import OPS, needs_tools

pytest.importorskip("triton", reason="triton is not installed; kernels cannot be compiled")
pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
pytestmark = [pytest.mark.slow, pytest.mark.tensorrt, needs_tools]

SIDE = 512
ATTENTIONS = 12 + 2
LINEARS = 4 * ATTENTIONS + 3  # qkv, proj, fc1, fc2 of each block; the decoder's three projections


def command(graph: Path, plan: Path, library: Path, *options: str) -> subprocess.CompletedProcess[str]:
    arguments = (graph, "--out", plan, "--plugin-library", library, *options)
    return run(sys.executable, "-m", "segmenter_engines.build", *arguments)


def built(graph: Path, plan: Path, library: Path, *options: str) -> LayerReport:
    """The layer report of a plan of a graph; its plugins are the graph's, each named in the plan."""
    done = command(graph, plan, library, *options)
    assert done.returncode == 0, done.stdout + done.stderr
    report = read_report(plan, read_manifest(plan).sha256)
    asked = Counter(node.op_type for node in onnx.load(graph).graph.node if node.domain == "segmenter")
    assert report.plugins == asked
    assert f"{asked['SegmenterAttention']} fused attention kernels, {asked.total()} plugins" in done.stdout
    content = plan.read_bytes()
    assert all(content.count(op.encode()) >= asked[op] > 0 for op in OPS)
    assert not report.faults(), report.faults()
    return report


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_plan_of_a_small_network(library: Path, tmp_path: Path, precision: str) -> None:
    graph = tmp_path / "model.onnx"
    export(small_network(heads=1), graph, height=56, width=72, precision=precision, lowering="plugin")
    report = built(graph, tmp_path / "model.plan", library)
    assert report.plugins.total() == 6
    (labels,) = (tensor for layer in report.layers for tensor in layer.outputs if tensor.name == "labels")
    assert (labels.type, labels.shape) == ("uint8", (-1, 56, 72))


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_plan_for_a_range_of_sizes(library: Path, tmp_path: Path, precision: str) -> None:
    graph, spans = tmp_path / "model.onnx", {"height": (32, 64, 96), "width": (40, 80, 120)}
    export(small_network(heads=1), graph, **spans, precision=precision, lowering="plugin")
    report = built(graph, tmp_path / "model.plan", library, "--batch", "1", "2", "4")
    assert report.plugins.total() == 6
    (labels,) = (tensor for layer in report.layers for tensor in layer.outputs if tensor.name == "labels")
    assert (labels.type, labels.shape) == ("uint8", (-1, -1, -1))
    manifest = read_manifest(tmp_path / "model.plan")
    assert {"height": manifest.height, "width": manifest.width} == spans


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("name", ["Seg-Ti-Mask/16", "Seg-S-Mask/16"])
def test_plans_of_the_papers_networks(library: Path, tmp_path: Path, name: str, precision: str) -> None:
    graph = tmp_path / "model.onnx"
    export(random_model(variant(name)), graph, height=SIDE, width=SIDE, precision=precision, lowering="plugin")
    for batch in (("1", "1", "1"), ("1", "1", "8")):
        report = built(graph, tmp_path / "model.plan", library, "--batch", *batch)
        counts = report.counts()
        assert report.attentions == report.fused_attentions == ATTENTIONS, counts
        # fourteen attentions, patches, scores and labels
        assert counts["plugins"] == ATTENTIONS + 3, counts
        assert {layer.precision for layer in report.of("plugin")} == {precision}
        assert len(report.linears) == LINEARS, counts
        assert counts[f"products_{precision}"] == LINEARS, counts
        # the images into the graph's precision and the labels into bytes; nothing around the plugins
        assert counts["reformat"] + counts["cast"] <= 2, counts


@pytest.mark.parametrize(
    ("precision", "heads", "message"),
    [
        ("fp32", 1, "its kernels take float16 and bfloat16; export with --precision fp16 or bf16"),
        ("fp16", 4, "head dimension 16 in fp16: this plugin library has kernels for 64; export with --lowering native"),
    ],
)
def test_what_no_kernel_serves_fails_the_build_in_a_line(
    library: Path, tmp_path: Path, precision: str, heads: int, message: str
) -> None:
    graph, plan = tmp_path / "model.onnx", tmp_path / "model.plan"
    export(small_network(heads=heads), graph, height=56, width=72, precision=precision, lowering="plugin")
    done = command(graph, plan, library)
    assert done.returncode == 2
    assert any(line.startswith("segmenter_trt_plugin: ") and message in line for line in done.stderr.splitlines())
    assert not plan.exists()
