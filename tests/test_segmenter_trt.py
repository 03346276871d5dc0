"""The compiled routines against their plain twins, and against the formula they promise, bit for bit."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from segmenter import ops, preprocess
from segmenter.config import Preprocess

segmenter_trt = pytest.importorskip("segmenter_trt", reason="segmenter_trt is not compiled; run pip install .")

Sides = tuple[int, int]
f32 = np.float32

# B, K, h, w, size, crop: Segmenter's own, ratios that are no integer, downsampling, single points, both label types
CASES: list[tuple[int, int, int, int, Sides, Sides | None]] = [
    (1, 150, 32, 32, (512, 512), None),
    (2, 19, 24, 24, (384, 384), (360, 377)),
    (1, 11, 23, 30, (368, 480), (360, 480)),
    (3, 7, 13, 17, (101, 257), (99, 250)),
    (1, 150, 37, 37, (518, 518), (500, 1)),
    (2, 150, 30, 40, (11, 13), None),
    (1, 7, 4, 50, (3, 400), None),
    (1, 2, 64, 64, (63, 65), (1, 1)),
    (1, 150, 2, 2, (600, 3), None),
    (1, 257, 5, 4, (33, 70), None),
    (2, 300, 9, 9, (9, 9), None),
    (1, 300, 8, 8, (128, 128), (127, 121)),
    (1, 1, 6, 5, (96, 80), None),
    (1, 2, 1, 1, (64, 64), None),
    (1, 3, 1, 9, (16, 5), None),
    (3, 5, 1, 3, (8, 24), None),
    (2, 4, 2, 2, (16, 16), None),
]


def random_masks(B: int, K: int, h: int, w: int, seed: int = 0) -> NDArray[np.float32]:
    """Unrelated scores at every grid point: a near tie somewhere in every cell, the worst case for pruning."""
    return np.random.default_rng(seed).standard_normal((B, K, h, w), dtype=f32)


def smooth_masks(B: int, K: int, h: int, w: int) -> NDArray[np.float32]:
    """Scores as a trained network gives them: few classes to choose from in most cells."""
    coarse = torch.from_numpy(random_masks(B, K, h // 8 + 2, w // 8 + 2, seed=1))
    return F.interpolate(coarse, (h, w), mode="bilinear").contiguous().numpy()


def axis(grid: int, full: int, kept: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Lower and upper grid point and the fraction between them, of each kept pixel."""
    scale = np.float64(f32(grid) / f32(full))
    # the float64 product and sum are exact here, so this is one float32 rounding
    source = np.maximum((scale * (np.arange(kept) + 0.5) - 0.5).astype(f32), f32(0))
    low = np.minimum(source.astype(np.int64), grid - 1)
    return low, np.minimum(low + 1, grid - 1), np.minimum(source - low.astype(f32), f32(1))


def promised(masks: NDArray[np.float32], size: Sides, crop: Sides | None) -> NDArray[np.int64]:
    """The labels upsample_argmax promises: every class evaluated in float32, low + (high - low) * fraction, y first."""
    kept = crop or size
    y0, y1, fy = axis(masks.shape[2], size[0], kept[0])
    x0, x1, fx = axis(masks.shape[3], size[1], kept[1])
    rows = masks[:, :, y0] + (masks[:, :, y1] - masks[:, :, y0]) * fy[:, None]
    return (rows[..., x0] + (rows[..., x1] - rows[..., x0]) * fx).argmax(1)


