"""Networks with rotary positions as graphs, 8-bit ones too, and as plans: what PyTorch computes."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from segmenter.checkpoint import save_model
from segmenter.preprocess import normalize
from segmenter_engines import open_session
from segmenter_engines.build import build
from segmenter_engines.export import export
from segmenter_engines.fake_quant import fake_quantised
from segmenter_engines.layer_report import read_report
from segmenter_engines.qat import prepare
from segmenter_engines.qdq import quantised_layers
from segmenter_engines.quantize import quantize
from tests.networks import rotary_network
from tests.small_engines import H, W, masks, pictures

LAYERS = 13  # in 8 bits


def network():
    return rotary_network(image_size=(64, 80))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Checkpoint and graphs, to be read."""
    folder = tmp_path_factory.mktemp("rotary")
    save_model(network(), folder / "checkpoint")
    for precision in ("fp32", "fp16"):
        export(folder / "checkpoint", folder / f"{precision}.onnx", height=H, width=W, precision=precision)
    quantize(folder / "fp32.onnx", folder / "int8.onnx", pictures(4, seed=1), threads=1)
    quantize(folder / "fp16.onnx", folder / "int8-trt.onnx", pictures(4, seed=1), target="tensorrt", threads=1)
    return folder


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_a_fixed_size_is_labelled_as_pytorch_does(folder, engine):
    if engine == "openvino":
        pytest.importorskip("openvino", reason="openvino is not installed")
    images = pictures(2)
    with torch.inference_mode():
        truth = network()(normalize(images, network().config.preprocess)).numpy()
    with open_session(folder / "fp32.onnx", engine, threads=1) as session:
        np.testing.assert_allclose(session.logits(images), truth, rtol=0, atol=1e-4)
        assert (session(images) != truth.argmax(1)).mean() <= 1e-3


@pytest.mark.parametrize("name", ["fp32.onnx", "fp16.onnx"])
def test_angles_of_a_fixed_size_are_made_before(folder, name):
    graph = onnx.load(folder / name).graph
    assert not {"Cos", "Sin", "Range"} & {node.op_type for node in graph.node}
    # one table of each for all blocks, of all 3 + 20 tokens, for heads of 32 channels
    shapes = Counter(tuple(tensor.dims) for tensor in graph.initializer)
    assert shapes[3 + 20, 1, 16] == 2


def test_angles_between_sizes_are_float32_in_a_16_bit_graph(tmp_path):
    """Also where a grid has more places than fp16 has whole numbers: 2,050 by 1."""
    model = rotary_network("linear", depth=1, patch_size=8, width=8, heads=1, mlp_width=16)
    path, sides = tmp_path / "m.onnx", {"height": (8, 32, 64), "width": (8, 40, 8 * 2050)}
    export(model, path, precision="fp16", outputs=("labels", "masks", "logits"), **sides)
    graph = onnx.load(path)
    tables = [node.output[0] for kind in ("Cos", "Sin") for node in graph.graph.node if node.op_type == kind]
    graph.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in tables)
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    images = torch.randn(1, 3, 8, 8 * 2050, generator=torch.Generator().manual_seed(0))
    logits, *found = session.run(["logits", *tables], {"images": images.numpy()})
    for table, wanted in zip(found, model.encoder.rotary(1, 2050, torch.float64), strict=True):
        # float32's own rounding of angles up to 2 pi
        assert np.abs(table - wanted.numpy()).max() <= 4e-6
    with torch.inference_mode():
        truth = model.double()(images.double())
        own = model.half()(images.half()).double() - truth
    assert (torch.from_numpy(logits).double() - truth).norm() <= 2 * own.norm()


@pytest.mark.parametrize("name", ["int8.onnx", "int8-trt.onnx"])
def test_8_bits_are_those_of_a_network_that_learns_under_them(folder, name):
    """In fp32: what the graph computes is what `segmenter qat` trains, to rounding, as with learnt positions."""
    graph = onnx.load(folder / name)
    layers = quantised_layers(graph.graph)
    assert len(layers) == LAYERS
    model, _, real = prepare(folder / "checkpoint", folder / name)
    batch = normalize(pictures(2), model.config.preprocess)
    theirs = masks(folder / name, batch.numpy())
    with torch.no_grad():
        whole = model.masks(batch).numpy()
        with fake_quantised(model, layers, real):
            ours = model.masks(batch).numpy()
    noise = np.square(theirs - whole).mean()
    # 41 dB of 255 steps over +-4 sigma, less 26 such noises and the worth of a bit; as in test_sessions
    assert 10 * np.log10(np.square(whole).mean() / noise) > 41 - 14 - 6
    if real == TensorProto.FLOAT:
        assert np.square(ours - theirs).mean() < 0.03 * noise
    with fake_quantised(model, layers, real):
        model.masks(batch).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())


@pytest.mark.tensorrt
@pytest.mark.parametrize("name", ["fp16.onnx", "int8-trt.onnx"])
def test_attention_is_one_kernel_in_a_plan(folder, tmp_path, name):
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    plan = tmp_path / "m.plan"
    report = read_report(plan, build(folder / name, plan).sha256)
    assert report.fused_attentions == report.attentions == 3, report.counts()
    assert not report.faults(), [layer.name for layer in report.unexplained]
