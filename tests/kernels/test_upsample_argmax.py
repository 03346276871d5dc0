from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import segmenter_kernels
from segmenter import ops
from segmenter_kernels import tiles
from segmenter_kernels.upsample_argmax import candidates
from tests.kernels.conftest import DEVICE
from tests.kernels.harness import DTYPES, budget, inputs, poisoned

# masks, size, crop: integer ratios and others, one source pixel, 1:1, and downscaling
SHAPES = [
    ((2, 7, 6, 5), (96, 80), None),
    ((1, 19, 9, 11), (144, 176), (141, 170)),
    ((1, 4, 3, 5), (100, 37), None),
    ((2, 5, 1, 1), (17, 9), None),
    ((1, 6, 1, 7), (32, 224), (3, 224)),
    ((1, 3, 13, 9), (13, 9), None),
    ((1, 5, 37, 29), (11, 8), None),
    ((1, 4, 33, 31), (32, 32), (31, 5)),
    ((1, 2, 8, 8), (1, 1), None),
    ((1, 1, 4, 4), (64, 64), None),
]
CAMERAS = [((1, 3, 23, 31), (360, 480), None), ((1, 3, 26, 34), (364, 476), (360, 470))]


def channels_last(masks: Tensor) -> Tensor:
    """The view the network passes: strides (h w K, 1, w K, K)."""
    return masks.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


def logits_of(masks: Tensor, size: tuple[int, int], crop: tuple[int, int] | None) -> Tensor:
    rows, columns = crop or size
    return F.interpolate(masks, size=size, mode="bilinear", align_corners=False)[..., :rows, :columns]


def judge_labels(masks: Tensor, size: tuple[int, int], crop: tuple[int, int] | None, labels: Tensor) -> None:
    """The class chosen must be the best in float64, but for what twice eager float32's own error could swap."""
    truth = logits_of(masks.double(), size, crop)
    allowed = budget(logits_of(masks.float(), size, crop), truth)
    assert labels.shape == truth[:, 0].shape
    assert int(labels.max()) < masks.shape[1]
    chosen = truth.gather(1, labels.long()[:, None])[:, 0]
    lost = float((truth.amax(1) - chosen).max())
    assert lost <= allowed, f"a class {lost:.3g} below the best was chosen, budget {allowed:.3g}"
    assert float((labels.long() == truth.argmax(1)).double().mean()) >= 0.999


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("shape", "size", "crop"), SHAPES, ids=str)
def test_agrees_with_float64(shape, size, crop, dtype: torch.dtype) -> None:
    (masks,) = inputs(shape, dtype=dtype)
    with poisoned():
        labels = segmenter_kernels.upsample_argmax(channels_last(masks), size, crop)
    assert labels.dtype == torch.uint8
    judge_labels(masks, size, crop, labels)


@pytest.mark.parametrize(("shape", "size", "crop"), CAMERAS, ids=str)
def test_whole_images(shape, size, crop) -> None:
    test_agrees_with_float64(shape, size, crop, torch.float16)


@pytest.mark.parametrize("architecture", [80, 90])
def test_the_shape_of_a_deployed_network(architecture: int) -> None:
    (masks,) = inputs((1, 150, 4, 8), dtype=torch.float16)
    tile = tiles.of_architecture("upsample_argmax", "16", architecture)
    with poisoned():
        labels = segmenter_kernels.upsample_argmax(channels_last(masks), (64, 128), (60, 120), tile=tile)
    judge_labels(masks, (64, 128), (60, 120), labels)


@pytest.mark.parametrize("tile", list(candidates(90, "4")), ids=str)
def test_every_candidate_gives_the_same_labels(tile: dict[str, int]) -> None:
    (masks,) = inputs((1, 11, 5, 6), dtype=torch.float32)
    labels = segmenter_kernels.upsample_argmax(masks, (20, 22), tile=tile)
    assert torch.equal(labels, ops.upsample_argmax(masks, (20, 22)))


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x.contiguous(),
        channels_last,
        lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
        lambda x: torch.cat((x, x), 3)[..., : x.shape[3]],
        lambda x: x[:1].expand_as(x),
    ],
)
def test_strides_do_not_matter(view) -> None:
    masks = view(inputs((2, 6, 3, 4), dtype=torch.float32)[0])
    with poisoned():
        labels = segmenter_kernels.upsample_argmax(masks, (24, 32))
    assert torch.equal(labels, ops.upsample_argmax(masks, (24, 32)))


@pytest.mark.parametrize("classes", [1, 2, 3, 5, 9, 13])
def test_equal_classes_give_the_first(classes: int) -> None:
    (masks,) = inputs((1, 1, 3, 3), dtype=torch.float16)
    assert not segmenter_kernels.upsample_argmax(masks.expand(1, classes, 3, 3), (12, 12)).any()