@pytest.mark.parametrize("masks_of", [random_masks, smooth_masks])
@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_labels_are_the_promised_ones(case: tuple[int, int, int, int, Sides, Sides | None], masks_of: Any) -> None:
    B, K, h, w, size, crop = case
    masks = masks_of(B, K, h, w)
    labels = segmenter_trt.upsample_argmax(masks, size, crop)
    assert labels.dtype == (np.uint8 if K <= 256 else np.int16)
    np.testing.assert_array_equal(labels, promised(masks, size, crop))


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_labels_give_up_no_more_score_than_the_eager_op(
    case: tuple[int, int, int, int, Sides, Sides | None],
) -> None:
    B, K, h, w, size, crop = case
    masks = torch.from_numpy(random_masks(B, K, h, w))
    kept = crop or size
    truth = F.interpolate(masks.double(), size, mode="bilinear")[..., : kept[0], : kept[1]]
    eager = F.interpolate(masks, size, mode="bilinear")[..., : kept[0], : kept[1]]
    # two scores, each as far off as the eager op's, decide a label; the budget is twice that
    budget = 4 * max((eager - truth).abs().max().item(), np.spacing(masks.abs().max().item(), dtype=f32))
    labels = torch.from_numpy(segmenter_trt.upsample_argmax(masks.numpy(), size, crop))
    given_up = truth.amax(1) - truth.gather(1, labels.long()[:, None])[:, 0]
    assert given_up.max().item() <= budget
    reference = ops.upsample_argmax(masks, size, crop)
    assert labels.dtype == reference.dtype
    assert labels.shape == reference.shape
    top = truth.topk(min(2, K), dim=1).values
    clear = top[:, 0] - top[:, -1] > budget if K > 1 else torch.ones_like(labels, dtype=torch.bool)
    assert torch.equal(labels[clear], reference[clear])


@pytest.mark.parametrize(("grid", "full"), [(32, 500), (45, 333), (128, 1000), (61, 7)])
def test_coordinates_are_the_eager_ops(grid: int, full: int) -> None:
    ramp = np.arange(grid, dtype=f32)
    eager = F.interpolate(torch.from_numpy(ramp)[None, None], full, mode="linear")[0, 0].numpy()
    # one image a pixel: a second class exactly as high as the ramp there loses, and a step higher wins
    for level, winner in ((eager, 0), (np.nextafter(eager, f32(np.inf)), 1)):
        flat = np.repeat(level[:, None], grid, axis=1)
        masks = np.stack([np.broadcast_to(ramp, flat.shape), flat], axis=1)[:, :, None]
        labels = segmenter_trt.upsample_argmax(np.ascontiguousarray(masks), (1, full))
        assert (np.diagonal(labels[:, 0]) == winner).all()


def test_ties_go_to_the_first_class() -> None:
    rng = np.random.default_rng(2)
    # eighths on a 16-fold enlargement: float32 holds every product, so ties of different classes are exact ties
    masks = (rng.integers(-16, 17, (2, 150, 9, 9)) / 8).astype(f32)
    reference = ops.upsample_argmax(torch.from_numpy(masks), (144, 144))
    np.testing.assert_array_equal(segmenter_trt.upsample_argmax(masks, (144, 144)), reference.numpy())
    twice = np.concatenate([masks[:, :100], masks[:, :100]], axis=1)
    labels = segmenter_trt.upsample_argmax(twice, (144, 144))
    assert labels.max() < 100
    assert not segmenter_trt.upsample_argmax(np.zeros((1, 150, 8, 8), f32), (128, 128)).any()


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda masks: masks * f32(1e-4) + f32(1000), id="close together"),
        pytest.param(lambda masks: masks * f32(1e30), id="large"),
        pytest.param(lambda masks: masks * f32(1e-41), id="subnormal"),
        pytest.param(lambda masks: np.where(masks > 3, f32(8e37), masks), id="a few very large"),
        pytest.param(lambda masks: np.where(masks < 2.5, f32(-8e37), masks), id="mostly very small"),
        pytest.param(lambda masks: masks.round(), id="coarse steps"),
    ],
)
def test_pruning_never_loses_a_winner(change: Any) -> None:
    masks = change(random_masks(1, 60, 10, 10, seed=3))
    for size in ((160, 160), (97, 141)):
        np.testing.assert_array_equal(segmenter_trt.upsample_argmax(masks, size), promised(masks, size, None))


@pytest.mark.parametrize("K", [2, 150, 300])
def test_labels_do_not_depend_on_threads_or_instruction_set(K: int) -> None:
    masks = random_masks(3, K, 11, 14, seed=4)
    expected = segmenter_trt.upsample_argmax(masks, (177, 210), (170, 201), threads=1, simd="baseline")
    for threads in (0, 1, 2, 3, 40):
        labels = segmenter_trt.upsample_argmax(masks, (177, 210), (170, 201), threads=threads)
        np.testing.assert_array_equal(labels, expected)
    one = [segmenter_trt.upsample_argmax(image[None], (177, 210), (170, 201)) for image in masks]
    np.testing.assert_array_equal(np.concatenate(one), expected)


