"""Every session on a small network: the labels PyTorch gives, and what each refuses."""

import json
import re
import shutil
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from segmenter.cpu import cpu_flags, int8_saturates
from segmenter.errors import CheckpointError, EngineError
from segmenter.preprocess import normalize
from segmenter_engines import open_session
from segmenter_engines.cut import cut
from segmenter_engines.manifest import read_manifest
from segmenter_engines.sessions import open_engine
from segmenter_engines.sessions.onnxruntime import session_options
from tests.networks import CLASSES
from tests.small_engines import HEIGHTS, PIXELS, RANGED, WIDTHS, H, W, network, pictures


def logits_in_float64(images):
    model = network().double()
    with torch.inference_mode():
        return model(normalize(images, model.config.preprocess).double()).numpy()


def layernorm_in_one_pass() -> bool:
    """Whether this ONNX Runtime takes variance as mean square less squared mean: 1.23, the last for Python 3.10, does.

    A row of mean 10 and deviation 1 then comes out 5e-5 off, a hundred times what two passes leave.
    """
    node = helper.make_node("LayerNormalization", ["x", "weight"], ["y"], axis=-1, epsilon=1e-6)
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [64, 32]) for name in "xy")
    ones = numpy_helper.from_array(np.ones(32, np.float32), "weight")
    graph = helper.make_graph([node], "norm", [x], [y], [ones])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    model.ir_version = 9
    rows = np.random.default_rng(0).normal(10, 1, (64, 32)).astype(np.float32)
    wide = rows.astype(np.float64)
    truth = (wide - wide.mean(1, keepdims=True)) / np.sqrt(wide.var(1, keepdims=True) + 1e-6)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return bool(np.abs(session.run(None, {"x": rows})[0] - truth).max() > 5e-6)


@pytest.mark.parametrize("engine", ["compiled", "onnxruntime", "openvino"])
def test_fp32_engines_label_as_pytorch_does(engine_folder, reference, engine):
    path = engine_folder / ("checkpoint" if engine == "compiled" else "model.fp32.onnx")
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
        times = 16 if engine == "onnxruntime" and layernorm_in_one_pass() else 4
        truth = logits_in_float64(images)
        rounding = np.abs(reference.logits(images) - truth).max()
        assert np.abs(session.logits(images) - truth).max() <= times * rounding
        assert np.array_equal(session(images[0]), labels[0])
        facts = session.describe()
    assert facts["engine"] == engine
    assert facts["threads"] == 1
    json.dumps(facts)


@pytest.mark.parametrize(("engine", "precision"), [("onnxruntime", None), ("openvino", None), ("openvino", "fp32")])
def test_int8_engines_stay_close(engine_folder, reference, engine, precision):
    if engine == "openvino" and int8_saturates(cpu_flags()):
        # seen: 15.6 dB; with weights of 7 bits, whose sums fit, it has ONNX Runtime's 19.2 dB
        pytest.skip("this CPU has no VNNI: OpenVINO's sums of int8 overflow there, of which it warns")
    images = pictures(4, seed=2)
    with open_session(engine_folder / "model.int8.onnx", engine, threads=1, precision=precision) as session:
        assert session.name == f"{engine}-int8"
        noise = session.logits(images) - (truth := reference.logits(images))
    sqnr = 10 * np.log10(np.square(truth).sum() / np.square(noise).sum())
    # 255 steps over +-4 sigma are 41 dB; 13 layers, each with an activation and a weight, add 26 such noises, -14 dB;
    # and less than what a bit is worth may be lost on top, -6 dB
    assert sqnr > 41 - 14 - 6


def test_pytorch_engines_make_labels_in_the_layout_the_decoder_leaves(engine_folder, reference, monkeypatch):
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


def test_torch_compile_is_given_the_labels_too(engine_folder, monkeypatch):
    ran = []

    def compile(function, **options):
        return lambda *args: ran.append(function.__name__) or function(*args)

    monkeypatch.setattr(torch, "compile", compile)
    with open_session(engine_folder / "checkpoint", "compiled", threads=1) as session:
        session(pictures(1))
        session.masks(session._normalize(pictures(1)))
    assert ran == ["_label", "masks"]