@pytest.mark.parametrize("SPLIT", [1, 2, 4, 8])
@pytest.mark.parametrize(("first", "second"), [(2, 3), (1, 6), (4, 8), (0, 9), (7, 8)])
def test_of_two_largest_classes_the_first_wins(first: int, second: int, SPLIT: int) -> None:
    (masks,) = inputs((1, 10, 3, 3), dtype=torch.float32)
    masks[:, first] = masks[:, second] = masks.amax(1) + 1
    tile = {"BLOCK_Y": 4, "BLOCK_X": 32, "GROUP": 2, "SPLIT": SPLIT, "num_warps": SPLIT}
    assert (segmenter_kernels.upsample_argmax(masks, (12, 13), tile=tile) == first).all()


@pytest.mark.parametrize(("classes", "dtype"), [(256, torch.uint8), (257, torch.int16), (300, torch.int16)])
def test_many_classes(classes: int, dtype: torch.dtype) -> None:
    (masks,) = inputs((1, classes, 2, 2), dtype=torch.float32)
    masks[:, -1, 0, 0] = 10  # the last class is seen
    labels = segmenter_kernels.upsample_argmax(masks, (8, 8))
    assert labels.dtype == dtype
    assert torch.equal(labels, ops.upsample_argmax(masks, (8, 8)))
    assert int(labels.max()) == classes - 1


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_confidence_is_the_probability_of_the_label(dtype: torch.dtype) -> None:
    (masks,) = inputs((2, 9, 3, 4), dtype=dtype)
    masks = masks * 4
    size, crop = (48, 56), (45, 56)
    with poisoned():
        labels, probability = segmenter_kernels.upsample_argmax(masks, size, crop, confidence=True)
    truth = logits_of(masks.double(), size, crop).softmax(1)
    eager = logits_of(masks.float(), size, crop).softmax(1)
    judge_labels(masks, size, crop, labels)
    assert probability.dtype == torch.float32
    chosen = truth.gather(1, labels.long()[:, None])[:, 0]
    assert float((probability - chosen).abs().max()) <= budget(eager, truth)


def test_an_image_of_nan_leaves_the_others_bit_equal() -> None:
    (masks,) = inputs((3, 5, 4, 4), dtype=torch.float16)
    clean = segmenter_kernels.upsample_argmax(masks, (32, 32), confidence=True)
    masks[1] = float("nan")
    dirty = segmenter_kernels.upsample_argmax(masks, (32, 32), confidence=True)
    for before, after in zip(clean, dirty, strict=True):
        assert torch.equal(before[[0, 2]], after[[0, 2]])


def test_no_images_launch_nothing() -> None:
    assert segmenter_kernels.upsample_argmax(inputs((0, 3, 2, 2), dtype=torch.float32)[0], (8, 8)).shape == (0, 8, 8)


ones = partial(torch.ones, device=DEVICE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"masks": ones(3, 4, 4)}, r"masks \[3, 4, 4\]: want \[B, K, h, w\]"),
        ({"masks": ones(1, 0, 4, 4)}, r"masks \[1, 0, 4, 4\]: want 1 to 32767 classes"),
        ({"masks": ones(1, 32768, 1, 1)}, ".*want 1 to 32767 classes"),
        ({"masks": ones(1, 3, 0, 4)}, "masks 0x4 to 8x8: want sides of at least 1"),
        ({"size": (8, 0)}, "masks 4x4 to 8x0: want sides of at least 1"),
        ({"size": (8, 2**28)}, ".*too large"),
        ({"masks": None}, "masks is of type NoneType: want a tensor"),
        ({"size": (8, 8, 8)}, r"size \(8, 8, 8\): want \(height, width\) in whole pixels"),
        ({"crop": 8}, r"crop 8: want \(height, width\) in whole pixels"),
        ({"crop": (9, 8)}, "crop 9x8: want a part of 8x8"),
        ({"crop": (8, 0)}, "crop 8x0: want a part of 8x8"),
        ({"masks": ones(1, 3, 4, 4, dtype=torch.int32)}, "masks is torch.int32; this op takes float16"),
        ({"masks": torch.ones(1, 3, 4, 4, device="meta")}, "masks is on meta"),
        ({"masks": ones(1, 3, 4, 4, requires_grad=True)}, "masks needs a gradient"),
    ],
)
def test_wrong_input_is_named(change, message) -> None:
    good = {"masks": ones(1, 3, 4, 4), "size": (8, 8)}
    with pytest.raises(ValueError, match=f"upsample_argmax: {message}"):
        segmenter_kernels.upsample_argmax(**good | change)


@pytest.mark.parametrize("architecture", tiles.ARCHITECTURES)
def test_every_case_has_a_tile(architecture: int) -> None:
    for case in ("1", "2", "4", "8", "16"):
        tile = tiles.of_architecture("upsample_argmax", case, architecture)
        # one thread a column and part of the classes: rows share their horizontal interpolation without moving it
        assert tile["SPLIT"] * tile["BLOCK_X"] == 32 * tile["num_warps"]
