"""The plugin lowering: fused ops as nodes of domain `segmenter`, computing what the network computes.

No runtime here has kernels for these nodes, so ONNX's own evaluator runs the graphs, with the nodes in PyTorch.
"""

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from segmenter.checkpoint import save_model
from segmenter.errors import EngineError
from segmenter.model import Segmenter
from segmenter_engines import export as export_command
from segmenter_engines import open_session
from segmenter_engines.export import export
from segmenter_engines.manifest import read_manifest
from tests.networks import rotary_network, small_network

pytest.importorskip("triton", reason="triton is not installed; the plugin lowering needs it")

from segmenter_kernels import reference
from segmenter_kernels.onnx_ops import DOMAIN, VERSION

H, W = 56, 72  # no multiples of the patch: padding and cropping happen inside the graph


def tensors(*arrays: np.ndarray) -> list[torch.Tensor]:
    return [torch.from_numpy(np.array(array)) for array in arrays]


class SegmenterAttention(OpRun):
    op_domain = DOMAIN

    def _run(self, qkv: np.ndarray, heads: int | None = None) -> tuple[np.ndarray]:
        return (reference.attention(*tensors(qkv), heads).numpy(),)


class SegmenterPatchEmbed(OpRun):
    op_domain = DOMAIN

    def _run(self, *inputs: np.ndarray) -> tuple[np.ndarray]:
        return (reference.patch_embed(*tensors(*inputs)).numpy(),)


class SegmenterMaskScores(OpRun):
    op_domain = DOMAIN

    def _run(self, *inputs: np.ndarray, epsilon: float | None = None) -> tuple[np.ndarray]:
        return (reference.mask_scores(*tensors(*inputs), epsilon).numpy(),)


class SegmenterUpsampleArgmax(OpRun):
    op_domain = DOMAIN

    def _run(self, masks: np.ndarray, size: Any = None, crop: Any = None) -> tuple[np.ndarray]:
        (classes_last,) = tensors(masks)
        sides = [side if side > 0 else -side * grid for side, grid in zip(size, masks.shape[1:3], strict=True)]
        kept = [side if part < 0 else part for side, part in zip(sides, crop, strict=True)]
        labels = reference.upsample_argmax(classes_last.permute(0, 3, 1, 2), tuple(sides), tuple(kept))
        return (labels.int().numpy(),)


NODES = [SegmenterAttention, SegmenterPatchEmbed, SegmenterMaskScores, SegmenterUpsampleArgmax]


@pytest.fixture(scope="module")
def network() -> Segmenter:
    return small_network(distilled=True, layer_scale=True, image_size=(96, 80))


@pytest.fixture(scope="module")
def graph(network: Segmenter, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plugin") / "model.onnx"
    export(network, path, height=H, width=W, outputs=("labels", "masks", "logits"), lowering="plugin")
    return path


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}


def nodes_of(model: onnx.ModelProto, name: str) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.op_type == name]


def test_the_fused_ops_are_nodes_and_the_rest_is_standard(network: Segmenter, graph: Path) -> None:
    model = onnx.load(graph)
    onnx.checker.check_model(model, full_check=True)
    assert {entry.domain: entry.version for entry in model.opset_import} == {"": 20, DOMAIN: VERSION}
    encoder, decoder = network.config.encoder, network.config.decoder
    assert Counter(node.op_type for node in model.graph.node if node.domain == DOMAIN) == {
        "SegmenterAttention": encoder.depth + decoder.depth,
        "SegmenterPatchEmbed": 1,
        "SegmenterMaskScores": 1,
        "SegmenterUpsampleArgmax": 1,
    }
    counts = Counter(node.op_type for node in model.graph.node)
    assert not {"Softmax", "Conv", "ReduceL2", "ArgMax"} & set(counts)
    assert counts["Gelu"] == encoder.depth + decoder.depth
    assert len(model.functions) == 0
    heads = [attributes(node)["heads"] for node in nodes_of(model, "SegmenterAttention")]
    assert heads == [encoder.heads] * encoder.depth + [decoder.heads] * decoder.depth
    assert attributes(nodes_of(model, "SegmenterMaskScores")[0]) == {"epsilon": pytest.approx(1e-5)}
    (labels,) = nodes_of(model, "SegmenterUpsampleArgmax")
    assert attributes(labels) == {"size": [64, 80], "crop": [H, W]}
    assert [node.op_type for node in model.graph.node if labels.output[0] in node.input] == ["Cast"]
    # masks go from one node to the other as they are written: [B, N, K] seen as [B, h, w, K]
    makers = {output: node for node in model.graph.node for output in node.output}
    assert makers[labels.input[0]].op_type == "Reshape"
    assert makers[makers[labels.input[0]].input[0]].op_type == "SegmenterMaskScores"
    # position embeddings are resized before, not in, the graph
    constants = {tensor.name for tensor in model.graph.initializer}
    assert set(nodes_of(model, "SegmenterPatchEmbed")[0].input[1:]) <= constants
    assert [output.name for output in model.graph.output] == ["labels", "masks", "logits"]
    assert all(output.type.tensor_type.shape.dim[0].dim_param for output in model.graph.output)


