"""Building on TensorRT-RTX itself: every option, and what a plan cannot be built from."""

import subprocess
import sys
from dataclasses import replace

import onnx
import pytest
import torch
from onnx import TensorProto, helper

from segmenter.errors import EngineError, Unavailable
from segmenter.files import sha256
from segmenter_engines import build as build_command
from segmenter_engines import open_session, tensorrt_api
from segmenter_engines.build import build
from segmenter_engines.export import export
from segmenter_engines.layer_report import read_report, report_path
from segmenter_engines.manifest import read_manifest
from segmenter_engines.tensorrt_api import builder_log
from tests.builders import rtx_fixture, source_fixture  # noqa: F401 - fixtures
from tests.networks import small_network
from tests.small_engines import H, W


@pytest.mark.tensorrt
def test_plans_are_built_without_a_gpu_and_keep_attention_fused(rtx, engine_folder, tmp_path):
    for name, precision in (("model.fp16.onnx", "fp16"), ("model.int8-trt.onnx", "int8")):
        plan = tmp_path / f"model.{precision}.plan"
        manifest = build(engine_folder / name, plan, batch=(1, 2, 4))
        assert manifest == read_manifest(plan)
        assert (manifest.precision, manifest.outputs, manifest.batch) == (precision, ("labels",), (1, 2, 4))
        assert manifest.versions["tensorrt-rtx"] == rtx.__version__
        assert manifest.compute_capabilities == ("8.0", "8.6", "8.9", "12.0")
        layers = manifest.details["layers"]
        assert (layers["attentions"], layers["fused_attention"]) == (3, 3)
        report = read_report(plan, manifest.sha256)
        assert report.counts() == layers
        assert {one.ran for one in report.linears if one.asked == "fp16"} == {"fp16"}
        if precision == "int8":
            assert layers["products_int8"] >= 10
        if not torch.cuda.is_available():
            with pytest.raises(EngineError, match=r"no NVIDIA driver|no CUDA device"):
                open_session(plan)
            with pytest.raises(Unavailable):
                open_session(plan)


@pytest.mark.tensorrt
def test_options_reach_the_builder(rtx, source, tmp_path, capsys):
    plan = tmp_path / "m.plan"
    arguments = [str(source), "--out", str(plan), "--batch", "2", "2", "2", "--level", "1", "--gpus", "8.6", "12.0"]
    assert build_command.main([*arguments, "--outputs", "masks", "--report", "--workspace-mib", "512"]) == 0
    said = capsys.readouterr().out
    assert "3 fused attention kernels; TensorRT-RTX" in said
    assert f"not verified in tensorrt-rtx-fp16: run `segmenter verify {plan} --checkpoint CHECKPOINT" in said
    manifest = read_manifest(plan)
    assert manifest.compute_capabilities == ("8.6", "12.0")
    assert (manifest.outputs, manifest.batch, manifest.details["level"]) == (("masks",), (2, 2, 2), 1)
    layers = read_report(plan, manifest.sha256).layers
    sides = {tensor.name: tensor.shape for layer in layers for tensor in (*layer.inputs, *layer.outputs)}
    assert sides["images"] == (2, 3, H, W)  # one shape, known to the builder
    assert "masks" in sides
    assert "labels" not in sides
    assert plan.with_name("m.plan.layers.html").is_file()
    build(source, plan)
    assert not plan.with_name("m.plan.layers.html").exists()  # it was of the plan before


@pytest.mark.tensorrt
def test_labels_of_many_classes_are_int32_in_a_plan(rtx, tmp_path):
    network = small_network("linear", classes=tuple(f"class {index}" for index in range(257)), depth=1)
    export(network, tmp_path / "m.onnx", precision="fp16")
    (labels,) = (output for output in onnx.load(tmp_path / "m.onnx").graph.output if output.name == "labels")
    assert labels.type.tensor_type.elem_type == TensorProto.INT16
    for outputs in (("labels", "masks"), ("labels",)):
        manifest = build(tmp_path / "m.onnx", tmp_path / "m.plan", outputs=outputs)
        assert manifest.details["layers"]["fused_attention"] == 1
        layers = read_report(tmp_path / "m.plan", manifest.sha256).layers
        (made,) = (tensor for layer in layers for tensor in layer.outputs if tensor.name == "labels")
        assert made.type == "int32"


