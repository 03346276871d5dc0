"""From a checkpoint to engines on a small network: export, int8, plans, sessions and verification."""

import json
import shutil
import warnings
from collections import Counter
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from segmenter.checkpoint import save_model
from segmenter.cpu import cpu_flags, int8_saturates
from segmenter.datasets import Sample
from segmenter.errors import EngineError, Unavailable
from segmenter.files import sha256
from segmenter.preprocess import normalize
from segmenter_bench.models import open_folder
from segmenter_engines import export as export_command
from segmenter_engines import open_session
from segmenter_engines import quantize as quantize_command
from segmenter_engines import verify as verify_command
from segmenter_engines.build import build, layer_report
from segmenter_engines.calibrate import ranges
from segmenter_engines.export import export
from segmenter_engines.folder import FP16, FP32, INT8, INT8_TENSORRT, manifests
from segmenter_engines.manifest import manifest_path, read_manifest
from segmenter_engines.quantize import linears, quantize
from segmenter_engines.sessions.onnxruntime import session_options
from segmenter_engines.verify import LIMITS, Limit, Verdict, open_as_shipped, verify
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
    save_model(network(), folder / "checkpoint")
    for precision in ("fp32", "fp16"):
        export(folder / "checkpoint", folder / f"model.{precision}.onnx", height=H, width=W, precision=precision)
    quantize(folder / "model.fp32.onnx", folder / "model.int8.onnx", pictures(4, seed=1))
    quantize(folder / "model.fp16.onnx", folder / "model.int8-trt.onnx", pictures(4, seed=1), target="tensorrt")
    return folder


def network():
    return small_network(distilled=True, layer_scale=True, image_size=(64, 80))


def logits_in_float64(images):
    model = network().double()
    with torch.inference_mode():
        return model(normalize(images, model.config.preprocess).double()).numpy()


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
        # PyTorch's own rounding is one draw, another order of sums is another: twice each
        truth = logits_in_float64(images)
        rounding = np.abs(reference.logits(images) - truth).max()
        assert np.abs(session.logits(images) - truth).max() <= 4 * rounding
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
    # 255 steps over +-4 sigma are 41 dB; 13 layers, each with an activation and a weight, add 26 such noises, -14 dB;
    # and less than what a bit is worth may be lost on top, -6 dB
    assert sqnr > 41 - 14 - 6


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
    # no layer behind a norm is left, so smoothing has nothing to do
    manifest = quantize(folder / "model.fp32.onnx", tmp_path / "m.onnx", pictures(1), exclude=["qkv", "fc1"])
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
def test_layers_are_excluded_by_parts_of_their_parameters_names(folder, name):
    graph = onnx.load(folder / name).graph
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
def test_options_that_quantise_nothing_or_nonsense_are_refused(folder, tmp_path, options, message):
    with pytest.raises(EngineError, match=message):
        quantize(folder / "model.fp32.onnx", tmp_path / "m.onnx", pictures(1), **options)
    assert not list(tmp_path.iterdir())


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
            with pytest.raises(Unavailable):
                open_session(plan)
        with pytest.raises(EngineError, match="precision 'fp16': tensorrt-rtx computes in what its artifact holds"):
            open_session(plan, precision="fp16")


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


def test_pytorch_engines_make_labels_in_the_layout_the_decoder_leaves(folder, reference, monkeypatch):
    seen = []
    honest = reference._model.ops.upsample_argmax

    def upsample_argmax(masks, *sizes):
        seen.append(masks.is_contiguous(memory_format=torch.channels_last))
        return honest(masks, *sizes)

    monkeypatch.setattr(reference._model.ops, "upsample_argmax", upsample_argmax)
    labels = reference(pictures(2))
    assert seen == [True]
    with torch.inference_mode():
        expected = reference._model.labels(normalize(pictures(2), reference.spec.preprocess))
    assert (labels == expected.numpy()).all()


def test_torch_compile_is_given_the_labels_too(folder, monkeypatch):
    ran = []

    def compile(function, **options):
        return lambda *args: ran.append(function.__name__) or function(*args)

    monkeypatch.setattr(torch, "compile", compile)
    with open_session(folder / "checkpoint", "compiled", threads=1) as session:
        session(pictures(1))
        session.masks(session._normalize(pictures(1)))
    assert ran == ["_label", "masks"]


@pytest.mark.parametrize("engine", ["eager", "onnxruntime", "openvino"])
def test_masks_are_the_callers_own(folder, engine):
    with open_session(
        folder / ("checkpoint" if engine == "eager" else "model.fp32.onnx"), engine, threads=1
    ) as session:
        one, other = (session._normalize(picture[None]) for picture in pictures(2))
        masks = session.masks(one)
        before = masks.copy()
        assert not np.array_equal(session.masks(other), before)
        assert np.array_equal(masks, before)
        assert masks.flags.c_contiguous


@pytest.mark.parametrize(
    ("name", "engine"),
    [("checkpoint", "eager"), ("checkpoint", "compiled"), ("model.int8.onnx", "onnxruntime")],
)
def test_engines_without_a_choice_of_precision_refuse_one(folder, name, engine):
    with pytest.raises(EngineError, match=rf"precision 'bf16': {engine} computes in what its artifact holds"):
        open_session(folder / name, engine, threads=1, precision="bf16")


