"""From a checkpoint to engines on a small network: export, int8, plans, sessions and verification."""

import json
import shutil
from collections import Counter
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from segmenter.checkpoint import save_model
from segmenter.datasets import Sample
from segmenter.errors import EngineError
from segmenter.preprocess import normalize
from segmenter_engines import export as export_command
from segmenter_engines import open_session
from segmenter_engines import quantize as quantize_command
from segmenter_engines import verify as verify_command
from segmenter_engines.build import build, layer_report
from segmenter_engines.calibrate import ranges
from segmenter_engines.export import export
from segmenter_engines.manifest import manifest_path, read_manifest
from segmenter_engines.quantize import linears, quantize
from segmenter_engines.verify import LIMITS, Limit, Verdict, verify
from tests.networks import CLASSES, small_network

H, W = 56, 72  # no multiples of the patch: padding and cropping happen inside the graph


def pictures(count, height=H, width=W, seed=0):
    """Smooth random images: noise would put every pixel near a tie."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (count, height // 8, width // 8, 3), dtype=np.uint8)
    return coarse.repeat(8, axis=1).repeat(8, axis=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Checkpoint and every artifact made from it, once for all tests."""
    folder = tmp_path_factory.mktemp("engines")
    model = small_network(distilled=True, layer_scale=True, image_size=(64, 80))
    save_model(model, folder / "checkpoint")
    for precision in ("fp32", "fp16"):
        export(folder / "checkpoint", folder / f"model.{precision}.onnx", height=H, width=W, precision=precision)
    quantize(folder / "model.fp32.onnx", folder / "model.int8.onnx", pictures(4, seed=1))
    quantize(folder / "model.fp16.onnx", folder / "model.int8-trt.onnx", pictures(4, seed=1), target="tensorrt")
    return folder


@pytest.fixture(scope="module")
def reference(folder):
    with open_session(folder / "checkpoint", "eager", threads=1) as session:
        yield session


def test_the_graph_is_whole_and_explains_itself(folder):
    graph = onnx.load(folder / "model.fp32.onnx")
    counts = Counter(node.op_type for node in graph.graph.node)
    assert counts["LayerNormalization"] == 2 * 2 + 1 + 2 + 1 + 1  # two encoder blocks, one decoder block, last norms
    assert counts["Gelu"] == 3
    assert {node.domain for node in graph.graph.node} == {""}
    assert [output.name for output in graph.graph.output] == ["labels", "masks"]
    facts = {prop.key: prop.value for prop in graph.metadata_props}
    assert facts["classes"].split("\n") == list(CLASSES)
    assert facts["mean"] == "0.5 0.5 0.5"


@pytest.mark.parametrize("batch", [1, 3])
def test_labels_masks_and_logits_come_out_of_any_onnx_runtime(folder, reference, tmp_path, batch):
    export(folder / "checkpoint", tmp_path / "model.onnx", height=H, width=W, logits=True)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    images = pictures(batch)
    feed = normalize(images, reference.spec.preprocess).numpy()
    labels, masks, logits = session.run(["labels", "masks", "logits"], {"images": feed})
    assert labels.dtype == np.uint8
    assert masks.shape == (batch, len(CLASSES), 4, 5)
    np.testing.assert_allclose(logits, reference.logits(images), rtol=1e-3, atol=1e-4)
    assert (labels != reference(images)).mean() <= 1e-3


@pytest.mark.parametrize("engine", ["compiled", "onnxruntime", "openvino"])
def test_fp32_engines_label_as_pytorch_does(folder, reference, engine):
    path = folder / ("checkpoint" if engine == "compiled" else "model.fp32.onnx")
    images = pictures(3)
    with open_session(path, engine, threads=1) as session:
        assert session.name == f"{engine}-fp32"
        assert session.classes == CLASSES
        labels = session(images)
        assert labels.shape == (3, H, W)
        assert labels.dtype == np.uint8
        assert len(np.unique(labels)) > 1
        assert (labels != reference(images)).mean() <= 1e-3
        np.testing.assert_allclose(session.logits(images), reference.logits(images), rtol=1e-3, atol=1e-3)
        assert np.array_equal(session(images[0]), labels[0])
        facts = session.describe()
    assert facts["engine"] == engine
    assert facts["threads"] == 1
    json.dumps(facts)


