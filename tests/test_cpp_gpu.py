"""Kernels as the plugins and the TensorRT backend launch them, against the same kernels launched by Triton, bit by bit.

`pytest tests/test_cpp_gpu.py -rA` on a GPU. SEGMENTER_TRT_LAUNCHES names a liblaunches.so that is there already.
"""

import ctypes
import importlib
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed; kernels cannot be compiled")

from segmenter_kernels import tiles
from tests.cpp_build import ROOT, run, succeed
from tests.once import once

SOURCES = ROOT / "csrc" / "launch" / "tests"
COMPILED = ("attention_fp16_d64", "patch_embed_fp16_p16", "mask_scores_fp16", "upsample_argmax_fp16_r16_int32")
COMPILED += ("merge_windows_fp32_planar", "resize", "normalize")
on_gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
pytestmark = pytest.mark.skipif(
    "SEGMENTER_TRT_LAUNCHES" not in os.environ and not all(map(shutil.which, ("cmake", "c++"))),
    reason="needs cmake and a C++ compiler",
)
Launch = Callable[..., str | None]


def architecture() -> int:
    return tiles.architecture_of(torch.device("cuda")) if torch.cuda.is_available() else 90


def build(folder: Path) -> None:
    """The library, of kernels compiled for this GPU; where there is none, of the smallest, for one like any other."""
    names = COMPILED if torch.cuda.is_available() else ("normalize",)
    options = ("--only", *names, "--architectures", str(architecture()))
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    made = run(sys.executable, "-m", "segmenter_kernels.aot", "--out", folder / "cubins", *options, env=environment)
    if not (folder / "cubins" / "manifest.json").is_file():
        pytest.skip(f"no kernels compiled: {made.stderr[-300:]}")
    places = (f"-DSEGMENTER_TRT_CUBINS={folder / 'cubins'}", f"-DPython_EXECUTABLE={sys.executable}")
    succeed("cmake", "-S", SOURCES, "-B", folder, *places)
    succeed("cmake", "--build", folder)


@pytest.fixture(scope="module")
def launch(tmp_path_factory: pytest.TempPathFactory) -> Launch:
    """Launch an op of fp16 tensors by C++ on the current stream, of what calls.h has of it; returns what it said."""
    named = os.environ.get("SEGMENTER_TRT_LAUNCHES")
    library = ctypes.CDLL(named or str(once(tmp_path_factory, "launches", build) / "liblaunches.so"))
    function = library.launch_kernel
    function.restype = ctypes.c_char_p

    def call(op: str, sizes: Sequence[int], tensors: Sequence[torch.Tensor], epsilon: float = 0.0) -> str | None:
        stream = torch.cuda.current_stream().cuda_stream if torch.cuda.is_available() else None
        said = function(
            op.encode(),
            0,
            (ctypes.c_int64 * len(sizes))(*sizes),
            ctypes.c_float(epsilon),
            (ctypes.c_void_p * len(tensors))(*[tensor.data_ptr() for tensor in tensors]),
            ctypes.c_void_p(stream),
        )
        return None if said is None else said.decode()

    return call


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator("cuda").manual_seed(seed), device="cuda").half()


def bytes_of(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, generator=torch.Generator("cuda").manual_seed(0), device="cuda").byte()