def test_calls_from_many_threads_do_not_meet() -> None:
    batches = [random_masks(1, 20, 8, 8, seed) for seed in range(16)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda masks: segmenter_trt.upsample_argmax(masks, (128, 128), threads=2), batches))
    for masks, labels in zip(batches, together, strict=True):
        np.testing.assert_array_equal(labels, promised(masks, (128, 128), None))


def test_an_empty_batch_gives_an_empty_batch() -> None:
    assert segmenter_trt.upsample_argmax(np.empty((0, 5, 2, 2), f32), (8, 8)).shape == (0, 8, 8)


@pytest.mark.parametrize("score", [np.nan, np.inf, -np.inf, 1e38])
def test_a_score_that_cannot_be_ordered_is_named(score: float) -> None:
    masks = random_masks(2, 9, 6, 5)
    masks[1, 7, 4, 3] = score
    with pytest.raises(ValueError, match=r"masks\[1, 7, 4, 3\] is .*wanted finite scores"):
        segmenter_trt.upsample_argmax(masks, (24, 20), threads=2)


MASKS = np.zeros((1, 4, 6, 8), f32)
BAD_LABELS_CALLS = [
    pytest.param((torch.zeros(1, 2, 3, 4), (8, 8)), TypeError, r"Tensor.*pass tensor.numpy\(\)", id="tensor"),
    pytest.param(([[1.0]], (8, 8)), TypeError, "list.*numpy array", id="list"),
    pytest.param(
        (MASKS.astype(np.float64), (8, 8)), TypeError, r"float64 \(1, 4, 6, 8\).*wanted float32", id="float64"
    ),
    pytest.param((MASKS.astype(">f4"), (8, 8)), TypeError, "wanted float32", id="byte order"),
    pytest.param((MASKS[0], (8, 8)), ValueError, r"wanted float32 \[B, K, h, w\]", id="3D"),
    pytest.param((MASKS.transpose(0, 1, 3, 2), (8, 8)), ValueError, "ascontiguousarray", id="transposed"),
    pytest.param((MASKS[..., ::2], (8, 8)), ValueError, "ascontiguousarray", id="strided"),
    pytest.param((MASKS[:, :0], (8, 8)), ValueError, "at least 1", id="no class"),
    pytest.param((MASKS[..., :0], (8, 8)), ValueError, "at least 1", id="no grid"),
    pytest.param((np.zeros((1, 32769, 1, 1), f32), (1, 1)), ValueError, "at most 32768", id="classes"),
    pytest.param((MASKS, (0, 8)), ValueError, "size 0x8", id="no pixel"),
    pytest.param((MASKS, (8, -1)), ValueError, "size 8x-1", id="negative"),
    pytest.param((MASKS, (8, 1 << 40)), ValueError, "wanted sides from 1 to", id="huge"),
    pytest.param((MASKS, (8, 8), (9, 8)), ValueError, "crop 9x8: wanted a part of the 8x8", id="crop too large"),
    pytest.param((MASKS, (8, 8), (0, 8)), ValueError, "crop 0x8", id="crop empty"),
    pytest.param((MASKS, (8, 8), None, -1), ValueError, "threads -1", id="threads"),
    pytest.param((MASKS, (8, 8, 8)), TypeError, r"size \(8, 8, 8\): wanted a pair", id="three sides"),
    pytest.param((MASKS, (8.5, 8)), TypeError, r"size \(8.5, 8\): wanted a pair", id="fraction"),
    pytest.param((MASKS, 8), TypeError, "size 8: wanted a pair", id="one side"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), BAD_LABELS_CALLS)