@pytest.mark.parametrize("batch", [1, 3])
def test_the_graph_computes_what_the_network_does(network: Segmenter, graph: Path, batch: int) -> None:
    images = torch.randn(batch, 3, H, W, generator=torch.Generator().manual_seed(0))
    labels, masks, logits = ReferenceEvaluator(str(graph), new_ops=NODES).run(None, {"images": images.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(masks, network.masks(images).numpy(), rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(logits, network(images).numpy(), rtol=1e-3, atol=1e-4)
        wanted = network.labels(images).numpy()
    assert labels.dtype == np.uint8
    assert len(np.unique(wanted)) > 1
    assert (labels != wanted).mean() <= 1e-3


def test_a_graph_between_sizes_computes_what_the_network_does(network: Segmenter, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    spans = {"height": (32, 64, 96), "width": (40, 80, 120)}
    export(network, path, **spans, outputs=("labels", "masks", "logits"), lowering="plugin")
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    manifest = read_manifest(path)
    assert {"height": manifest.height, "width": manifest.width} == spans
    (labels,) = nodes_of(model, "SegmenterUpsampleArgmax")
    assert attributes(labels) == {"size": [-16, -16], "crop": [-1, -1]}
    # TensorRT has uint8 for inputs and outputs alone: labels are cut while they are int32
    (last,) = (node for node in model.graph.node if "labels" in node.output)
    makers = {output: node for node in model.graph.node for output in node.output}
    assert (last.op_type, makers[last.input[0]].op_type) == ("Cast", "Slice")
    evaluator = ReferenceEvaluator(str(path), new_ops=NODES)
    for B, H, W in ((1, 32, 40), (2, 57, 73), (1, 96, 80), (1, 96, 120)):
        images = torch.randn(B, 3, H, W, generator=torch.Generator().manual_seed(H))
        found, masks, logits = evaluator.run(None, {"images": images.numpy()})
        with torch.no_grad():
            np.testing.assert_allclose(masks, network.masks(images).numpy(), rtol=1e-3, atol=1e-4)
            np.testing.assert_allclose(logits, network(images).numpy(), rtol=1e-3, atol=1e-4)
            wanted = network.labels(images).numpy()
        assert (found.dtype, found.shape) == (np.dtype(np.uint8), (B, H, W))
        assert (found != wanted).mean() <= 1e-3


def test_rotary_positions_are_standard_nodes_before_attention(tmp_path: Path) -> None:
    network = rotary_network("linear", image_size=(96, 80))
    path = tmp_path / "m.onnx"
    export(network, path, height=H, width=W, outputs=("labels", "masks", "logits"), lowering="plugin")
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert {node.op_type for node in model.graph.node if node.domain == DOMAIN} == {
        *("SegmenterAttention", "SegmenterPatchEmbed", "SegmenterUpsampleArgmax")
    }
    images = torch.randn(2, 3, H, W, generator=torch.Generator().manual_seed(0))
    (logits,) = ReferenceEvaluator(str(path), new_ops=NODES).run(["logits"], {"images": images.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(logits, network(images).numpy(), rtol=1e-3, atol=1e-4)


def test_a_16_bit_graph_with_a_linear_decoder(tmp_path: Path) -> None:
    network = small_network("linear", classes=tuple(f"class {index}" for index in range(300)))
    save_model(network, tmp_path / "checkpoint")
    command = [str(tmp_path / "checkpoint"), "--out", str(tmp_path / "m.onnx"), "--precision", "fp16"]
    assert export_command.main([*command, "--lowering", "plugin"]) == 0
    manifest = read_manifest(tmp_path / "m.onnx")
    assert manifest.precision == "fp16"
    assert manifest.plugins == (
        "SegmenterAttention",
        "SegmenterPatchEmbed",
        "SegmenterUpsampleArgmax",
    )
    model = onnx.load(tmp_path / "m.onnx")
    assert len(nodes_of(model, "SegmenterAttention")) == network.config.encoder.depth
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    weight = nodes_of(model, "SegmenterPatchEmbed")[0].input[1]
    assert types[weight] == onnx.TensorProto.FLOAT16
    assert model.graph.output[0].type.tensor_type.elem_type == onnx.TensorProto.INT16
    with pytest.raises(EngineError, match=r"Segmenter\w+"):
        open_session(tmp_path / "m.onnx", "onnxruntime")


def test_lowering_is_native_unless_asked_otherwise(network: Segmenter, tmp_path: Path) -> None:
    assert export(network, tmp_path / "m.onnx", height=H, width=W).plugins == ()
    assert {node.domain for node in onnx.load(tmp_path / "m.onnx").graph.node} == {""}
    with pytest.raises(EngineError, match="lowering 'fused': export knows native and plugin"):
        export(network, tmp_path / "m.onnx", lowering="fused")


def test_without_triton_the_command_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(small_network(), tmp_path / "checkpoint")
    for name in [name for name in sys.modules if name.partition(".")[0] in ("triton", "segmenter_kernels")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "triton", None)
    command = [str(tmp_path / "checkpoint"), "--out", str(tmp_path / "m.onnx"), "--lowering", "plugin"]
    assert export_command.main(command) == 2
    assert "triton is not installed; run: pip install 'segmenter-trt[gpu]'" in capsys.readouterr().err