def test_what_a_runtime_complains_of_names_the_engine(folder):
    with open_session(folder / "model.fp16.onnx", threads=1) as session:
        honest = session._masks
        session._masks = lambda x: honest(x) * np.float32("nan")
        with pytest.raises(EngineError, match=r"^onnxruntime-fp16, small: .*nan"):
            session(pictures(1))
        session._masks = lambda x: honest(x[:, :1])  # an exception of ONNX Runtime's own
        for call in (session, session.logits, lambda images: session.masks(session._normalize(images))):
            with pytest.raises(EngineError, match=r"^onnxruntime-fp16, small: "):
                call(pictures(1))


def test_pytorch_does_not_label_scores_that_are_no_numbers(folder):
    with open_session(folder / "checkpoint", "eager", threads=1) as session:
        session._model.decoder.mask_norm.bias.data[1] = float("nan")
        with pytest.raises(EngineError, match="eager-fp32, small: scores that are no numbers"):
            session(pictures(1))


def test_int8_products_do_not_overflow_unheard(folder, monkeypatch):
    assert session_options(1).get_session_config_entry("session.x64quantprecision") == "1"
    assert int8_saturates(["avx2", "avx512f"], "x86_64")
    assert not any(int8_saturates(["avx2", flag], "x86_64") for flag in ("avx_vnni", "avx512_vnni", "amx_int8"))
    assert not int8_saturates(["asimddp"], "aarch64")
    assert not int8_saturates([], "x86_64")  # nothing is known
    monkeypatch.setattr("segmenter_engines.sessions.openvino.cpu_flags", lambda: ["avx2"])
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    with pytest.warns(RuntimeWarning, match=r"model\.int8\.onnx: this CPU has no VNNI"):
        open_session(folder / "model.int8.onnx", "openvino", threads=1).close()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        open_session(folder / "model.fp32.onnx", "openvino", threads=1).close()


def test_the_labels_a_plan_ships_are_verified(folder, reference, tmp_path):
    """The graph's own labels, which no other session runs: a wrong argmax in them must not pass."""
    with open_as_shipped(folder / "model.int8.onnx", None, 1, None) as session:
        assert "upsample_argmax" in session.describe()["labels_by"]
    graph = onnx.load(folder / "model.fp16.onnx")
    (node,) = (node for node in graph.graph.node if node.op_type == "ArgMax")
    node.op_type = "ArgMin"
    onnx.save(graph, tmp_path / "model.onnx")
    wrong = replace(read_manifest(folder / "model.fp16.onnx"), sha256=sha256(tmp_path / "model.onnx"))
    wrong.write(tmp_path / "model.onnx")
    samples = Pictures(reference)
    for path, faults in ((folder / "model.fp16.onnx", False), (tmp_path / "model.onnx", True)):
        with open_as_shipped(path, None, 1, None) as session:
            assert session.describe()["labels_by"] == "the graph"
            # random weights leave near ties, which 16 bits may turn: the limit is that of int8
            verdict = verify(session, reference, samples, limit=LIMITS["int8"])
            assert bool(verdict.faults) == faults
    with open_session(tmp_path / "model.onnx", threads=1) as session:
        assert not verify(session, reference, samples, limit=LIMITS["int8"]).faults
        assert verdict.cpu_flags == tuple(cpu_flags())


@pytest.fixture
def mixed(folder, tmp_path):
    """A copy of the engine folder, to be spoilt."""
    return shutil.copytree(folder, tmp_path / "mixed", ignore=shutil.ignore_patterns("s*.onnx"))


def test_engines_of_another_network_are_noticed(folder, mixed):
    assert set(manifests(mixed)) == {FP32, FP16, INT8, INT8_TENSORRT}
    weights = read_manifest(mixed / FP32).source["checkpoint"]
    assert read_manifest(mixed / INT8).source["checkpoint"] == weights == f"sha256:{open_folder(mixed).sha256}"
    whole = read_manifest(mixed / FP32)
    for spoilt, message in (
        (replace(whole, height=H + 1), r"images of 56x72 and 57x72"),
        (replace(whole, sha256="0"), rf"{INT8}: made of another graph than the {FP32} beside it"),
        (replace(whole, source={}), rf"{FP32}: made of other weights \(nothing\)"),
    ):
        spoilt.write(mixed / FP32)
        with pytest.raises(EngineError, match=message):
            open_folder(mixed)
    manifest_path(mixed / FP32).write_text("{")
    with pytest.raises(EngineError, match="not a manifest"):
        open_folder(mixed)
    whole.write(mixed / FP32)
    save_model(small_network(seed=1), mixed / "checkpoint")
    with pytest.raises(EngineError, match=rf"{FP32}: made of other weights .*; pass the checkpoint it was made of"):
        open_folder(mixed)


def test_verify_refuses_a_checkpoint_the_engine_was_not_made_of(mixed, picture_root, capsys):
    save_model(small_network(seed=1), mixed / "other")
    command = ["--dataset", "folder", "--data", str(picture_root), "--threads", "1"]
    assert verify_command.main([str(mixed / INT8), "--checkpoint", str(mixed / "other"), *command]) == 2
    assert "made of other weights" in capsys.readouterr().err


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
