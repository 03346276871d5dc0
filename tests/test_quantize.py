"""Int8 graphs of a small network: which layers, under which names, with which ranges."""

import shutil
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch

from segmenter.datasets import Sample
from segmenter.errors import EngineError
from segmenter.preprocess import normalize
from segmenter_engines.export import export
from segmenter_engines.judge import Judge
from segmenter_engines.manifest import read_manifest
from segmenter_engines.qdq import linears, quantised_layers
from segmenter_engines.quantize import quantize
from segmenter_engines.widen import widened
from tests.networks import CLASSES, small_network
from tests.small_engines import H, W, masks, network, pictures


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
    whole, smoothed = (masks(where, batches[0]) for where in (path, tmp_path / "smoothed.onnx"))
    np.testing.assert_allclose(smoothed, whole, rtol=1e-3, atol=1e-3)


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
        ({"precision": "int4"}, r"precision 'int4': quantize knows int8 and fp8"),
        ({"precision": "fp8"}, r"an fp32 graph, while fp8 is for TensorRT; export it with --precision fp16 first"),
        ({"target": "tensorrt"}, r"is fp32, and asked for target tensorrt; export it with --precision fp16 first"),
        ({"target": "gpu"}, r"target 'gpu': wanted cpu or tensorrt"),
        ({"method": "median"}, r"method 'median': wanted one of minmax, percentile, entropy, mse"),
        ({"max_drop": -0.1}, r"--max-drop -0\.1: wanted a loss of mIoU from 0 to 1"),
        ({"max_drop": 0.1}, r"max_drop 0\.1: needs labelled images to judge on; pass a judge"),
        ({"scales_of": "none.onnx"}, r"none\.onnx: no such engine file"),
        ({"scales_of": "none.onnx", "exclude": ["fc2"]}, r"--exclude beside --scales-of: that graph has settled it"),
        ({"scales_of": "none.onnx", "method": "mse"}, r"--method beside --scales-of"),
    ],
)
def test_options_that_quantise_nothing_or_nonsense_are_refused(engine_folder, tmp_path, options, message):
    with pytest.raises(EngineError, match=message):
        quantize(engine_folder / "model.fp32.onnx", tmp_path / "m.onnx", pictures(1), **options)
    assert not list(tmp_path.iterdir())


