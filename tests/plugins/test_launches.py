"""The plugins launch what the Python launchers launch, judged by a driver that only writes down what it is told."""

import importlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.cpp_build import succeed
from tests.plugins.building import OPS, needs_tools

pytest.importorskip("triton", reason="triton is not installed; kernels cannot be compiled")

from triton.backends.nvidia.driver import TMA_DTYPE_DEVICE_TO_HOST
from triton.tools.tensor_descriptor import TensorDescriptor

from segmenter_kernels import checks, packed, tiles

TYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
needs_interpreter = pytest.mark.skipif(
    not checks.INTERPRETED, reason="launches are recorded from tensors on the CPU, which only the interpreter takes"
)
pytestmark = [pytest.mark.slow, needs_tools]


@pytest.fixture(scope="session")
def record(address: Path) -> Callable[[Sequence[str]], list[dict[str, Any]]]:
    """What the plugins launch for nodes, each given in a line."""

    def launches(lines: Sequence[str]) -> list[dict[str, Any]]:
        return [json.loads(line) for line in succeed(address / "record", input="\n".join(lines)).splitlines()]

    return launches


@pytest.fixture(scope="session")
def manifest(cubins: Path) -> dict[tuple[str, int], dict[str, Any]]:
    kernels = json.loads((cubins / "manifest.json").read_text(encoding="utf-8"))["kernels"]
    return {(kernel["name"], kernel["architecture"]): kernel for kernel in kernels}


class Recorder:
    """In a kernel's place: takes launches and does nothing."""

    def __init__(self, kernel: Any) -> None:
        self.names = list(kernel.arg_names)
        self.calls: list[tuple[tuple[int, ...], dict[str, Any]]] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(*arguments: Any, **named: Any) -> None:
            self.calls.append((grid, dict(zip(self.names, arguments, strict=False)) | named))

        return launch


def launched_by_python(
    monkeypatch: pytest.MonkeyPatch, op: str, case: str, architecture: int, inputs: Sequence[torch.Tensor], *rest: Any
) -> tuple[tuple[int, ...], dict[str, Any]]:
    """Grid and arguments of a launch by `segmenter_kernels.<op>` with the tile of an architecture."""
    module = importlib.import_module(f"segmenter_kernels.{op}")
    tile = tiles.of_architecture(op, case, architecture)
    kernels = [name for name in ("_kernel", "from_pointers", "from_descriptors") if hasattr(module, name)]
    with monkeypatch.context() as patch:
        recorders = [Recorder(getattr(module, name)) for name in kernels]
        for name, recorder in zip(kernels, recorders, strict=True):
            patch.setattr(module, name, recorder)
        patch.setattr(tiles, "architecture_of", lambda device: architecture)
        getattr(module, op)(*inputs, *rest, tile=tile)
    ((grid, arguments),) = [call for recorder in recorders for call in recorder.calls]
    return grid, arguments


def compare(
    recorded: Mapping[str, Any],
    kernel: Mapping[str, Any],
    grid: Sequence[int],
    arguments: dict[str, Any],
    inputs: Sequence[torch.Tensor],
) -> None:
    """A launch the plugin made against the one Python made, and both against the manifest."""
    arguments = dict(arguments)
    assert recorded["grid"] == [*grid, 1, 1][:3]
    assert recorded["threads"] == kernel["threads"] == 32 * arguments.pop("num_warps")
    assert arguments.pop("num_stages", kernel["num_stages"]) == kernel["num_stages"]
    limit = arguments.pop("maxnreg", None)
    assert limit is None or kernel["registers"] <= limit
    assert recorded["shared_bytes"] == kernel["dynamic_shared_bytes"]
    assert {name: arguments.pop(name) for name in kernel["constants"] if name != "stride_k"} == {
        name: value for name, value in kernel["constants"].items() if name != "stride_k"
    }
    assert arguments.pop("stride_k", 1) == 1
    # what is left is what is passed, in the kernel's order
    passed = [name for name, kind, _, _ in recorded["parameters"] if kind not in ("shape", "stride", "scratch")]
    assert passed == list(kernel["parameters"]) == list(arguments)
    places = {tensor.data_ptr(): index for index, tensor in enumerate(inputs)}
    boxes = iter(kernel["descriptors"])
    for name, kind, axis, value in recorded["parameters"]:
        wanted = arguments.get(name)
        if kind == "pointer":
            assert isinstance(wanted, torch.Tensor)
            assert value == places.get(wanted.data_ptr(), len(inputs)), name
        elif kind == "i32":
            assert value == wanted, name
        elif kind == "fp32":
            assert np.float32(value) == np.float32(wanted), name
        elif kind == "scratch":
            assert value == -1  # null
        else:
            assert isinstance(wanted, TensorDescriptor)
            if kind == "map":
                compare_map(value, next(boxes), wanted, places)
            else:
                assert value == (wanted.shape if kind == "shape" else wanted.strides)[axis], name


def compare_map(value: Mapping[str, Any], box: Mapping[str, Any], wanted: TensorDescriptor, places: Any) -> None:
    """A tensor map against what Triton's launcher would encode: axes reversed, the last stride left out."""
    assert value["input"] == places[wanted.base.data_ptr()]
    assert value["sides"] == list(reversed(wanted.shape))
    assert value["stride_bytes"] == [2 * stride for stride in reversed(wanted.strides[:-1])]
    assert value["box"] == list(reversed(box["block_size"])) == list(reversed(wanted.block_shape))
    assert value["steps"] == [1] * len(wanted.shape)
    assert value["type"] == TMA_DTYPE_DEVICE_TO_HOST[box["elem_type"]]
    assert value["swizzle"] == box["swizzle"]
    assert (value["interleave"], value["promotion"], value["fill"]) == (0, 2, 0)