@pytest.mark.tensorrt
def test_a_graph_of_pixels_and_of_any_size_gets_such_a_profile(rtx, tmp_path):
    """uint8 [B, H, W, 3] with H and W open, made by hand."""
    shape = ["B", "H", "W", 3]
    nodes = [
        helper.make_node("Cast", ["images"], ["real"], to=TensorProto.FLOAT16),
        helper.make_node("ReduceMean", ["real", "axis"], ["mean"], keepdims=0),
        helper.make_node("Cast", ["mean"], ["masks"], to=TensorProto.FLOAT),
    ]
    graph = helper.make_graph(
        nodes,
        "pixels",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, shape)],
        [helper.make_tensor_value_info("masks", TensorProto.FLOAT, shape[:3])],
        [helper.make_tensor("axis", TensorProto.INT64, [1], [3])],
    )
    source = tmp_path / "pixels.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), source)
    _manifest(source, input="pixels", height=(32, 64, 128), width=(48, 48, 96), outputs=("masks",), batch=(1, 1, 64))
    manifest = build(source, tmp_path / "m.plan", outputs=("masks",), width=(48, 64, 80))
    assert (manifest.batch, manifest.height, manifest.width) == ((1, 1, 8), (32, 64, 128), (48, 64, 80))
    first = read_report(tmp_path / "m.plan", manifest.sha256).layers
    assert (-1, -1, -1, 3) in {tensor.shape for layer in first for tensor in layer.inputs if tensor.name == "images"}
    for side, wanted in (("height", (16, 64, 128)), ("width", (48, 97, 96)), ("height", (64, 32, 128))):
        with pytest.raises(EngineError, match=rf"{side} \({wanted[0]}, .* wanted min <= opt <= max, from .*export the"):
            build(source, tmp_path / "m.plan", outputs=("masks",), **{side: wanted})


def _manifest(source, **changes):
    """A manifest for a graph made by hand."""
    from segmenter.config import Preprocess
    from segmenter_engines.manifest import Manifest

    values = {
        "artifact": source.name, "kind": "onnx", "engine": "any", "precision": "fp16", "sha256": sha256(source),
        "source": {}, "model": "small", "patch_size": 16, "input": "normalized", "height": (64,) * 3,
        "width": (64,) * 3, "batch": (1, 1, 64), "outputs": ("labels",), "classes": ("a", "b"),
        "palette": ((0, 0, 0), (1, 1, 1)), "preprocess": Preprocess(), "command": "", "versions": {}, "machine": "x",
    }  # fmt: skip
    Manifest(**{**values, **changes}).write(source)


@pytest.mark.tensorrt
def test_graphs_a_plan_cannot_be_built_from_are_named(rtx, engine_folder, source, tmp_path):
    out = tmp_path / "x.plan"
    with pytest.raises(EngineError, match="--target tensorrt"):
        build(engine_folder / "model.int8.onnx", out)
    with pytest.raises(EngineError, match=r"named \*\.plan"):
        build(source, tmp_path / "x.engine")
    manifest = read_manifest(source)
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no graph")
    replace(manifest, artifact=broken.name, sha256=sha256(broken)).write(broken)
    with pytest.raises(EngineError, match=r"broken\.onnx: is no ONNX graph"):
        build(broken, out)
    odd = onnx.load(source)
    odd.graph.node[0].op_type, odd.graph.node[0].domain = "Unheard", "nowhere"
    onnx.save(odd, tmp_path / "odd.onnx")
    replace(manifest, artifact="odd.onnx", sha256=sha256(tmp_path / "odd.onnx")).write(tmp_path / "odd.onnx")
    with pytest.raises(EngineError, match=rf"odd\.onnx: tensorrt-rtx cannot parse it: {odd.graph.node[0].name}: "):
        build(tmp_path / "odd.onnx", out)
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workspace-mib", "-1"], "workspace of -1 MiB: wanted 1 to"),
        (["--workspace-mib", "0"], "workspace of 0 MiB: wanted 1 to"),
        (["--workspace-mib", "9999999999999"], "workspace of 9999999999999 MiB: wanted 1 to"),
        (["--level", "6"], "level 6: wanted 0 (quick build) to 5"),
        (["--level", "-1"], "level -1: wanted 0"),
        (["--batch", "4", "2", "1"], "batch (4, 2, 1): wanted min <= opt <= max, from 1 to 64"),
        (["--batch", "1", "2", "65"], "batch (1, 2, 65): wanted"),
        (["--height", "64", "64", "64"], f"height (64, 64, 64): wanted min <= opt <= max, all three {H}"),
        (["--width", "64", "64", "64"], f"width (64, 64, 64): wanted min <= opt <= max, all three {W}"),
        (["--outputs", "logits"], "outputs ['logits']: the graph has labels, masks"),
        (["--timing-cache", "/tmp"], "--timing-cache /tmp: engine tensorrt-rtx times nothing"),
        (["--plugin-library", "/nowhere/p.so"], "plugin library /nowhere/p.so: no such file"),
        (["--gpus", "9.0"], "--gpus 9.0: tensorrt-rtx 1."),
        (["--gpus", "ampere"], "--gpus ampere: wanted compute capabilities such as 8.6"),
        (["--gpus", "8.6", "8.6"], "names one twice"),
        (["--engine", "openvino"], "openvino"),
    ],
)
@pytest.mark.tensorrt
def test_a_wrong_option_is_one_line(rtx, source, tmp_path, capsys, arguments, message):
    assert build_command.main([str(source), "--out", str(tmp_path / "x.plan"), *arguments]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert message in said
    assert said.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.tensorrt
def test_gpus_without_the_precision_are_refused(rtx, engine_folder, tmp_path):
    source = tmp_path / "m.onnx"
    source.write_bytes((engine_folder / "model.fp16.onnx").read_bytes())
    base = read_manifest(engine_folder / "model.fp16.onnx")
    replace(base, artifact=source.name, precision="fp8").write(source)
    with pytest.raises(EngineError, match=r"--gpus 8\.6: fp8 products begin with 8\.9"):
        build(source, tmp_path / "m.plan", gpus=("8.6", "8.9"))
    assert build(source, tmp_path / "m.plan").compute_capabilities == ("8.9", "12.0")


@pytest.mark.tensorrt
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: refit plans are built on it")
def test_a_refit_plan_needs_a_gpu_in_rtx(rtx, source, tmp_path, capsys):
    assert build_command.main([str(source), "--out", str(tmp_path / "x.plan"), "--refit"]) == 2
    assert "leave --refit out, or build on a GPU" in capsys.readouterr().err


@pytest.mark.tensorrt
def test_ops_that_no_library_brings_are_named(rtx, tmp_path):
    source = tmp_path / "plugin.onnx"
    sides = ["B", 16, 2, 32]
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT16, sides) for name in ("images", "labels")]
    node = helper.make_node("SegmenterAttention", ["images"], ["labels"], domain="segmenter", name="attention")
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("segmenter", 1)]
    graph = helper.make_graph([node], "plugin", tensors[:1], tensors[1:])
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), source)
    _manifest(source, plugins=("SegmenterAttention",))
    with pytest.raises(EngineError, match=r"ops SegmenterAttention are needed, which come from a plugin library; pass"):
        build(source, tmp_path / "m.plan")
    text = tmp_path / "no_library.so"
    text.write_text("nothing")
    with pytest.raises(EngineError, match=r"plugin library .*no_library\.so: tensorrt-rtx cannot load it: .*headers"):
        build(source, tmp_path / "m.plan", plugin_library=text)