@pytest.mark.parametrize(("engine", "precision"), [("onnxruntime", None), ("openvino", None), ("openvino", "fp32")])
def test_int8_engines_stay_close(folder, reference, engine, precision):
    images = pictures(4, seed=2)
    with open_session(folder / "model.int8.onnx", engine, threads=1, precision=precision) as session:
        assert session.name == f"{engine}-int8"
        noise = session.logits(images) - (truth := reference.logits(images))
    sqnr = 10 * np.log10(np.square(truth).sum() / np.square(noise).sum())
    assert sqnr > 15.0


def test_int8_replaces_the_linear_layers_and_nothing_else(folder):
    for name, target in (("model.int8.onnx", onnx.TensorProto.UINT8), ("model.int8-trt.onnx", onnx.TensorProto.INT8)):
        graph = onnx.load(folder / name).graph
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
        assert read_manifest(folder / name).details["layers"] == len(quantised)


def test_smoothing_changes_nothing_in_floating_point_and_tames_outliers(folder):
    from segmenter_engines.calibrate import channel_peaks
    from segmenter_engines.smooth import norm_fed, smooth

    path = folder / "model.fp32.onnx"
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
    spiky = folder / "spiky.onnx"
    onnx.save(model, spiky)
    batches = [normalize(picture, read_manifest(path).preprocess).numpy() for picture in pictures(2)]
    before = channel_peaks(spiky, list(fed), batches)
    smooth(model.graph, fed, before, 0.5)
    onnx.save(model, folder / "smoothed.onnx")
    after = channel_peaks(folder / "smoothed.onnx", list(fed), batches)
    name = norm.output[0]
    assert before[name].max() / np.median(before[name]) > 20
    assert after[name].max() / np.median(after[name]) < 10
    masks = [
        onnxruntime.InferenceSession(where, providers=["CPUExecutionProvider"]).run(["masks"], {"images": batches[0]})[
            0
        ]
        for where in (path, folder / "smoothed.onnx")
    ]
    np.testing.assert_allclose(masks[0], masks[1], rtol=1e-3, atol=1e-3)


def test_excluded_layers_stay_in_floating_point(folder, tmp_path):
    everything = linears(onnx.load(folder / "model.fp32.onnx").graph)
    word = everything[0].weight
    manifest = quantize(folder / "model.fp32.onnx", tmp_path / "m.onnx", pictures(1), exclude=[word])
    assert manifest.details["layers"] == sum(word not in layer.weight for layer in everything) < len(everything)
    names = {tensor.name for tensor in onnx.load(tmp_path / "m.onnx").graph.initializer}
    assert word in names


def test_ranges_span_what_was_seen(folder):
    path = folder / "model.fp32.onnx"
    names = [layer.activation for layer in linears(onnx.load(path).graph)]
    preprocess = read_manifest(path).preprocess
    one, two = ([normalize(picture, preprocess).numpy()] for picture in pictures(2))
    alone, other, both = (ranges(path, names, batches) for batches in (one, two, one + two))
    clipped = ranges(path, names, one, "percentile", 99.0)
    for name in names:
        assert both[name] == alone[name].union(other[name])
        assert alone[name].low <= clipped[name].low <= 0.0 <= clipped[name].high <= alone[name].high
        assert clipped[name].high - clipped[name].low < alone[name].high - alone[name].low


@pytest.mark.tensorrt
def test_plans_are_built_without_a_gpu_and_keep_attention_fused(folder, tmp_path):
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    for name, precision in (("model.fp16.onnx", "fp16"), ("model.int8-trt.onnx", "int8")):
        plan = tmp_path / f"model.{precision}.plan"
        manifest = build(folder / name, plan, batch=(1, 2, 4))
        assert manifest == read_manifest(plan)
        assert manifest.precision == precision
        assert manifest.outputs == ("labels",)
        assert manifest.batch == (1, 2, 4)
        assert manifest.details["layers"]["fused_attention"] == 3
        if precision == "int8":
            assert manifest.details["layers"]["products_int8"] == 13
        if not torch.cuda.is_available():
            with pytest.raises(EngineError, match=r"no NVIDIA driver|no CUDA device"):
                open_session(plan)