@pytest.mark.parametrize("engine", ["eager", "onnxruntime", "openvino"])
def test_masks_are_the_callers_own(engine_folder, engine):
    with open_session(
        engine_folder / ("checkpoint" if engine == "eager" else "model.fp32.onnx"), engine, threads=1
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
def test_engines_without_a_choice_of_precision_refuse_one(engine_folder, name, engine):
    with pytest.raises(EngineError, match=rf"precision 'bf16': {engine} computes in what its artifact holds"):
        open_session(engine_folder / name, engine, threads=1, precision="bf16")


def test_what_a_runtime_complains_of_names_the_engine(engine_folder):
    with open_session(engine_folder / "model.fp16.onnx", threads=1) as session:
        honest = session._masks
        session._masks = lambda x: honest(x) * np.float32("nan")
        with pytest.raises(EngineError, match=r"^onnxruntime-fp16, small: .*nan"):
            session(pictures(1))
        session._masks = lambda x: honest(x[:, :1])  # an exception of ONNX Runtime's own
        for call in (session, session.logits, lambda images: session.masks(session._normalize(images))):
            with pytest.raises(EngineError, match=r"^onnxruntime-fp16, small: "):
                call(pictures(1))


def test_pytorch_does_not_label_scores_that_are_no_numbers(engine_folder):
    with open_session(engine_folder / "checkpoint", "eager", threads=1) as session:
        session._model.decoder.mask_norm.bias.data[1] = float("nan")
        with pytest.raises(EngineError, match="eager-fp32, small: scores that are no numbers"):
            session(pictures(1))


def test_int8_products_do_not_overflow_unheard(engine_folder, monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    for flags in (["avx2"], []):
        monkeypatch.setattr("segmenter_engines.sessions.onnxruntime.cpu_flags", lambda flags=flags: flags)
        assert session_options(1).get_session_config_entry("session.x64quantprecision") == "1"
    monkeypatch.setattr("segmenter_engines.sessions.onnxruntime.cpu_flags", lambda: ["avx2", "avx512_vnni"])
    with pytest.raises(RuntimeError, match="x64quantprecision"):  # not set: it costs time for nothing
        session_options(1).get_session_config_entry("session.x64quantprecision")
    assert int8_saturates(["avx2", "avx512f"], "x86_64")
    assert not any(int8_saturates(["avx2", flag], "x86_64") for flag in ("avx_vnni", "avx512_vnni", "amx_int8"))
    assert not int8_saturates(["asimddp"], "aarch64")
    assert not int8_saturates([], "x86_64")  # nothing is known
    monkeypatch.setattr("segmenter_engines.sessions.openvino.cpu_flags", lambda: ["avx2"])
    with pytest.warns(RuntimeWarning, match=r"model\.int8\.onnx: this CPU has no VNNI"):
        open_session(engine_folder / "model.int8.onnx", "openvino", threads=1).close()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        open_engine(engine_folder / "model.fp32.onnx", "openvino", threads=1).close()


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((H, W, 4), np.uint8), "uint8 RGB"),
        (np.zeros((H, W, 3), np.float32), "float32"),
        (np.zeros((H, W), np.uint8), "uint8 RGB"),
        (np.zeros((0, H, W, 3), np.uint8), "an empty batch; pass at least one image"),
        (None, r"of type NoneType: wanted uint8 RGB .*; pass np\.asarray"),
        ([[1, 2, 3]], "of type list: wanted uint8 RGB"),
        (np.zeros((3, 3, 3), np.uint8), rf"image 3x3: this engine takes {H}x{W}; resize it$"),
        (np.zeros((H, W + 8, 3), np.uint8), rf"image {H}x{W + 8}: this engine takes {H}x{W}.*--height {H}"),
        (np.zeros((65, H, W, 3), np.uint8), "at most 64"),
    ],
)
def test_images_an_engine_does_not_take_are_named(engine_folder, images, message):
    with (
        open_session(engine_folder / "model.fp32.onnx", threads=1) as session,
        pytest.raises(EngineError, match=message),
    ):
        session(images)