def test_the_rtx_parser_finds_its_runtime_by_the_name_it_opens(rtx):
    """Without this, a graph with plugins ends the process; in one of its own, for libraries are loaded once."""
    if sys.platform != "linux":
        pytest.skip("the parser of other systems looks for other names")
    # beside the library it was loaded with: the folder the loader remembers, a link's and not the file's
    code = (
        "import ctypes, pathlib\n"
        "from segmenter_engines.tensorrt_api import tensorrt\n"
        "tensorrt('tensorrt-rtx')\n"
        "library = ctypes.CDLL('libtensorrt_rtx.so.1')\n"
        "class Map(ctypes.Structure): _fields_ = [('base', ctypes.c_void_p), ('name', ctypes.c_char_p)]\n"
        "linker, found = ctypes.CDLL(None), ctypes.c_void_p()\n"
        "linker.dlinfo(ctypes.c_void_p(library._handle), 2, ctypes.byref(found))\n"
        "home = pathlib.Path(Map.from_address(found.value).name.decode()).parent\n"
        "print((home / 'libtensorrt_rtx.so').exists())\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "True\n"


@pytest.mark.parametrize("engine", ["tensorrt", "tensorrt-rtx"])
def test_an_engine_that_is_not_installed_is_one_line(monkeypatch, source, tmp_path, engine):
    monkeypatch.setitem(sys.modules, tensorrt_api.ENGINES[engine].module, None)
    with pytest.raises(Unavailable, match=rf"engine {engine}: .*pip install 'segmenter-trt\[{engine}\]'"):
        build(source, tmp_path / "m.plan", engine=engine)
    with pytest.raises(EngineError, match="engine 'warp': plans are built for tensorrt-rtx and tensorrt"):
        build(source, tmp_path / "m.plan", engine="warp")


@pytest.mark.tensorrt
def test_weights_stay_out_of_what_is_written(rtx, source, tmp_path):
    """No number of a weight is in the report or the manifest, and the log is not kept."""
    manifest = build(source, tmp_path / "m.plan")
    written = report_path(tmp_path / "m.plan").read_text() + manifest.text()
    [weight] = [one for one in onnx.load(source).graph.initializer if one.name.endswith("cls_emb")]
    numbers = onnx.numpy_helper.to_array(weight).ravel()[:20]
    assert not [number for number in numbers if f"{float(number):.4f}"[:6] in written]
    assert builder_log("tensorrt-rtx").messages == []
