import mmap
from functools import partial

import pytest
import torch
import triton
from torch import Tensor
from triton.runtime.interpreter import InterpreterBuilder

import segmenter_kernels
from segmenter import ops
from segmenter_kernels import tiles
from segmenter_kernels.checks import INTERPRETED
from segmenter_kernels.mask_scores import candidates, case_of, split
from tests.kernels.conftest import DEVICE
from tests.kernels.harness import ARCHITECTURES, DTYPES, inputs, judge

# B, N, K, C: one or two parts of classes, odd lengths, widths that are no multiple of a tile's
SHAPES = [(2, 97, 19, 192), (1, 197, 150, 384), (3, 1, 5, 50), (1, 65, 33, 64), (1, 130, 59, 72), (2, 16, 2, 3)]


def arguments(B: int, N: int, K: int, C: int, dtype: torch.dtype) -> list[Tensor]:
    patches, classes, weight, bias = inputs((B, N, C), (B, K, C), (K,), (K,), dtype=dtype)
    # rows in different directions: on those of mean 1 the cosines are all alike, and LayerNorm of them is noise
    return [patches - 1, classes - 1, weight, bias]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_agrees_with_float64(shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    judge(segmenter_kernels.mask_scores, ops.mask_scores, arguments(*shape, dtype), 1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_one_channel(dtype: torch.dtype) -> None:
    # in float32 eager makes no error at all here: x / |x| is 1 to the bit
    judge(segmenter_kernels.mask_scores, ops.mask_scores, arguments(2, 16, 3, 1, dtype), 1e-5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_agrees_with_float64_on_rows_of_mean_1(dtype: torch.dtype) -> None:
    judge(
        segmenter_kernels.mask_scores,
        ops.mask_scores,
        inputs((1, 70, 96), (1, 21, 96), (21,), (21,), dtype=dtype),
        1e-5,
    )


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("K", [1, 16, 171, 300, 600, 1024])
def test_any_number_of_classes(K: int, architecture: int) -> None:
    tile = tiles.of_architecture("mask_scores", case_of(K, torch.float16), architecture)
    judge(
        lambda *x: segmenter_kernels.mask_scores(*x, tile=tile),
        ops.mask_scores,
        arguments(1, 20, K, 64, torch.float16),
        1e-5,
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_slices_of_one_tensor(dtype: torch.dtype) -> None:
    N, K = 49, 21
    tokens, weight, bias = inputs((2, N + K, 64), (K,), (K,), dtype=dtype)
    tokens -= 1
    slices = [tokens[:, :-K], tokens[:, -K:], weight, bias]
    judge(segmenter_kernels.mask_scores, ops.mask_scores, slices, 1e-5)
    got = segmenter_kernels.mask_scores(*slices, 1e-5)
    assert torch.equal(got, segmenter_kernels.mask_scores(*(x.contiguous() for x in slices), 1e-5))


def test_rows_longer_than_fp16_holds() -> None:
    patches, classes, weight, bias = arguments(1, 40, 10, 768, torch.float16)
    judge(segmenter_kernels.mask_scores, ops.mask_scores, [patches * 8000, classes * 4000, weight, bias], 1e-5)


def test_nan_stays_in_its_row_and_its_image() -> None:
    patches, classes, weight, bias = arguments(3, 40, 21, 64, torch.float16)
    clean = segmenter_kernels.mask_scores(patches, classes, weight, bias, 1e-5)
    patches[0, 7] = float("nan")
    patches[0, 39] = float("inf")
    classes[1, 20] = float("nan")
    dirty = segmenter_kernels.mask_scores(patches, classes, weight, bias, 1e-5)
    rows = [n for n in range(40) if n not in (7, 39)]
    assert torch.equal(clean[0, rows], dirty[0, rows])
    assert dirty[0, [7, 39]].isnan().all()
    assert dirty[1].isnan().all()
    assert torch.equal(clean[2], dirty[2])


def test_no_patches_launch_nothing() -> None:
    assert segmenter_kernels.mask_scores(*arguments(2, 0, 5, 16, torch.float32), 1e-5).shape == (2, 0, 5)


@pytest.mark.skipif(not INTERPRETED, reason="shows the last of a launch's programs alone, as the interpreter can")
def test_rows_whose_scores_lie_past_2_31(monkeypatch: pytest.MonkeyPatch) -> None:
    K, C, BLOCK_N = 1024, 16, 16
    N = 2**31 // K + 20
    row, classes, weight, bias = arguments(1, 1, K, C, torch.float16)
    wanted = segmenter_kernels.mask_scores(row, classes, weight, bias, 1e-5)
    # pages that nobody writes to take no memory; before the output is as much as an offset of 32 bits would go back
    no_reserve = 0x4000
    pages = mmap.mmap(-1, 2 * (2**32 + N * K), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | no_reserve)
    out = torch.frombuffer(pages, dtype=torch.float16)[2**32 :].view(1, N, K)
    monkeypatch.setattr(torch, "empty", lambda *_, **__: out)
    monkeypatch.setattr(triton, "cdiv", lambda *_: 1)
    last = (N // BLOCK_N, 0, 0)
    monkeypatch.setattr(InterpreterBuilder, "set_grid_idx", lambda self, *_: setattr(self, "grid_idx", last))
    segmenter_kernels.mask_scores(row.expand(1, N, C), classes, weight, bias, 1e-5)
    assert N % BLOCK_N == 4
    assert torch.equal(out[:, -4:], wanted.expand(1, 4, K))


def strided(x: Tensor) -> Tensor:
    return x.mT.contiguous().mT


ones = partial(torch.ones, device=DEVICE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t | {"patches": t["patches"][0]}, r"patches \[9, 16\]: want \[B, N, C\]"),
        (lambda t: t | {"classes": t["classes"][:1]}, r"classes \[1, 5, 16\]: want \[2, 'any', 16\]"),
        (lambda t: t | {"classes": t["classes"][:, :0]}, r"classes \[2, 0, 16\]: want 1 to 1024 classes"),
        (lambda t: t | {"classes": ones(2, 1025, 16)}, "classes .*: want 1 to 1024 classes"),
        (
            lambda t: t | {"patches": ones(65536, 1, 16)},
            r"patches \[65536, 1, 16\]: want at most 65535 images; give them",
        ),
        (lambda t: t | {"eps": float("nan")}, "eps nan: want a finite float, 0 or above"),
        (lambda t: t | {"patches": None}, "patches is of type NoneType: want a tensor"),
        (lambda t: t | {"weight": t["weight"][:4]}, r"weight \[4\]: want \[5\]"),
        (lambda t: t | {"bias": t["bias"].half()}, "bias is torch.float16 and patches torch.float32"),
        (lambda t: {name: x.int() for name, x in t.items()}, "patches is torch.int32; this op takes float16"),
        (lambda t: t | {"patches": strided(t["patches"])}, "patches has strides .*; want its last axis contiguous"),
        (lambda t: t | {"classes": strided(t["classes"])}, "classes has strides .*; want its last axis contiguous"),
        (lambda t: t | {"weight": ones(10)[::2]}, "weight has strides"),
        (lambda t: t | {"patches": t["patches"].requires_grad_()}, "patches needs a gradient"),
        (lambda t: t | {"patches": t["patches"][..., :0], "classes": t["classes"][..., :0]}, ".*at least 1 channel"),
    ],
)
def test_wrong_input_is_named(change, message) -> None:
    names = ("patches", "classes", "weight", "bias")
    tensors = dict(zip(names, arguments(2, 9, 5, 16, torch.float32), strict=True))
    with pytest.raises(ValueError, match=f"mask_scores: {message}"):
        segmenter_kernels.mask_scores(**{"eps": 1e-5} | change(tensors))


@pytest.mark.parametrize(
    ("K", "parts"),
    [
        (1, (16, 0)),
        (19, (32, 0)),
        (33, (32, 16)),
        (59, (64, 0)),
        (150, (128, 32)),
        (171, (128, 64)),
        (256, (256, 0)),
        (1024, (1024, 0)),
    ],
)
def test_classes_are_split_into_powers_of_two(K: int, parts: tuple[int, int]) -> None:
    assert split(K) == parts


@pytest.mark.parametrize("architecture", tiles.ARCHITECTURES)
def test_every_case_has_a_tile_that_fits(architecture: int) -> None:
    for K in range(1, 1025):
        for dtype in DTYPES:
            tile = tiles.of_architecture("mask_scores", case_of(K, dtype), architecture)
            shared = (tile["BLOCK_N"] + sum(split(K))) * tile["BLOCK_C"] * dtype.itemsize * tile["num_stages"]
            assert shared <= tiles.SHARED_MEMORY_BYTES[architecture]
    assert list(candidates(architecture, "256"))
