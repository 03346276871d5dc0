from functools import partial

import pytest
import torch
from torch import Tensor

import segmenter_kernels
from segmenter.window import window_logits
from segmenter_kernels import tiles
from segmenter_kernels.merge_windows import PLANAR, candidates
from segmenter_kernels.reference import merge_windows, merged_logits
from tests.kernels.conftest import DEVICE
from tests.kernels.harness import DTYPES, budget, inputs, poisoned
from tests.kernels.test_upsample_argmax import channels_last

# classes, masks h x w, (size, window, stride, side): one window, windows beside each other, overlaps of two to nine on
# a pixel with a last window off the stride, a window of no whole patch, stride 1, one source pixel
OVERLAPPING = (19, (3, 3), ((14, 25), 12, 8, None))
SHAPES = [
    (7, (4, 4), ((8, 8), 8, 8, None)),
    (5, (2, 2), ((6, 18), 6, 6, None)),
    (4, (4, 4), ((15, 14), 8, 3, None)),
    (6, (4, 5), ((11, 10), 9, 9, (12, 15))),
    (3, (2, 2), ((6, 7), 5, 1, None)),
    (2, (1, 1), ((5, 7), 4, 3, None)),
    (1, (2, 2), ((8, 10), 8, 4, None)),
]


def windows_of(size: tuple[int, int], window: int, stride: int) -> int:
    rows, columns = (-(-(length - window) // stride) + 1 for length in size)
    return rows * columns


def judge_labels(masks: Tensor, rest: tuple, labels: Tensor) -> None:
    """The class chosen must be the best in float64, but for what twice eager float32's own error could swap."""
    truth = merged_logits(masks.double(), *rest)
    allowed = budget(merged_logits(masks.float(), *rest), truth)
    assert labels.shape == truth[0].shape
    assert int(labels.max()) < masks.shape[1]
    lost = float((truth.amax(0) - truth.gather(0, labels.long()[None])[0]).max())
    assert lost <= allowed, f"a class {lost:.3g} below the best was chosen, budget {allowed:.3g}"
    assert float((labels.long() == truth.argmax(0)).double().mean()) >= 0.999


@pytest.mark.parametrize(
    ("classes", "grid", "rest", "dtype"),
    [*((*OVERLAPPING, dtype) for dtype in DTYPES), *((*shape, torch.float16) for shape in SHAPES)],
    ids=str,
)
def test_agrees_with_float64(classes, grid, rest, dtype: torch.dtype) -> None:
    (masks,) = inputs((windows_of(*rest[:3]), classes, *grid), dtype=dtype)
    with poisoned():
        labels = segmenter_kernels.merge_windows(channels_last(masks), *rest)
    assert labels.dtype == torch.uint8
    judge_labels(masks, rest, labels)


@pytest.mark.parametrize(("size", "window", "stride"), [((14, 25), 12, 8), ((13, 12), 8, 3)])
def test_the_windows_are_those_of_evaluation(size, window: int, stride: int) -> None:
    (image,) = inputs((1, 3, *size), dtype=torch.float32)
    kept = []

    def network(windows: Tensor) -> Tensor:
        kept.append(windows[:, :, ::4, ::4])
        return torch.nn.functional.interpolate(kept[-1], (window, window), mode="bilinear")

    mean = window_logits(network, image, window, stride, window_batch=2)
    assert torch.equal(segmenter_kernels.merge_windows(torch.cat(kept), size, window, stride).long(), mean.argmax(0))


@pytest.mark.parametrize("architecture", [80, 90])
def test_the_classes_of_ade20k(architecture: int) -> None:
    (masks,) = inputs((2, 150, 2, 2), dtype=torch.float16)
    tile = tiles.of_architecture("merge_windows", "32", architecture)
    with poisoned():
        labels = segmenter_kernels.merge_windows(channels_last(masks), (8, 12), 8, 8, tile=tile)
    judge_labels(masks, ((8, 12), 8, 8), labels)


@pytest.mark.parametrize("tile", list(candidates(90, "16")), ids=str)
def test_every_candidate_gives_the_same_labels(tile: dict[str, int]) -> None:
    (masks,) = inputs((8, 21, 2, 2), dtype=torch.float32)
    rest = ((5, 10), 4, 2)
    assert torch.equal(segmenter_kernels.merge_windows(masks, *rest, tile=tile), merge_windows(masks, *rest))


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x.contiguous(),
        lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
        lambda x: torch.cat((x, x), 3)[..., : x.shape[3]],
        lambda x: x[:1].expand_as(x),
    ],
)
def test_strides_do_not_matter(view) -> None:
    masks = view(inputs((4, 6, 2, 2), dtype=torch.float32)[0])
    with poisoned():
        labels = segmenter_kernels.merge_windows(masks, (6, 7), 5, 3)
    assert torch.equal(labels, merge_windows(masks, (6, 7), 5, 3))


