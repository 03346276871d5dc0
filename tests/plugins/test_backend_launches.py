"""The TensorRT backend launches the kernels around its network as their Python launchers do."""

import importlib
import json
from pathlib import Path

import pytest
import torch

from tests.cpp_build import SANITIZERS, backend_kernels, build_sanitized, succeed, tensorrt_headers
from tests.plugins.building import needs_tools
from tests.plugins.test_launches import Recorder, needs_interpreter

pytestmark = [pytest.mark.slow, needs_tools, needs_interpreter]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tensorrt_headers()
    if backend_kernels(tmp_path_factory) is None:
        pytest.skip("no kernels could be compiled; pip install triton nvidia-cuda-nvcc")
    return build_sanitized(tmp_path_factory, SANITIZERS[0]) / "csrc" / "tensorrt" / "tests" / "record_launches"


def recorded(program: Path, line: str) -> dict:
    return json.loads(succeed(program, input=line))


@pytest.mark.parametrize("architecture", [80, 90])
@pytest.mark.parametrize(
    ("K", "grid", "size", "window", "stride", "side"),
    [
        (150, (32, 32), (1024, 2048), 512, 512, (512, 512)),
        (5, (3, 3), (53, 61), 24, 17, (24, 24)),
        (256, (3, 3), (53, 61), 23, 17, (24, 24)),
        (257, (2, 2), (130, 129), 128, 1, (128, 128)),
    ],
)
def test_windows(program, monkeypatch, architecture, K, grid, size, window, stride, side) -> None:
    module = importlib.import_module("segmenter_kernels.merge_windows")
    rows, columns = (-(-(length - window) // stride) + 1 for length in size)
    recorder = Recorder(module._kernel)
    monkeypatch.setattr(module, "_kernel", recorder)
    masks, odd = torch.empty(rows * columns, K, *grid), torch.zeros(1, dtype=torch.int32)
    module.merge_windows(masks, size, window, stride, side, odd=odd, tile=module.PLANAR)
    ((programs,), passed) = recorder.calls[0]
    sides = " ".join(map(str, (K, *grid, *side, *size, window, stride, rows, columns)))
    made = recorded(program, f"merge_windows {architecture} {sides}")
    assert made["name"] == "merge_windows_fp32_planar" + ("_int16" if K > 256 else "")
    assert made["grid"] == [programs, 1]
    assert made["threads"] == 32 * passed.pop("num_warps")
    compiled = {"LARGEST", "BLOCK_X", "BLOCK_K", "stride_w"}
    wanted = {name: None if name.endswith("_ptr") else value for name, value in passed.items() if name not in compiled}
    assert passed["stride_w"] == 1
    assert made["arguments"] == wanted
    assert list(made["arguments"]) == list(wanted)


@pytest.mark.parametrize(("old", "size"), [((37, 50), (11, 16)), ((61, 20), (7, 18)), ((9, 13), (17, 13))])
def test_resizing(program, monkeypatch, old, size) -> None:
    module = importlib.import_module("segmenter_kernels.resize")
    recorder = Recorder(module._kernel)
    monkeypatch.setattr(module, "_kernel", recorder)
    module.resize(torch.zeros(1, *old, 3, dtype=torch.uint8), size)
    assert recorder.calls
    for (programs,), passed in recorder.calls:
        outer = programs // -(-passed["to"] * passed["inner"] // module.TILE["BLOCK"])
        sides = (outer, passed["length"], passed["to"], passed["inner"], passed["taps"])
        made = recorded(program, f"resize 80 {' '.join(map(str, sides))}")
        assert (made["name"], made["grid"]) == ("resize_u8", [programs, 1])
        assert made["threads"] == 32 * passed.pop("num_warps")
        del passed["PRECISION"], passed["BLOCK"]
        assert made["arguments"] == {n: None if n.endswith("_ptr") else value for n, value in passed.items()}


@pytest.mark.parametrize("shape", [(1, 37, 50), (3, 64, 64)])
def test_normalizing(program, monkeypatch, shape) -> None:
    module = importlib.import_module("segmenter_kernels.normalize")
    recorder = Recorder(module._kernel)
    monkeypatch.setattr(module, "_kernel", recorder)
    module.normalize(torch.zeros(*shape, 3, dtype=torch.uint8), (0.5,) * 3, (0.5,) * 3)
    (((programs,), passed),) = recorder.calls
    made = recorded(program, f"normalize 90 {shape[0]} {passed['pixels']}")
    assert (made["name"], made["grid"]) == ("normalize_u8", [programs, 1])
    assert made["threads"] == 32 * passed.pop("num_warps")
    del passed["VALUES"], passed["BLOCK"]
    assert made["arguments"] == {n: None if n.endswith("_ptr") else value for n, value in passed.items()}