def attentions() -> Iterator[tuple[str, int, int, int, int]]:
    yield from (
        ("fp16", 64, 3, B, N) for B, N in product((1, 2), (1, 16, 31, 32, 33, 97, 127, 128, 129, 160, 161, 1025))
    )
    yield from (("bf16", 80, 16, B, N) for B, N in product((1, 3), (1, 64, 65, 197, 257)))


@needs_interpreter
@pytest.mark.parametrize("architecture", [80, 90])
def test_attention_is_launched_as_python_launches_it(record, manifest, monkeypatch, architecture: int) -> None:
    cases = list(attentions())
    lines = [f"{architecture} {OPS[0]} {kind} heads={A} {B}x{N}x{3 * A * D}" for kind, D, A, B, N in cases]
    for (kind, D, A, B, N), recorded in zip(cases, record(lines), strict=True):
        qkv = torch.empty(B, N, 3 * A * D, dtype=TYPES[kind])
        case = packed.case(qkv.dtype, D)
        grid, arguments = launched_by_python(monkeypatch, "attention", case, architecture, [qkv], A)
        assert recorded["name"] == f"attention_{kind}_d{D}"
        assert recorded["architecture"] == architecture
        compare(recorded, manifest[recorded["name"], architecture], grid, arguments, [qkv])


@needs_interpreter
@pytest.mark.parametrize("architecture", [80, 90])
def test_patch_embed_is_launched_as_python_launches_it(record, manifest, monkeypatch, architecture: int) -> None:
    cases = [
        (16, B, C, E, h, w) for B, C, E, (h, w) in product((1, 5), (64, 192), (0, 1, 2), ((1, 1), (4, 5), (32, 32)))
    ]
    cases += [(14, 2, 384, 1, 3, 7)] if architecture == 80 else []
    lines = [
        f"{architecture} {OPS[2]} fp16 {B}x3x{h * P}x{w * P} {C}x3x{P}x{P} {C} 1x{E + h * w}x{C} 1x{E}x{C}"
        for P, B, C, E, h, w in cases
    ]
    for (P, B, C, E, h, w), recorded in zip(cases, record(lines), strict=True):
        shapes = ((B, 3, h * P, w * P), (C, 3, P, P), (C,), (1, E + h * w, C), (1, E, C))
        # one element more, for tensors of none share an address
        inputs = [torch.empty(int(np.prod(shape)) + 1, dtype=torch.float16)[:-1].view(shape) for shape in shapes]
        grid, arguments = launched_by_python(monkeypatch, "patch_embed", f"{P}_large", architecture, inputs)
        assert recorded["name"] == f"patch_embed_fp16_p{P}"
        compare(recorded, manifest[recorded["name"], architecture], grid, arguments, inputs)


@needs_interpreter
@pytest.mark.parametrize("architecture", [80, 90])
def test_mask_scores_are_launched_as_python_launches_them(record, manifest, monkeypatch, architecture: int) -> None:
    cases = list(product((1, 3), (1, 64, 65, 1024), (17, 19, 32), (64, 192, 768)))
    lines = [f"{architecture} {OPS[1]} fp16 epsilon=1e-5 {B}x{N}x{C} {B}x{K}x{C} {K} {K}" for B, N, K, C in cases]
    for (B, N, K, C), recorded in zip(cases, record(lines), strict=True):
        inputs = [torch.empty(shape, dtype=torch.float16) for shape in ((B, N, C), (B, K, C), (K,), (K,))]
        grid, arguments = launched_by_python(monkeypatch, "mask_scores", "32", architecture, inputs, 1e-5)
        assert recorded["name"] == "mask_scores_fp16_k32"
        compare(recorded, manifest[recorded["name"], architecture], grid, arguments, inputs)


@needs_interpreter
@pytest.mark.parametrize("architecture", [80, 90])
def test_upsample_argmax_is_launched_as_python_launches_it(record, manifest, monkeypatch, architecture: int) -> None:
    grids = [(1, 1, 16, 16, 9, 16), (4, 5, 64, 80, 56, 72), (4, 5, 64, 80, 64, 80), (32, 32, 512, 512, 512, 512)]
    grids += [
        (23, 30, 368, 480, 360, 480),
        (26, 34, 364, 476, 364, 476),
        (16, 16, 512, 512, 500, 1),
        (9, 7, 99, 80, 3, 79),
    ]
    cases = list(product((1, 3), (4, 5, 150, 300), grids))
    lines = [
        f"{architecture} {OPS[3]} fp16 size={H},{W} crop={rows},{columns} {B}x{h}x{w}x{K}"
        for B, K, (h, w, H, W, rows, columns) in cases
    ]
    for (B, K, (h, w, H, W, rows, columns)), recorded in zip(cases, record(lines), strict=True):
        masks = torch.empty(B, h, w, K, dtype=torch.float16).permute(0, 3, 1, 2)
        rest = (H, W), (rows, columns)
        grid, arguments = launched_by_python(monkeypatch, "upsample_argmax", "16", architecture, [masks], *rest)
        assert recorded["name"] == "upsample_argmax_fp16_r16_int32"
        compare(recorded, manifest[recorded["name"], architecture], grid, arguments, [masks])


def test_sides_of_the_grid_times_the_patch(record) -> None:
    line = "80 SegmenterUpsampleArgmax fp16 size=-16,-16 crop=-1,72 2x4x5x5"
    fixed = "80 SegmenterUpsampleArgmax fp16 size=64,80 crop=64,72 2x4x5x5"
    assert record([line]) == record([fixed])