def test_an_engine_folder_names_what_can_be_opened_in_it(engine_folder, tmp_path):
    graphs = r"model\.fp16\.onnx, model\.fp32\.onnx, model\.int8-trt\.onnx, model\.int8\.onnx"
    wanted = (
        r": no checkpoint; wanted a checkpoint folder \(config\.json and model\.safetensors, or .*\), or a file of an"
        r" engine folder \(\.onnx or \.plan, its manifest beside it\); "
    )
    for engine, found in (
        (None, f"engines can open checkpoint, {graphs}"),
        ("openvino", f"openvino can open {graphs}"),
    ):
        with pytest.raises(EngineError, match=f"{wanted}in it, {found}$"):
            open_session(engine_folder, engine)
    for folder, engine in ((engine_folder, "tensorrt"), (tmp_path, None)):  # no plan in the one, nothing in the other
        with pytest.raises(EngineError, match=f"{wanted}make one with `segmenter pipeline`$"):
            open_session(folder, engine)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"config\.json: "):  # a checkpoint, if a damaged one
        open_session(tmp_path)
    with pytest.raises(EngineError, match=r"for eager or compiled or triton$"):
        open_session(engine_folder / "checkpoint", "openvino")


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("graph", [RANGED, PIXELS])
def test_one_session_takes_every_size_of_a_range(ranged_folder, reference, engine, graph):
    with open_session(ranged_folder / graph, engine, threads=1) as session:
        assert session.describe()["height"] == HEIGHTS
        assert session.describe()["input"] == ("pixels" if graph == PIXELS else "normalized")
        for height, width in ((H, W), (160, 104), (24, 200)):
            images = pictures(2, height, width)
            assert (session(images) != reference(images)).mean() <= 1e-3
            np.testing.assert_allclose(session.logits(images), reference.logits(images), rtol=0, atol=1e-4)
            sure = torch.from_numpy(reference.logits(images)).softmax(dim=1).amax(dim=1)
            np.testing.assert_allclose(session.confidence(images), sure, rtol=0, atol=1e-4)
            assert session.confidence(images[0]).shape == (height, width)


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"classes": CLASSES[:3], "palette": ((0, 0, 0),) * 3},
            "gives masks [any, 5, 4, 5], its manifest says [1 to 64, 3, 4, 5]",
        ),
        ({"patch_size": 8}, "gives masks [any, 5, 4, 5], its manifest says [1 to 64, 5, 7, 9]"),
        ({"plugins": ("SegmenterAttention",)}, "holds SegmenterAttention, which"),
    ],
)
def test_a_graph_that_gives_other_masks_than_its_manifest_says_is_not_opened(
    engine_folder, tmp_path, engine, changes, says
):
    path = tmp_path / "model.fp32.onnx"
    shutil.copy(engine_folder / path.name, path)
    manifest = replace(read_manifest(engine_folder / path.name), batch=(1, 1, 64))
    manifest.write(path)
    open_engine(path, engine, threads=1).close()
    replace(manifest, **changes).write(path)
    with pytest.raises(EngineError, match=re.escape(f"{path}: ") + ".*" + re.escape(says)):
        open_engine(path, engine, threads=1)


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_masks_that_a_graph_leaves_open_are_held_to_its_manifest_when_they_come(ranged_folder, tmp_path, engine):
    path = tmp_path / RANGED
    shutil.copy(ranged_folder / RANGED, path)
    replace(read_manifest(ranged_folder / RANGED), patch_size=8).write(path)
    images = pictures(1)
    told = re.escape(f"are [1, 5, 4, 5], its manifest promises [1, 5, {H // 8}, {W // 8}]; make both again")
    with open_engine(path, engine, threads=1) as session:
        for call in (session, session.logits, session.confidence):
            with pytest.raises(EngineError, match=told):
                call(images)