def like(truth: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    """Memory for a result, of other bits than any result has."""
    return torch.full_like(truth, 77, dtype=dtype)


def same(made: torch.Tensor, truth: torch.Tensor) -> bool:
    return torch.equal(made.contiguous().view(torch.uint8), truth.contiguous().view(torch.uint8))


def tile(op: str, case: str) -> dict[str, int]:
    return tiles.of_architecture(op, case, architecture())


def module(op: str) -> Any:
    return importlib.import_module(f"segmenter_kernels.{op}")


class TestOnGpu:
    pytestmark = on_gpu

    @pytest.mark.parametrize(("B", "N", "A"), [(1, 1025, 12), (3, 197, 3), (2, 1174, 12), (1, 1, 1), (2, 33, 6)])
    def test_attention(self, launch: Launch, B: int, N: int, A: int) -> None:
        qkv = normal(B, N, 3 * A * 64)
        truth = module("attention").attention(qkv, A, tile=tile("attention", "16-64"))
        made = like(truth)
        assert launch("attention", (B, N, A, 64), (qkv, made)) is None
        assert same(made, truth)

    @pytest.mark.parametrize(
        ("B", "h", "w", "C", "E"), [(1, 32, 32, 768, 1), (8, 14, 14, 192, 2), (1, 1, 1, 64, 0), (2, 3, 7, 384, 1)]
    )
    def test_patch_embed(self, launch: Launch, B: int, h: int, w: int, C: int, E: int) -> None:
        inputs = (normal(B, 3, 16 * h, 16 * w), normal(C, 3, 16, 16), normal(C))
        inputs += (normal(1, E + h * w, C), normal(1, E, C))
        truth = module("patch_embed").patch_embed(*inputs, tile=tile("patch_embed", "16_large"))
        made = like(truth)
        assert launch("patch_embed", (B, h, w, 16, C, E), (*inputs, made)) is None
        assert same(made, truth)

    @pytest.mark.parametrize(("B", "N", "K", "C"), [(1, 1024, 150, 768), (3, 65, 19, 192), (2, 20, 59, 64)])
    def test_mask_scores(self, launch: Launch, B: int, N: int, K: int, C: int) -> None:
        op = module("mask_scores")
        inputs = (normal(B, N, C), normal(B, K, C, seed=1), normal(K), normal(K, seed=1))
        truth = op.mask_scores(*inputs, 1e-5, tile=tile("mask_scores", op.case_of(K, torch.float16)))
        made = like(truth)
        assert launch("mask_scores", (B, N, K, C), (*inputs, made), epsilon=1e-5) is None
        assert same(made, truth)

    @pytest.mark.parametrize(
        ("B", "K", "h", "w", "size", "crop"),
        [
            (1, 150, 32, 32, (512, 512), (512, 512)),
            (3, 19, 4, 5, (64, 80), (56, 72)),
            (2, 300, 4, 5, (64, 80), (9, 80)),
        ],
    )
    def test_upsample_argmax(
        self, launch: Launch, B: int, K: int, h: int, w: int, size: tuple[int, int], crop: tuple[int, int]
    ) -> None:
        masks = normal(B, h, w, K)
        chosen = tile("upsample_argmax", "16")
        truth = module("upsample_argmax").upsample_argmax(masks.permute(0, 3, 1, 2), size, crop, tile=chosen).int()
        made = like(truth)
        assert launch("upsample_argmax", (B, h, w, K, *size, *crop), (masks, made)) is None
        assert same(made, truth)

    @pytest.mark.parametrize(
        ("K", "grid", "size", "window", "stride", "side"),
        [(150, (32, 32), (768, 1024), 512, 512, (512, 512)), (5, (3, 3), (53, 61), 23, 17, (24, 24))],
    )
    def test_merge_windows(
        self, launch: Launch, K: int, grid: tuple[int, int], size: tuple[int, int], window: int, stride: int, side: Any
    ) -> None:
        op, counts = module("merge_windows"), [-(-(length - window) // stride) + 1 for length in size]
        masks, odd = normal(counts[0] * counts[1], K, *grid).float(), torch.zeros(1, dtype=torch.int32, device="cuda")
        truth = op.merge_windows(masks, size, window, stride, side, tile=op.PLANAR)
        made = like(truth)
        assert launch("merge_windows", (K, *grid, *side, *size, window, stride, *counts), (masks, made, odd)) is None
        assert same(made, truth)
        assert not odd

    def test_resizing(self, launch: Launch) -> None:
        op, images = module("resize"), bytes_of(2, 97, 61, 3)
        truth = op.resize(images, (97, 40))
        made, (first, weights) = like(truth), op._filter(61, 40, images.device)
        assert launch("resize", (2 * 97, 61, 40, 3, weights.shape[1]), (images, first, weights, made)) is None
        assert same(made, truth)

    def test_normalizing(self, launch: Launch) -> None:
        op, images, mean, std = module("normalize"), bytes_of(2, 37, 50, 3), (0.485, 0.456, 0.406), (0.2, 0.3, 0.4)
        truth = op.normalize(images, mean, std)
        made = like(truth)
        assert launch("normalize", (2, 37 * 50), (images, op._table(mean, std, images.device), made)) is None
        assert same(made, truth)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
@pytest.mark.slow
def test_without_a_driver_it_says_so(launch: Launch) -> None:
    images = torch.zeros(1, 4, 5, 3, dtype=torch.uint8)
    said = launch("normalize", (1, 20), (images, torch.zeros(3, 256), torch.zeros(1, 3, 4, 5)))
    assert said is not None
    assert said.startswith("no CUDA driver: libcuda.so.1: cannot open shared object file")
