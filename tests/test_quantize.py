"""Int8 graphs of a small network: which layers, under which names, with which ranges."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from segmenter.errors import EngineError
from segmenter.preprocess import normalize
from segmenter_engines.calibrate import ranges
from segmenter_engines.export import export
from segmenter_engines.manifest import read_manifest
from segmenter_engines.qdq import linears
from segmenter_engines.quantize import quantize
from tests.networks import small_network
from tests.small_engines import network, pictures


def test_int8_replaces_the_linear_layers_and_nothing_else(engine_folder):
    for name, target in (("model.int8.onnx", onnx.TensorProto.UINT8), ("model.int8-trt.onnx", onnx.TensorProto.INT8)):
        graph = onnx.load(engine_folder / name).graph
        made_by = {output: node for node in graph.node for output in node.output}
        constants = {tensor.name: tensor for tensor in graph.initializer}
        quantised = [node for node in graph.node if node.op_type == "MatMul" and f"{node.input[1]}".endswith("/dq")]
        # qkv, projection and two feed-forward layers a block, and the decoder's input projection
        assert len(quantised) == 4 * 3 + 1
        for node in quantised:
            activation, weight = made_by[node.input[0]], made_by[node.input[1]]
            assert activation.op_type == weight.op_type == "DequantizeLinear"
            assert constants[activation.input[2]].data_type == target
            assert constants[weight.input[0]].data_type == onnx.TensorProto.INT8
            assert constants[weight.input[1]].dims[0] == constants[weight.input[0]].dims[1]  # a scale a channel
        others = [node for node in graph.node if node.op_type == "MatMul" and node not in quantised]
        assert len(others) == 2 * 3 + 2 + 1  # attention products, class projections, mask scores
        assert read_manifest(engine_folder / name).details["layers"] == len(quantised)


def test_smoothing_changes_nothing_in_floating_point_and_tames_outliers(engine_folder, tmp_path):
    from segmenter_engines.calibrate import channel_peaks
    from segmenter_engines.smooth import norm_fed, smooth

    path = engine_folder / "model.fp32.onnx"
    model = onnx.load(path)
    # an outlier channel such as pretrained ViTs have
    names = [layer.weight for layer in linears(model.graph)]
    fed = norm_fed(model.graph, names)
    # norms before qkv and fc1 of three blocks; the decoder's norms feed more than linear layers
    assert len(fed) == 2 * 3
    norm, weights = next(iter(fed.values()))
    for name, factor in ((norm.input[1], 50.0), (norm.input[2], 50.0), (weights[0], 1 / 50.0)):
        tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
        values = onnx.numpy_helper.to_array(tensor).copy()
        values[3] *= factor
        tensor.CopyFrom(onnx.numpy_helper.from_array(values, name))
    spiky = tmp_path / "spiky.onnx"
    onnx.save(model, spiky)
    batches = [normalize(picture, read_manifest(path).preprocess).numpy() for picture in pictures(2)]
    before = channel_peaks(onnx.load(spiky), list(fed), batches)
    smooth(model.graph, fed, before, 0.5)
    onnx.save(model, tmp_path / "smoothed.onnx")
    after = channel_peaks(model, list(fed), batches)
    name = norm.output[0]
    assert before[name].max() / np.median(before[name]) > 20
    assert after[name].max() / np.median(after[name]) < 10
    masks = [
        onnxruntime.InferenceSession(where, providers=["CPUExecutionProvider"]).run(["masks"], {"images": batches[0]})[
            0
        ]
        for where in (path, tmp_path / "smoothed.onnx")
    ]
    np.testing.assert_allclose(masks[0], masks[1], rtol=1e-3, atol=1e-3)


def test_excluded_layers_stay_in_floating_point(engine_folder, tmp_path):
    # no layer behind a norm is left, so smoothing has nothing to do
    manifest = quantize(engine_folder / "model.fp32.onnx", tmp_path / "m.onnx", pictures(1), exclude=["qkv", "fc1"])
    assert manifest.details["layers"] == 4 * 3 + 1 - 2 * 3
    graph = onnx.load(tmp_path / "m.onnx").graph
    kept = {tensor.name for tensor in graph.initializer if len(tensor.dims) == 2 and tensor.data_type == 1}
    assert {name for name in kept if "qkv" in name or "fc1" in name} == {
        f"model.{part}.{layer}.weight"
        for part in ("encoder.blocks.0", "encoder.blocks.1", "decoder.blocks.0")
        for layer in ("attn.qkv", "mlp.fc1")
    }
    assert not any("fc2" in name for name in kept)


@pytest.mark.parametrize("name", ["model.fp32.onnx", "model.fp16.onnx"])
def test_layers_are_excluded_by_parts_of_their_parameters_names(engine_folder, name):
    graph = onnx.load(engine_folder / name).graph
    everything = [layer.weight for layer in linears(graph)]
    parameters = {f"model.{parameter}" for parameter, _ in network().named_parameters()}
    assert set(everything) <= parameters
    for word, count in (("fc2", 3), ("decoder", 5), ("blocks.0", 8), ("encoder.blocks.1", 4), ("fc", 0), ("1", 4)):
        left = [layer.weight for layer in linears(graph, [word])]
        assert len(everything) - len(left) == count
        assert not any(f".{word}." in weight for weight in left)


def test_a_linear_decoders_head_and_layers_without_bias_have_names_too(tmp_path):
    model = small_network("linear")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()  # and the exporter leaves their sums out
    export(model, tmp_path / "m.onnx")
    graph = onnx.load(tmp_path / "m.onnx").graph
    names = {tensor.name for tensor in graph.initializer}
    chosen = {layer.weight for layer in linears(graph)}
    assert "model.decoder.head.weight" in names - chosen  # class projections stay in floating point
    assert chosen == {
        name
        for name in names
        if name.endswith(("qkv.weight", "proj.weight", "fc1.weight", "fc2.weight")) and "patch_embed" not in name
    }
    assert len(chosen) == 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"exclude": ["fc2", "val_7"]}, r"--exclude val_7: no quantised layer .* attn, blocks, decoder.*weight"),
        ({"exclude": ["model"]}, "no linear layer left"),
        ({"method": "percentile", "percentile": 150.0}, r"percentile 150\.0: wanted above 50 and at most 100"),
        ({"smoothing": 2.0}, r"smoothing 2\.0"),
    ],
)
def test_options_that_quantise_nothing_or_nonsense_are_refused(engine_folder, tmp_path, options, message):
    with pytest.raises(EngineError, match=message):
        quantize(engine_folder / "model.fp32.onnx", tmp_path / "m.onnx", pictures(1), **options)
    assert not list(tmp_path.iterdir())


def test_ranges_span_what_was_seen(engine_folder):
    path = engine_folder / "model.fp32.onnx"
    model = onnx.load(path)
    names = [layer.activation for layer in linears(model.graph)]
    preprocess = read_manifest(path).preprocess
    one, two = ([normalize(picture, preprocess).numpy()] for picture in pictures(2))
    alone, other, both = (ranges(model, names, batches) for batches in (one, two, one + two))
    clipped = ranges(model, names, one, "percentile", percentile=99.0)
    for name in names:
        assert both[name] == alone[name].union(other[name])
        assert alone[name].low <= clipped[name].low <= 0.0 <= clipped[name].high <= alone[name].high
        assert clipped[name].high - clipped[name].low < alone[name].high - alone[name].low
