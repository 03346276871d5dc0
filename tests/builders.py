"""What plans are built with: TensorRT-RTX where it is installed, stand-ins for TensorRT 10 and 11, and a graph."""

import sys

import pytest
import torch

from segmenter_engines.tensorrt_api import builder_log
from tests.fake_builder import fake_tensorrt

VERSIONS = ("10.14.1.48", "11.1.0.106")
GPU = "NVIDIA L4"


@pytest.fixture(name="rtx")
def rtx_fixture():
    return pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")


@pytest.fixture(name="fake", params=VERSIONS)
def fake_fixture(request, monkeypatch, tmp_path):
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


@pytest.fixture(name="source")
def source_fixture(engine_folder):
    return engine_folder / "model.fp16.onnx"