@pytest.mark.parametrize("classes", [1, 2, 16, 17, 33])
def test_equal_classes_give_the_first(classes: int) -> None:
    (masks,) = inputs((2, 1, 2, 2), dtype=torch.float16)
    assert not segmenter_kernels.merge_windows(masks.expand(2, classes, 2, 2), (4, 6), 4, 2).any()


@pytest.mark.parametrize(("first", "second"), [(2, 3), (1, 20), (15, 16), (16, 40), (0, 39)])
def test_of_two_largest_classes_the_first_wins(first: int, second: int) -> None:
    (masks,) = inputs((2, 41, 2, 2), dtype=torch.float32)
    masks[:, first] = masks[:, second] = masks.amax(1) + 1
    assert (segmenter_kernels.merge_windows(masks, (4, 6), 4, 4) == first).all()


@pytest.mark.parametrize(("classes", "dtype"), [(256, torch.uint8), (257, torch.int16)])
def test_many_classes(classes: int, dtype: torch.dtype) -> None:
    (masks,) = inputs((1, classes, 2, 2), dtype=torch.float32)
    masks[:, -1, 0, 0] = 10  # the last class is seen
    labels = segmenter_kernels.merge_windows(masks, (4, 4), 4, 4)
    assert labels.dtype == dtype
    assert torch.equal(labels, merge_windows(masks, (4, 4), 4, 4))
    assert int(labels.max()) == classes - 1


@pytest.mark.parametrize("tile", [None, PLANAR], ids=str)
@pytest.mark.parametrize("score", [float("nan"), float("-inf"), 8e37])
def test_a_score_that_is_no_number_is_told(tile, score: float) -> None:
    classes = 9
    (masks,) = inputs((2, classes, 2, 2), dtype=torch.float32)
    rest = ((4, 6), 4, 2)
    odd = torch.zeros(1, dtype=torch.int32, device=DEVICE)
    labels = segmenter_kernels.merge_windows(masks, *rest, odd=odd, tile=tile)
    assert torch.equal(labels, merge_windows(masks, *rest))
    assert odd.item() == 0
    for n, k, y, x in ((0, 0, 0, 0), (1, classes - 1, 1, 1)):
        broken = masks.clone()
        broken[n, k, y, x] = score
        odd.zero_()
        segmenter_kernels.merge_windows(broken, *rest, odd=odd, tile=tile)
        assert odd.item() == 1


def test_masks_in_planes_by_the_tile_of_plans() -> None:
    (masks,) = inputs((17, 7, 2, 2), dtype=torch.float32)
    rest = ((8, 136), 8, 8)
    with poisoned():
        labels = segmenter_kernels.merge_windows(masks, *rest, tile=PLANAR)
    judge_labels(masks, rest, labels)


ones = partial(torch.ones, device=DEVICE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"masks": ones(3, 4, 4)}, r"masks \[3, 4, 4\]: want \[windows, K, h, w\]"),
        ({"masks": ones(2, 0, 4, 4)}, r"masks \[2, 0, 4, 4\]: want 1 to 32767 classes"),
        ({"masks": ones(3, 2, 4, 4)}, "masks of 3 windows: a 8x12 picture has 1 rows of 2"),
        ({"stride": 0}, "stride 0 with window 8: want 1 to 8"),
        ({"stride": 9}, "stride 9 with window 8: want 1 to 8"),
        ({"size": (7, 12)}, "picture 7x12: want sides of at least the window's 8 pixels"),
        ({"masks": None}, "masks is of type NoneType: want a tensor"),
        ({"size": 8}, r"size 8: want \(height, width\) in whole pixels"),
        ({"side": 8}, r"side 8: want \(height, width\) in whole pixels"),
        ({"side": (8, 7)}, "masks 4x4 of 8x7: want a whole window"),
        ({"side": (8, 2**27)}, ".*too large"),
        ({"masks": ones(2, 3, 4, 4, dtype=torch.int32)}, "masks is torch.int32; this op takes float16"),
        ({"masks": torch.ones(2, 3, 4, 4, device="meta")}, "masks is on meta"),
        ({"masks": ones(2, 3, 4, 4, requires_grad=True)}, "masks needs a gradient"),
        ({"odd": ones(2, dtype=torch.int32)}, r"odd \[2\]: want \[1\]"),
        ({"odd": ones(1)}, "odd is torch.float32; this op takes int32"),
        ({"odd": torch.ones(1, dtype=torch.int32, device="meta")}, "odd is on meta"),
    ],
)
def test_wrong_input_is_named(change, message) -> None:
    good = {"masks": ones(2, 3, 4, 4), "size": (8, 12), "window": 8, "stride": 4}
    with pytest.raises(ValueError, match=f"merge_windows: {message}"):
        segmenter_kernels.merge_windows(**good | change)