@pytest.mark.tensorrt
def test_graphs_a_plan_cannot_be_built_from_are_named(folder, tmp_path):
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    with pytest.raises(EngineError, match="--target tensorrt"):
        build(folder / "model.int8.onnx", tmp_path / "x.plan")
    with pytest.raises(EngineError, match=r"batch \(4, 2, 1\)"):
        build(folder / "model.fp16.onnx", tmp_path / "x.plan", batch=(4, 2, 1))
    with pytest.raises(EngineError, match="logits"):
        build(folder / "model.fp16.onnx", tmp_path / "x.plan", outputs=("logits",))
    with pytest.raises(EngineError, match=r"named \*\.plan"):
        build(folder / "model.fp16.onnx", tmp_path / "x.engine")
    manifest = read_manifest(folder / "model.fp16.onnx")
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no graph")
    from segmenter.files import sha256

    replace(manifest, artifact=broken.name, sha256=sha256(broken)).write(broken)
    with pytest.raises(EngineError, match="cannot parse"):
        build(broken, tmp_path / "x.plan")
    assert not (tmp_path / "x.plan").exists()


def test_the_builders_log_is_counted():
    lines = [
        "Name: _gemm_mha_v2_myl0_1, LayerType: kgen, Inputs: []",
        "Name: a, LayerType: gemm, Inputs: [ { Name: x, Dimensions: [1], Datatype: Int8 }], Constants: []",
        "noise\nName: b, LayerType: runtime_fusion, Inputs: [ { Name: y, Datatype: Half }]",
    ]
    assert layer_report(lines) == {"total": 3, "fused_attention": 1, "products_int8": 1, "products_half": 1}


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((H, W, 4), np.uint8), "uint8 RGB"),
        (np.zeros((H, W, 3), np.float32), "float32"),
        (np.zeros((H, W), np.uint8), "uint8 RGB"),
        (np.zeros((0, H, W, 3), np.uint8), "uint8 RGB"),
        (np.zeros((H, W + 8, 3), np.uint8), rf"image {H}x{W + 8}: this engine takes {H}x{W}.*--height {H}"),
        (np.zeros((65, H, W, 3), np.uint8), "at most 64"),
    ],
)
def test_images_an_engine_does_not_take_are_named(folder, images, message):
    with open_session(folder / "model.fp32.onnx", threads=1) as session, pytest.raises(EngineError, match=message):
        session(images)


def test_artifacts_and_engines_that_do_not_fit_are_named(folder, tmp_path):
    with pytest.raises(EngineError, match="unknown; choose one of eager"):
        open_session(folder / "model.fp32.onnx", "warp")
    with pytest.raises(EngineError, match="onnxruntime or openvino"):
        open_session(folder / "model.fp32.onnx", "eager")
    with pytest.raises(EngineError, match="no such artifact"):
        open_session(tmp_path / "nothing")
    with pytest.raises(EngineError, match="no such engine file"):
        open_session(tmp_path / "nothing.onnx")
    copy = tmp_path / "copy.onnx"
    shutil.copy(folder / "model.fp32.onnx", copy)
    with pytest.raises(EngineError, match=r"no manifest copy\.onnx\.json"):
        open_session(copy)
    shutil.copy(manifest_path(folder / "model.fp32.onnx"), manifest_path(copy))
    copy.write_bytes(copy.read_bytes() + b"x")
    with pytest.raises(EngineError, match="SHA-256 differs"):
        open_session(copy)
    manifest_path(copy).write_text("{}")
    with pytest.raises(EngineError, match="format None"):
        open_session(copy)