def test_images_outside_a_range_are_named_with_the_range_that_takes_them(ranged_folder):
    with open_session(ranged_folder / RANGED, threads=1) as session:
        wanted = (
            rf"image 161x{WIDTHS[2] + 1}: this engine takes 16 to 160 by 16 to 200; resize it, or export again with"
            rf" --height 16 {H} 161 --width 16 {W} 201"
        )
        with pytest.raises(EngineError, match=wanted):
            session(np.zeros((161, 201, 3), np.uint8))
        # less than a patch is what no export takes
        with pytest.raises(EngineError, match=r"image 15x201: .*; resize it$"):
            session(np.zeros((15, 201, 3), np.uint8))
        with pytest.raises(EngineError, match="batch of 5: this engine takes at most 4; split it"):
            session(pictures(5))


def test_a_network_is_given_what_it_takes(engine_folder, ranged_folder):
    with open_session(ranged_folder / PIXELS, threads=1) as session:
        assert np.array_equal(session.masks(pictures(1)), session.masks(pictures(1)))
        with pytest.raises(EngineError, match="fp32, small: its network takes pixels, uint8, and got float32"):
            session.network(torch.zeros(1, 3, H, W))
    with (
        open_session(engine_folder / "model.fp32.onnx", threads=1) as session,
        pytest.raises(EngineError, match="takes normalized, float32, and got uint8"),
    ):
        session.masks(pictures(1))


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_images_of_a_batch_run_beside_each_other_for_throughput(engine_folder, engine):
    path, images = engine_folder / "model.fp32.onnx", pictures(5)
    with (
        open_session(path, engine, threads=1) as alone,
        open_session(path, engine, threads=2, mode="throughput") as session,
    ):
        assert (alone.describe()["mode"], session.describe()["mode"]) == ("latency", "throughput")
        wanted = np.concatenate([alone.masks(alone._normalize(image[None])) for image in images])
        for _ in range(2):
            np.testing.assert_allclose(session.masks(session._normalize(images)), wanted, rtol=0, atol=1e-5)
        assert np.array_equal(session(images[0]), alone(images[0]))
        honest = session._masks
        session._masks = lambda x: honest(x[:, :1])  # an exception of the runtime's own, in its threads
        with pytest.raises(EngineError, match=f"{engine}-fp32, small: "):
            session(images)


@pytest.mark.parametrize("mode", ["latency", "throughput"])
def test_a_call_that_overlaps_another_is_refused_and_ruins_nothing(engine_folder, mode):
    images, refused = pictures(2), r"^openvino-fp32, small: in use by another call; one session serves one thread, open"
    with (
        open_session(engine_folder / "model.fp32.onnx", "openvino", threads=1, mode=mode) as session,
        ThreadPoolExecutor(4) as pool,
    ):
        wanted = session(images)

        def tried(_):
            try:
                return session(images)
            except EngineError as error:
                return str(error)

        for result in pool.map(tried, range(60)):
            assert re.match(refused, result) if isinstance(result, str) else np.array_equal(result, wanted)
        honest = session._masks

        def overlapped(x):
            masks = honest(x)  # in the runtime's memory, until they are labels
            session._masks = honest
            with pytest.raises(EngineError, match=refused):
                pool.submit(session, pictures(2, seed=1)).result()
            return masks

        session._masks = overlapped
        assert np.array_equal(session(images), wanted)
        assert np.array_equal(session(images), wanted)


def test_engines_with_one_way_to_run_refuse_another(engine_folder):
    with pytest.raises(EngineError, match="mode 'throughput': engine eager knows latency"):
        open_session(engine_folder / "checkpoint", "eager", mode="throughput")
    with pytest.raises(EngineError, match="mode 'fast': engine openvino knows latency and throughput"):
        open_session(engine_folder / "model.fp32.onnx", "openvino", mode="fast")


def test_onnx_runtime_is_given_only_what_masks_need(engine_folder):
    model = onnx.load(engine_folder / "model.fp32.onnx")
    cut(model.graph, ("masks",))
    onnx.checker.check_model(model, full_check=True)
    assert [output.name for output in model.graph.output] == ["masks"]
    assert not {"Resize", "ArgMax"} & {node.op_type for node in model.graph.node}
