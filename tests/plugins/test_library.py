"""The plugin library: its C++ tests under sanitizers, how it is made of a folder of kernels, and where it lies."""

import importlib.util
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import segmenter_trt
from tests.cpp_build import require_tidy, run, succeed, tensorrt_headers
from tests.plugins.building import SOURCES, needs_tools

pytest.importorskip("triton", reason="triton is not installed; kernels cannot be compiled")
pytestmark = [pytest.mark.slow, needs_tools]
PLUGIN_OPS = ("attention", "patch_embed", "mask_scores", "upsample_argmax")


def test_cpp_under_address_and_undefined_behaviour_sanitizers(address: Path) -> None:
    for name in ("plugin_tests", "launcher_tests"):
        assert "[  PASSED  ]" in succeed(address / name)


def test_cpp_under_thread_sanitizer(thread: Path) -> None:
    assert "[  PASSED  ]" in succeed(thread / "launcher_tests")


def test_clang_tidy_finds_nothing(cubins: Path, tmp_path: Path) -> None:
    places = (f"-DSEGMENTER_TRT_CUBINS={cubins}", f"-DTENSORRT_INCLUDE_DIR={tensorrt_headers()}")
    require_tidy(tmp_path, ("plugins",), *places)


def test_plugins_that_were_asked_for_and_cannot_be_built_end_the_configuration(tmp_path: Path) -> None:
    def told(cubins: Path, headers: Path) -> str:
        places = (f"-DSEGMENTER_TRT_CUBINS={cubins}", f"-DTENSORRT_INCLUDE_DIR={headers}")
        done = run("cmake", "-S", SOURCES, "-B", tmp_path / "build", "-G", "Ninja", *places)
        assert done.returncode != 0, done.stdout
        return " ".join(done.stderr.split())

    kernels, headers = tmp_path / "cubins", tmp_path / "include"
    assert f"SEGMENTER_TRT_CUBINS: {kernels} holds no manifest.json; fill a folder with" in told(kernels, headers)
    kernels.mkdir()
    (kernels / "manifest.json").write_text("{}", encoding="utf-8")
    missing = f"TENSORRT_INCLUDE_DIR ({headers}) holds no NvInferRuntime.h; name the folder of TensorRT's headers"
    assert missing in told(kernels, headers)


def test_the_driver_is_declared_as_in_cuda_h() -> None:
    triton = importlib.util.find_spec("triton")
    assert triton is not None
    assert triton.origin is not None
    include = Path(triton.origin).parent / "backends" / "nvidia" / "include"
    source = SOURCES / "tests" / "check_driver.cc"
    succeed("c++", "-std=c++20", "-fsyntax-only", "-isystem", include, source)


def test_a_folder_the_launcher_cannot_launch_is_refused(cubins: Path, tmp_path: Path) -> None:
    def told(change: Callable[[dict[str, Any]], None]) -> str:
        manifest = json.loads((cubins / "manifest.json").read_text(encoding="utf-8"))
        change(manifest)
        folder = tmp_path / "cubins"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(cubins, folder)
        (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
        done = run(sys.executable, SOURCES.parent / "launch" / "embed.py", folder, tmp_path / "out", *PLUGIN_OPS)
        assert (done.returncode, done.stderr.count("\n")) == ((0, 0) if not done.stderr else (1, 1))
        return done.stderr

    def map_without_a_box(manifest: dict[str, Any]) -> None:
        kernel = manifest["kernels"][0]
        kernel["launch"][0].update(kind="map", bytes=128)
        kernel["parameter_bytes"][0] = 128

    changes: list[tuple[str, Callable[[dict[str, Any]], Any]]] = [
        ("format 1, wanted 2", lambda m: m.update(format=1)),
        ("on sm_80: parameters of [4, ", lambda m: m["kernels"][0]["parameter_bytes"].__setitem__(0, 4)),
        ("needs 16 bytes of scratch memory", lambda m: m["kernels"][0].update(scratch_bytes=16)),
        ("a kind the launcher does not know", lambda m: m["kernels"][0]["launch"][0].update(kind="i64")),
        ("1 tensor maps; see kernels.h", map_without_a_box),
        ("lacks kernels of patch_embed and mask_scores and", lambda m: m.update(kernels=m["kernels"][:1])),
    ]
    for text, change in changes:
        assert text in told(change), text
    assert told(lambda m: None) == ""

    def as_older_triton_says_it(manifest: dict[str, Any]) -> None:
        boxes = [box for kernel in manifest["kernels"] for box in kernel["descriptors"]]
        assert boxes
        for box in boxes:
            box.pop("is_im2col", None)

    assert told(as_older_triton_says_it) == ""


def test_where_the_library_is_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(segmenter_trt.runtimes, "__file__", str(tmp_path / "runtimes.py"))
    advice = r"built without libsegmenter_trt_plugin.so; run `python -m segmenter_kernels.aot"
    with pytest.raises(segmenter_trt.Unavailable, match=advice):
        segmenter_trt.plugin_library()
    (tmp_path / "libsegmenter_trt_plugin.so").touch()
    assert segmenter_trt.plugin_library() == tmp_path / "libsegmenter_trt_plugin.so"


def test_only_what_tensorrt_looks_for_is_visible(library: Path) -> None:
    symbols = {line.split()[-1] for line in succeed("nm", "-D", "--defined-only", "-C", library).splitlines()}
    assert {"getCreators", "setLoggerFinder"} <= symbols
    assert not [name for name in symbols if "segmenter_plugins" in name or "_launch" in name or "nvinfer1" in name]


def test_without_kernels_cmake_says_so_in_a_line(tmp_path: Path) -> None:
    told = succeed("cmake", "-S", SOURCES, "-B", tmp_path)
    wanted = "segmenter_trt_plugin: not built, for SEGMENTER_TRT_CUBINS names no folder of compiled kernels"
    assert sum(wanted in line for line in told.splitlines()) == 1, told
