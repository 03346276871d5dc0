"""Building with TensorRT 10 and 11, on stand-ins for both: the plan, its timings, its plugins."""

import sys
from dataclasses import replace

import pytest

from segmenter.errors import EngineError, Unavailable
from segmenter.files import sha256
from segmenter_engines.build import build
from segmenter_engines.layer_report import read_report
from segmenter_engines.manifest import read_manifest
from segmenter_engines.tensorrt_api import tensorrt
from segmenter_engines.timing_cache import cache_file
from tests.builders import GPU, VERSIONS, fake_fixture, source_fixture  # noqa: F401 - fixtures
from tests.fake_builder import fake_tensorrt
from tests.small_engines import H, W


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


def test_a_user_without_a_home_keeps_no_timings(fake, source, tmp_path, monkeypatch):
    def nobody():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr("pathlib.Path.home", nobody)
    build(source, tmp_path / "m.plan", engine="tensorrt")
    assert fake.builds[-1].config.cache is None


def test_a_folder_that_takes_no_timings_costs_no_plan(fake, source, tmp_path, monkeypatch):
    said: list[str] = []
    (tmp_path / "cache").write_text("a file where the folder would be")
    build(source, tmp_path / "m.plan", engine="tensorrt", say=said.append)
    assert read_manifest(tmp_path / "m.plan").engine == "tensorrt"
    assert len(said) == 2
    assert "the timings of this build are not kept" in said[1]


def test_a_parser_that_finds_no_plugins_is_named_before_it_is_asked(fake, source, tmp_path, monkeypatch):
    library, copy = tmp_path / "libplugins.so", tmp_path / "plugin.onnx"
    library.write_bytes(b"plugins")
    copy.write_bytes(source.read_bytes())
    replace(read_manifest(source), artifact=copy.name, plugins=("SegmenterAttention",)).write(copy)
    monkeypatch.setattr(fake, "__version__", "10.9.0.34")
    with pytest.raises(
        EngineError, match=r"ops SegmenterAttention are needed, .* TensorRT 10\.9\.0\.34 finds no plugins"
    ):
        build(copy, tmp_path / "m.plan", engine="tensorrt", plugin_library=library)
    assert fake.plugins == []
    monkeypatch.setattr(fake, "__version__", "10.10.0.31")
    assert build(copy, tmp_path / "m.plan", engine="tensorrt", plugin_library=library).plugins == (
        "SegmenterAttention",
    )


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
