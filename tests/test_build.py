"""Building: every option, on TensorRT-RTX itself, and on stand-ins for TensorRT 10 and 11."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch
from onnx import TensorProto, helper

from segmenter.errors import EngineError, Unavailable
from segmenter.files import sha256
from segmenter_engines import build as build_command
from segmenter_engines import builder, open_session, tensorrt_api
from segmenter_engines.build import build
from segmenter_engines.build_progress import run_stoppable
from segmenter_engines.layer_report import read_report, report_path
from segmenter_engines.manifest import manifest_path, read_manifest
from segmenter_engines.tensorrt_api import builder_log, tensorrt
from segmenter_engines.timing_cache import cache_file
from tests.fake_builder import fake_tensorrt
from tests.small_engines import H, W

VERSIONS = ("10.14.1.48", "11.1.0.106")
GPU = "NVIDIA L4"


@pytest.fixture
def rtx():
    return pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")


@pytest.fixture(params=VERSIONS)
def fake(request, monkeypatch, tmp_path):
    """TensorRT 10 or 11 on a machine with a GPU, as far as the builder asks."""
    module = fake_tensorrt(request.param)
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name, value in (("is_available", True), ("current_device", 0), ("set_device", None)):
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: GPU)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 9))
    builder_log.cache_clear()
    yield module
    builder_log.cache_clear()


@pytest.fixture
def source(engine_folder):
    return engine_folder / "model.fp16.onnx"


@pytest.mark.tensorrt
def test_plans_are_built_without_a_gpu_and_keep_attention_fused(rtx, engine_folder, tmp_path):
    for name, precision in (("model.fp16.onnx", "fp16"), ("model.int8-trt.onnx", "int8")):
        plan = tmp_path / f"model.{precision}.plan"
        manifest = build(engine_folder / name, plan, batch=(1, 2, 4))
        assert manifest == read_manifest(plan)
        assert (manifest.precision, manifest.outputs, manifest.batch) == (precision, ("labels",), (1, 2, 4))
        assert manifest.versions["tensorrt-rtx"] == rtx.__version__
        assert manifest.compute_capabilities == ("8.0+",)
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
    assert "3 fused attention kernels; TensorRT-RTX" in capsys.readouterr().out
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
    assert build(source, tmp_path / "m.plan").compute_capabilities == ("8.9+",)


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


def test_tensorrt_before_10_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt("8.6.1.6"))
    with pytest.raises(Unavailable, match=r"TensorRT 8\.6\.1\.6 is installed, wanted 10 or 11"):
        tensorrt("tensorrt")


def test_tensorrt_10_and_11_build_the_same_strongly_typed_plan(fake, source, tmp_path):
    plan = tmp_path / "m.plan"
    manifest = build(
        source, plan, engine="tensorrt", batch=(1, 2, 4), workspace_bytes=1 << 30, level=4, refit=True, gpus=("8.0+",)
    )
    [built] = fake.builds
    assert built.network.strong
    assert built.config.flags == {fake.BuilderFlag.REFIT}  # precision is the graph's matter
    assert built.config.pools == {fake.MemoryPoolType.WORKSPACE: 1 << 30}
    assert built.config.builder_optimization_level == 4
    assert built.config.hardware_compatibility_level == fake.HardwareCompatibilityLevel.AMPERE_PLUS
    assert built.config.profiles[0].shapes == ((1, 3, H, W), (2, 3, H, W), (4, 3, H, W))
    assert built.network.inputs[0].shape == (-1, 3, H, W)
    assert [output.name for output in built.network.outputs] == ["labels"]
    assert manifest.engine == "tensorrt"
    assert manifest.versions["tensorrt"] == fake.__version__
    assert manifest.compute_capabilities == ("8.0+",)
    report = read_report(plan, manifest.sha256)
    assert report.source == "engine inspector"
    assert (report.fused_attentions, report.attentions) == (3, 3)
    assert {one.ran for one in report.linears} == {"fp16"}
    assert not report.faults()


def test_a_builder_that_does_not_start_is_one_line(fake, source, tmp_path, monkeypatch):
    def without_gpu(log):
        log.log(fake.ILogger.INTERNAL_ERROR, "CUDA initialization failure with error: 35")
        raise TypeError("pybind11::init(): factory function returned nullptr")

    monkeypatch.setattr(fake, "Builder", without_gpu)
    with pytest.raises(EngineError, match=r"its builder does not start: CUDA init.*--engine tensorrt-rtx"):
        build(source, tmp_path / "m.plan", engine="tensorrt")
    assert not (tmp_path / "m.plan").exists()


def test_a_plan_of_tensorrt_is_for_the_gpu_it_was_built_on(fake, source, tmp_path):
    assert build(source, tmp_path / "m.plan", engine="tensorrt").compute_capabilities == ("8.9",)
    with pytest.raises(EngineError, match=r"--gpus 8\.6: engine tensorrt builds for the GPU it runs on"):
        build(source, tmp_path / "m.plan", engine="tensorrt", gpus=("8.6",))


def test_timings_are_kept_by_runtime_gpu_and_level(fake, source, tmp_path):
    said: list[str] = []

    def timings():
        build(source, tmp_path / "m.plan", engine="tensorrt", say=said.append)
        return fake.builds[-1].config.cache

    folder = tmp_path / "cache" / "segmenter" / "timing"
    file = cache_file(folder, "tensorrt", fake.__version__, GPU, 3)
    assert timings().data == file.read_bytes() == b"timings of this GPU"
    file.write_bytes(b"timings of yesterday")
    assert timings().data == b"timings of yesterday"
    assert not said
    file.write_bytes(b"rubbish")
    assert timings().data == b"timings of this GPU"
    assert said == [f"timing cache {file}: not usable here (timing cache: bad magic); beginning it anew"]
    fake.refuses_cache = True  # of another GPU, or another build of the library
    file.write_bytes(b"timings of another")
    assert timings().data == file.read_bytes() == b"timings of this GPU"
    assert said[1:] == [f"timing cache {file}: not usable here; beginning it anew"]
    assert [path.name for path in folder.iterdir()] == [file.name]
    others = {cache_file(folder, "tensorrt", version, gpu, level)
              for version in VERSIONS for gpu in (GPU, "NVIDIA L40", "") for level in (3, 5)}  # fmt: skip
    assert len(others) == 12


def test_timings_are_kept_elsewhere_or_not_at_all(fake, source, tmp_path):
    build(source, tmp_path / "m.plan", engine="tensorrt", timing_cache=str(tmp_path / "mine"))
    assert len(list((tmp_path / "mine").iterdir())) == 1
    build(source, tmp_path / "m.plan", engine="tensorrt", timing_cache="none")
    assert fake.builds[-1].config.cache is None
    assert not (tmp_path / "cache").exists()
    with pytest.raises(EngineError, match=r"--timing-cache .*m\.plan: is a file; name a folder"):
        build(source, tmp_path / "m.plan", engine="tensorrt", timing_cache=str(tmp_path / "m.plan"))


def test_a_folder_that_takes_no_timings_costs_no_plan(fake, source, tmp_path, monkeypatch):
    said: list[str] = []
    (tmp_path / "cache").write_text("a file where the folder would be")
    build(source, tmp_path / "m.plan", engine="tensorrt", say=said.append)
    assert read_manifest(tmp_path / "m.plan").engine == "tensorrt"
    assert len(said) == 2
    assert "the timings of this build are not kept" in said[1]


def test_a_plugin_library_is_loaded_once_and_vouched_for(fake, source, tmp_path):
    library = tmp_path / "libplugins.so"
    library.write_bytes(b"plugins")
    copy = tmp_path / "m.onnx"
    copy.write_bytes(source.read_bytes())
    replace(read_manifest(source), artifact=copy.name, plugins=("SegmenterAttention",)).write(copy)
    for _ in range(2):
        manifest = build(copy, tmp_path / "m.plan", engine="tensorrt", plugin_library=library)
    assert fake.plugins == [str(library)]
    assert manifest.details["plugin_library"] == {"name": library.name, "sha256": sha256(library)}
    replace(read_manifest(source), artifact=copy.name, plugins=("SegmenterWarp",)).write(copy)
    with pytest.raises(EngineError, match=r"ops SegmenterWarp are needed, which .*libplugins\.so does not bring"):
        build(copy, tmp_path / "m.plan", engine="tensorrt", plugin_library=library)


def test_what_is_read_beside_a_plan_is_of_one_build(fake, source, tmp_path, monkeypatch):
    """Stopped between any two renames, the old files are all back; nothing else is left."""
    plan = tmp_path / "m.plan"
    build(source, plan, engine="tensorrt", timing_cache="none")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    rename, count = Path.replace, 0

    def stopping(self, target):
        nonlocal count
        if self.suffixes[-2:-1] == [".part"]:
            count += 1
            if count == stop:
                raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", stopping)
    for stop in (1, 2, 3):
        count = 0
        with pytest.raises(KeyboardInterrupt):
            build(source, plan, engine="tensorrt", timing_cache="none", level=1)
        assert count == stop
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    stop = 0
    manifest = build(source, plan, engine="tensorrt", timing_cache="none", level=1)
    assert read_manifest(plan) == manifest
    assert json.loads(report_path(plan).read_text())["sha256"] == manifest.sha256
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(before)


def test_a_manifest_beside_another_plan_is_refused(fake, source, tmp_path):
    """What a killed process can leave between two renames: a new plan, an old manifest."""
    plan = tmp_path / "m.plan"
    build(source, plan, engine="tensorrt", timing_cache="none")
    old = manifest_path(plan).read_bytes()
    plan.write_bytes(plan.read_bytes() + b"newer")
    assert manifest_path(plan).read_bytes() == old
    with pytest.raises(EngineError, match="SHA-256 differs"):
        read_manifest(plan)


def test_ctrl_c_reaches_the_work_and_waits_for_it():
    stop, ended = threading.Event(), []

    def work():
        assert stop.wait(30)
        ended.append(True)

    threading.Timer(0.2, os.kill, [os.getpid(), signal.SIGINT]).start()
    with pytest.raises(KeyboardInterrupt):
        run_stoppable(work, stop)
    assert ended == [True]


def test_ctrl_c_ends_a_build_at_the_builders_next_step(fake, source, tmp_path, monkeypatch):
    stops: list[threading.Event] = []
    make = builder.monitor
    monkeypatch.setattr(builder, "monitor", lambda trt, watcher, stop: stops.append(stop) or make(trt, watcher, stop))
    told: list[str] = []

    class Pressing:
        """Presses Ctrl-C at the first step; at the next the builder has to be gone."""

        def begin(self, phase, steps):
            told.append("begin")

        def step(self, phase, step):
            told.append(f"step {step}")
            if step == 0:
                os.kill(os.getpid(), signal.SIGINT)
                assert stops[0].wait(60)

        def end(self, phase):
            told.append("end")

    with pytest.raises(KeyboardInterrupt):
        build(source, tmp_path / "m.plan", engine="tensorrt", timing_cache="none", watcher=Pressing())
    assert told == ["begin", "step 0"]
    assert fake.builds == []
    assert not list(tmp_path.iterdir())


@pytest.mark.tensorrt
def test_ctrl_c_ends_a_build_and_leaves_nothing(rtx, source, tmp_path, monkeypatch, capsys):
    make = builder.monitor

    def interrupting(trt, watcher, stop):
        threading.Thread(target=lambda: (time.sleep(0.02), os.kill(os.getpid(), signal.SIGINT))).start()
        return make(trt, watcher, stop)

    monkeypatch.setattr(builder, "monitor", interrupting)
    assert build_command.main([str(source), "--out", str(tmp_path / "m.plan")]) == 130
    assert capsys.readouterr().err == "error: interrupted\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.tensorrt
def test_weights_stay_out_of_what_is_written(rtx, source, tmp_path):
    """No number of a weight is in the report or the manifest, and the log is not kept."""
    manifest = build(source, tmp_path / "m.plan")
    written = report_path(tmp_path / "m.plan").read_text() + manifest.text()
    [weight] = [one for one in onnx.load(source).graph.initializer if one.name.endswith("cls_emb")]
    numbers = onnx.numpy_helper.to_array(weight).ravel()[:20]
    assert not [number for number in numbers if f"{float(number):.4f}"[:6] in written]
    assert builder_log("tensorrt-rtx").messages == []


def test_the_monitor_ends_a_build_once_it_is_to_stop():
    stop = threading.Event()
    watched = builder.monitor(fake_tensorrt(VERSIONS[1]), None, stop)
    assert watched.step_complete("Timing", 0)
    stop.set()
    assert not watched.step_complete("Timing", 1)