def test_bad_masks_are_refused(arguments: tuple[Any, ...], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        segmenter_trt.upsample_argmax(*arguments)


def test_misaligned_masks_are_refused() -> None:
    memory = np.zeros(MASKS.nbytes + 1, np.uint8)
    masks = memory[1:].view(f32).reshape(MASKS.shape)
    with pytest.raises(ValueError, match="ascontiguousarray"):
        segmenter_trt.upsample_argmax(masks, (8, 8))


def test_unknown_instruction_set_is_refused() -> None:
    with pytest.raises(ValueError, match="simd 'mmx': wanted"):
        segmenter_trt.upsample_argmax(MASKS, (8, 8), simd="mmx")


SPECS = {
    "imagenet": Preprocess(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    "halves": Preprocess(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
    "odd": Preprocess(mean=(0.1, 0.7, 0.3), std=(0.017, 1.3, 0.33)),
}


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("simd", ["automatic", "baseline"])
@pytest.mark.parametrize("shape", [(2, 5, 130, 3), (1, 1, 1, 3), (3, 4, 63, 3), (1, 7, 64, 3), (0, 4, 4, 3)])
def test_normalize_gives_the_same_bits(shape: tuple[int, ...], simd: Any, spec: Preprocess) -> None:
    images = np.random.default_rng(5).integers(0, 256, shape, dtype=np.uint8)
    scale, shift = preprocess.affine(spec)
    planes = segmenter_trt.normalize(images, scale, shift, simd=simd)
    np.testing.assert_array_equal(planes, preprocess.normalize(images, spec).numpy())


def test_normalize_gives_the_same_bits_for_every_value() -> None:
    images = np.repeat(np.arange(256, dtype=np.uint8), 3).reshape(1, 1, 256, 3)
    for spec in SPECS.values():
        planes = segmenter_trt.normalize(images, *preprocess.affine(spec))
        np.testing.assert_array_equal(planes, preprocess.normalize(images, spec).numpy())


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_normalize_pads_with_zeros_below_and_right(threads: int) -> None:
    images = np.random.default_rng(6).integers(0, 256, (2, 13, 70, 3), dtype=np.uint8)
    spec = SPECS["imagenet"]
    # what the allocator hands out next is not zero
    np.full((2, 3, 16, 80), np.nan, f32)
    planes = segmenter_trt.normalize(images, *preprocess.affine(spec), 16, 80, threads)
    assert planes.shape == (2, 3, 16, 80)
    assert planes.dtype == f32
    expected = np.zeros(planes.shape, f32)
    expected[..., :13, :70] = preprocess.normalize(images, spec).numpy()
    np.testing.assert_array_equal(planes, expected)


IMAGES = np.zeros((1, 4, 6, 3), np.uint8)
ONES = np.ones(3, f32)
BAD_NORMALIZE_CALLS = [
    pytest.param((IMAGES.astype(f32), ONES, ONES), TypeError, "wanted uint8", id="float image"),
    pytest.param((IMAGES[0], ONES, ONES), ValueError, r"wanted uint8 \[B, H, W, 3\]", id="3D"),
    pytest.param((np.zeros((1, 4, 6, 4), np.uint8), ONES, ONES), ValueError, r"wanted uint8 \[B, H, W, 3\]", id="RGBA"),
    pytest.param((IMAGES[:, :, ::-1], ONES, ONES), ValueError, "ascontiguousarray", id="flipped"),
    pytest.param((IMAGES[:, :0], ONES, ONES), ValueError, "at least one pixel", id="no pixel"),
    pytest.param((IMAGES, ONES.astype(float), ONES), TypeError, "scale float64", id="float64 scale"),
    pytest.param((IMAGES, ONES, np.ones(4, f32)), ValueError, r"shift float32 \(4,\)", id="four shifts"),
    pytest.param((IMAGES, ONES, ONES, 3, 6), ValueError, "output 3x6 is smaller than the 4x6", id="output too small"),
    pytest.param((IMAGES, ONES, ONES, None, None, -2), ValueError, "threads -2", id="threads"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), BAD_NORMALIZE_CALLS)
def test_bad_images_are_refused(arguments: tuple[Any, ...], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        segmenter_trt.normalize(*arguments)


def test_build_info_says_what_was_built() -> None:
    info = segmenter_trt.build_info()
    assert info["version"] == segmenter_trt.__version__
    assert info["simd"] in ("baseline", "avx2")
    assert info["standard"] == "C++20"
    assert info["compiler"].startswith(("g++", "clang"))


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt_rtx", "other"])
def test_build_info_says_whether_plans_can_be_opened(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEGMENTER_TRT_BACKENDS", str(tmp_path))
    (tmp_path / f"libsegmenter_trt_{name}.so").touch()
    assert segmenter_trt.build_info()["tensorrt"] is (name != "other")