def test_requests_export_and_quantize_refuse(folder, tmp_path):
    with pytest.raises(EngineError, match=r"named \*\.onnx"):
        export(folder / "checkpoint", tmp_path / "model.plan")
    with pytest.raises(EngineError, match="quantize"):
        export(folder / "checkpoint", tmp_path / "m.onnx", precision="int8")
    with pytest.raises(EngineError, match="smaller than one 16 pixel patch"):
        export(folder / "checkpoint", tmp_path / "m.onnx", height=8, width=64)
    with pytest.raises(EngineError, match="--precision fp16"):
        quantize(folder / "model.fp32.onnx", tmp_path / "m.onnx", pictures(1), target="tensorrt")
    with pytest.raises(EngineError, match="no calibration images"):
        quantize(folder / "model.fp32.onnx", tmp_path / "m.onnx", [])
    with pytest.raises(EngineError, match=f"calibration image 64x64.*{H}x{W}"):
        quantize(folder / "model.fp32.onnx", tmp_path / "m.onnx", pictures(1, 64, 64))
    assert not list(tmp_path.iterdir())


class Pictures:
    """Pictures whose truth is what a session says of them: its own mIoU is 1."""

    classes, palette, ignore = CLASSES, ((0, 0, 0),) * len(CLASSES), 255

    def __init__(self, session, count=4):
        self.images = pictures(count, seed=3)
        self.labels = session(self.images)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        if index >= len(self):
            raise IndexError(index)
        return Sample(self.images[index], self.labels[index], f"picture {index}")


def test_verify_passes_what_is_equal_and_catches_what_is_not(folder, reference):
    samples = Pictures(reference)
    with open_session(folder / "model.fp32.onnx", threads=1) as session:
        verdict = verify(session, reference, samples)
        assert verdict.faults == []
        assert verdict.reference_miou == 1.0
        assert verdict.agreement > 0.999
        assert verdict.row_disagreement is not None
        assert verdict.row_disagreement <= 0.001
        honest = session._masks
        session._masks = lambda x: np.ascontiguousarray(honest(x)[:, ::-1])
        verdict = verify(session, reference, samples)
        assert len(verdict.faults) == 2
        session._masks = lambda x: honest(x[:1].repeat(len(x), axis=0))  # a batch that repeats its first row
        verdict = verify(session, reference, samples)
        assert len(verdict.faults) == 1
        assert verdict.faults[0].startswith("a row of a batch differs from its image alone in")


def test_a_verdict_of_nan_fails():
    verdict = Verdict("x", "fp32", 1, float("nan"), 0.5, float("nan"), None, LIMITS["fp32"])
    assert len(verdict.faults) == 2
    assert not replace(verdict, miou=0.5, agreement=1.0).faults
    assert replace(verdict, miou=0.48, agreement=1.0, limit=Limit(0.01, 0.1, 0.1)).faults


def test_the_commands_chain(folder, tmp_path, capsys, picture_root, tiny_model):
    """checkpoint -> ONNX -> int8 -> verified, through the command line, on a dataset on disk."""
    tiny = replace(tiny_model.config.encoder, image_size=(40, 56))
    from segmenter.model import Segmenter

    torch.manual_seed(1)
    save_model(Segmenter(replace(tiny_model.config, encoder=tiny)), tmp_path / "ckpt")
    assert export_command.main([str(tmp_path / "ckpt"), "--out", str(tmp_path / "m.onnx")]) == 0
    data = ["--dataset", "folder", "--data", str(picture_root)]
    assert (
        quantize_command.main([str(tmp_path / "m.onnx"), "--out", str(tmp_path / "q.onnx"), "--images", "2", *data])
        == 0
    )
    command = ["--checkpoint", str(tmp_path / "ckpt"), "--engine", "openvino", *data]
    assert verify_command.main([str(tmp_path / "m.onnx"), *command]) == 0
    assert "100" in capsys.readouterr().out
    assert read_manifest(tmp_path / "m.onnx").verification["openvino-fp32"]["passed"] is True
    assert verify_command.main([str(tmp_path / "q.onnx"), *command, "--max-drop", "-1"]) != 0
    assert "mIoU dropped by" in capsys.readouterr().err
    assert read_manifest(tmp_path / "q.onnx").verification["openvino-int8"]["passed"] is False