def test_where_nothing_can_be_written_is_seen_before_the_work(engine_folder, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    out = tmp_path / "file" / "m.onnx"
    monkeypatch.setattr("segmenter_engines.export.load_model", None)
    with pytest.raises(NotADirectoryError, match="file"):
        export(engine_folder / "checkpoint", out)
    monkeypatch.setattr("segmenter_engines.quantize.calibrated", None)
    with pytest.raises(NotADirectoryError, match="file"):
        quantize(engine_folder / "model.fp32.onnx", out, pictures(1))


@pytest.mark.parametrize("batch", [1, 3])
def test_a_graph_of_one_batch_size_is_quantised_as_one_of_any(engine_folder, tmp_path, batch):
    source, out = tmp_path / "fixed.onnx", tmp_path / "int8.onnx"
    export(engine_folder / "checkpoint", source, height=H, width=W, batch=batch)
    layers = [layer.weight for layer in linears(onnx.load(engine_folder / "model.fp32.onnx").graph)]
    assert [layer.weight for layer in linears(onnx.load(source).graph)] == layers
    images = pictures(3, seed=1)
    assert quantize(source, out, images, threads=1).details["layers"] == len(layers)
    judge = Judge(source, read_manifest(source), Labelled(images), threads=1)
    assert 15.0 < judge(onnx.load(out)).sqnr_db < 60.0
    # against PyTorch, which takes the image alone
    against = Judge(source, read_manifest(source), Labelled(images), checkpoint=engine_folder / "checkpoint", threads=1)
    assert against(onnx.load(source)).sqnr_db > 80.0


class Labelled:
    """Images with labels nobody looks at."""

    classes, palette, ignore, channels = CLASSES, ((0, 0, 0),) * len(CLASSES), 255, 3

    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return Sample(self.images[index], np.zeros((H, W), np.uint8), f"picture {index}")


def test_fp8_graphs_hold_e4m3_and_run_as_they_are(engine_folder, tmp_path):
    path = tmp_path / "m.fp8.onnx"
    manifest = quantize(engine_folder / "model.fp16.onnx", path, pictures(2, seed=1), precision="fp8", threads=1)
    assert (manifest.precision, manifest.engine, manifest.details["target"]) == ("fp8", "tensorrt", "tensorrt")
    graph = onnx.load(path).graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    kinds = [constants[node.input[2]].data_type for node in graph.node if node.op_type == "DequantizeLinear"]
    assert kinds == [onnx.TensorProto.FLOAT8E4M3FN] * len(kinds)
    assert len(quantised_layers(graph)) == manifest.details["layers"] == 4 * 3 + 1
    scales = [constants[node.input[1]] for node in graph.node if node.op_type == "DequantizeLinear"]
    assert {tensor.data_type for tensor in scales} == {onnx.TensorProto.FLOAT16}
    batch = normalize(pictures(1), manifest.preprocess).numpy()
    runs = [masks(where, batch, "fp8") for where in (engine_folder / "model.fp16.onnx", path)]
    assert (
        sqnr(*runs) > 12
    )  # random weights; three bits of mantissa are 25 dB at best a layer, and 13 follow each other


def sqnr(x, y):
    return 10 * np.log10(np.square(x).sum() / np.square(y - x).sum())


@pytest.fixture(scope="module")
def bf16_graph(engine_folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("bf16") / "model.bf16.onnx"
    export(engine_folder / "checkpoint", path, height=56, width=72, precision="bf16")
    return path


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_bf16_graphs_are_quantised_too(bf16_graph, tmp_path, precision):
    manifest = quantize(bf16_graph, tmp_path / "m.onnx", pictures(2, seed=1), precision=precision, threads=1)
    assert manifest.details["base_precision"] == "bf16"
    graph = onnx.load(tmp_path / "m.onnx")
    constants = {tensor.name: tensor for tensor in graph.graph.initializer}
    assert len(quantised_layers(graph.graph)) == 4 * 3 + 1
    pairs = [node for node in graph.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert {constants[node.input[1]].data_type for node in pairs} == {onnx.TensorProto.BFLOAT16}
    # ONNX Runtime has no bf16 kernels on a CPU: the same weights and Q/DQ nodes, in float32 between them
    batch = normalize(pictures(1), manifest.preprocess).numpy()
    runs = [masks(widened(model), batch, precision) for model in (onnx.load(bf16_graph), graph)]
    assert sqnr(*runs) > 12


def test_a_widened_graph_keeps_the_rounded_weights(engine_folder):
    narrow = onnx.load(engine_folder / "model.fp16.onnx")
    wide = widened(narrow)
    names = {tensor.name: tensor for tensor in narrow.graph.initializer}
    for tensor in wide.graph.initializer:
        assert tensor.data_type not in (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
        values = onnx.numpy_helper.to_array(tensor)
        np.testing.assert_array_equal(values, onnx.numpy_helper.to_array(names[tensor.name]).astype(values.dtype))
    onnx.checker.check_model(wide, full_check=True)


def test_graphs_with_plugins_are_refused(engine_folder, tmp_path):
    path = tmp_path / "m.onnx"
    shutil.copy(engine_folder / "model.fp16.onnx", path)
    base = read_manifest(engine_folder / "model.fp16.onnx")
    replace(base, artifact=path.name, plugins=("SegmenterAttention",)).write(path)
    with pytest.raises(EngineError, match="holds SegmenterAttention nodes; quantise an export with --lowering native"):
        quantize(path, tmp_path / "q.onnx", pictures(1))


def test_one_sided_activations_are_centred_for_symmetric_numbers(engine_folder):
    """What GELU gives gets the steps of uint8, and zero is one of them; what stands around zero is left as it is."""
    graph = onnx.load(engine_folder / "model.int8-trt.onnx").graph
    layers = quantised_layers(graph)
    assert {weight for weight, layer in layers.items() if layer.steps.shift} == {
        weight for weight in layers if weight.endswith("mlp.fc2.weight")
    }
    for layer in layers.values():
        steps = layer.steps.shift / layer.steps.scale
        assert steps == pytest.approx(round(steps), abs=0.05)  # in fp16, scale and shift are rounded each on its own
        assert abs(steps) <= 128
    made_by = {output: node for node in graph.node for output in node.output}
    for layer in layers.values():
        if layer.steps.shift:
            assert made_by[layer.activation].op_type == "Gelu"
            assert layer.steps.scale * -128 + layer.steps.shift == pytest.approx(-0.17, abs=0.1)  # the least GELU gives
