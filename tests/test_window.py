import numpy as np
import pytest
import torch

from segmenter.config import HALF
from segmenter.errors import ConfigError, ImageError
from segmenter.protocol import PAPER_SCALES
from segmenter.window import anchors, enlarge, scaled_views, segment, view_size, window_logits


def constant_model(x):
    """Two classes whose logits are the mean of the red and of the green channel of each window."""
    means = x[:, :2].mean((2, 3))
    return means[:, :, None, None].expand(-1, -1, *x.shape[2:])


def pointwise_model(x):
    return torch.stack([x[:, 0] - x[:, 1], x[:, 1] * 2, x[:, 2]], dim=1)


@pytest.mark.parametrize(
    ("length", "window", "stride", "wanted"),
    [(64, 64, 48, [0]), (100, 64, 48, [0, 36]), (160, 64, 48, [0, 48, 96]), (65, 64, 64, [0, 1])],
)
def test_anchors_cover_the_side_and_end_flush(length, window, stride, wanted):
    assert anchors(length, window, stride) == wanted


def test_overlapping_windows_are_averaged_as_logits():
    image = torch.zeros(1, 3, 4, 6)
    image[:, 0, :, :4] = 1.0
    logits = window_logits(constant_model, image, 4, 2, window_batch=2)
    assert logits[0, 0].tolist() == [1.0, 1.0, 0.75, 0.75, 0.5, 0.5]


@pytest.mark.parametrize("window_batch", [1, 3, 64])
def test_a_pointwise_model_sees_no_windows(window_batch):
    image = torch.randn(1, 3, 50, 70)
    probabilities = segment(pointwise_model, [(image, False)], (50, 70), 32, 20, window_batch)
    torch.testing.assert_close(probabilities, pointwise_model(image)[0].softmax(0))


def test_what_comes_out_may_be_changed_in_place():
    with torch.inference_mode():
        image = torch.ones(1, 3, 4, 4)
    probabilities = segment(pointwise_model, [(image, False)], (4, 4), 4, 4)
    probabilities /= 2
    logits = window_logits(pointwise_model, image, 4, 4)
    logits += 1


@pytest.mark.parametrize("window_batch", [0, -1])
def test_windows_go_by_one_or_more(window_batch):
    with pytest.raises(ConfigError, match=f"window_batch {window_batch}: wanted at least 1"):
        segment(pointwise_model, [(torch.ones(1, 3, 4, 4), False)], (4, 4), 4, 4, window_batch)


def test_flipped_views_are_flipped_back():
    image = random_image(32, 40)
    plain, flipped = (
        segment(pointwise_model, [view], (32, 40), 32, 32) for view in scaled_views(image, HALF, flip=True)
    )
    torch.testing.assert_close(plain, flipped)


def test_small_views_are_enlarged_to_the_window():
    assert enlarge(torch.zeros(1, 3, 30, 45), 64).shape == (1, 3, 64, 96)
    assert enlarge(torch.zeros(1, 3, 45, 30), 64).shape == (1, 3, 96, 64)
    assert enlarge(torch.zeros(1, 3, 64, 80), 64).shape == (1, 3, 64, 80)
    # a line of 4000 pixels would be 1 by 4000 windows, 12.6 GB
    with pytest.raises(ImageError, match=r"image 1x4000: .* the window's 512 makes it larger than 89478485 pixels"):
        enlarge(torch.zeros(1, 3, 1, 4000), 512)


def test_views_of_several_scales():
    views = scaled_views(np.zeros((40, 60, 3), np.uint8), HALF, (0.5, 1.0), flip=True)
    assert [(tuple(view.shape[2:]), flipped) for view, flipped in views] == [
        ((20, 30), False),
        ((20, 30), True),
        ((40, 60), False),
        ((40, 60), True),
    ]


@pytest.mark.parametrize(
    ("size", "scale", "resize", "wanted"),
    [
        ((377, 501), 0.5, None, (189, 251)),  # halves go up
        ((512, 683), 1.0, (2048, 512), (512, 683)),
        ((256, 341), 1.0, (2048, 512), (512, 682)),
        ((683, 512), 1.75, (512, 2048), (1195, 896)),
        ((100, 1000), 1.0, (2048, 512), (205, 2048)),  # the long side's bound
        ((333, 500), 0.75, (4160, 520), (390, 586)),
        ((100, 200), 0.3, (1001, 333), (99, 198)),  # bounds are cut to whole pixels: 300 and 99
    ],
)
def test_views_are_as_large_as_mmsegmentations(size, scale, resize, wanted):
    assert view_size(size, scale, resize) == wanted


def levels_of(view, image):
    """The levels of 0 to 255 of a view [1, 3, h, w], which have to be those of the resized image, float64 [h, w, 3]."""
    values = (view[0].double().permute(1, 2, 0).numpy() * 0.5 + 0.5) * 255
    np.testing.assert_allclose(values, values.round(), atol=1e-4)
    # half a level, and what float32 adds
    np.testing.assert_allclose(values, bilinear(image.astype(np.float64), values.shape[:2]), atol=0.5 + 1e-3)
    return values.round()


def random_image(height, width):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def bilinear(values, size):
    """float64 [H, W, C] at another size, a pixel's centre at its half: written out, to judge what PyTorch does."""
    H, W = values.shape[:2]
    out = np.zeros((*size, values.shape[2]))
    for row in range(size[0]):
        y = min(max((row + 0.5) * H / size[0] - 0.5, 0.0), H - 1.0)
        top = int(y)
        below = min(top + 1, H - 1)
        for column in range(size[1]):
            x = min(max((column + 0.5) * W / size[1] - 0.5, 0.0), W - 1.0)
            left = int(x)
            right = min(left + 1, W - 1)
            upper = values[top, left] * (1 - (x - left)) + values[top, right] * (x - left)
            lower = values[below, left] * (1 - (x - left)) + values[below, right] * (x - left)
            out[row, column] = upper * (1 - (y - top)) + lower * (y - top)
    return out


def test_multi_scale_and_flip_against_the_paper_written_out(tiny_model):
    """Six scales, mirrored too, windows of 32 every 24: each step again in float64 with nothing of the project's."""
    image, window, stride = random_image(41, 58), 32, 24
    views = scaled_views(image, tiny_model.config.preprocess, PAPER_SCALES, flip=True)
    found = segment(tiny_model, views, (41, 58), window, stride, window_batch=5)
    wanted = np.zeros((41, 58, 3))
    for scale, (given, _) in zip((0.5, 0.75, 1.0, 1.25, 1.5, 1.75), views[::2], strict=True):
        size = int(41 * scale + 0.5), int(58 * scale + 0.5)
        plain = levels_of(given, image) / 255 * 2 - 1
        assert plain.shape[:2] == size
        for flipped in (False, True):
            view = plain[:, ::-1] if flipped else plain
            if min(size) < window:
                view = bilinear(view, (window, int(size[1] / size[0] * window)))
            logits = by_windows(tiny_model, view, window, stride)
            logits = bilinear(logits, (41, 58))
            logits = logits[:, ::-1] if flipped else logits
            powers = np.exp(logits - logits.max(-1, keepdims=True))
            wanted += powers / powers.sum(-1, keepdims=True) / 12
    assert np.ptp(wanted) > 0.01
    # float32 against float64
    np.testing.assert_allclose(found.permute(1, 2, 0).numpy(), wanted, atol=2e-5)


def by_windows(model, view, window, stride):
    """Logits float64 [h, w, K], the mean over windows, one at a time."""
    h, w = view.shape[:2]
    total, count = np.zeros((h, w, 3)), np.zeros((h, w, 1))
    for top in [y for y in range(0, h, stride) if y < h - window] + [h - window]:
        for left in [x for x in range(0, w, stride) if x < w - window] + [w - window]:
            crop = np.ascontiguousarray(view[top : top + window, left : left + window])
            with torch.inference_mode():
                logits = model(torch.from_numpy(crop).permute(2, 0, 1)[None].float())[0]
            total[top : top + window, left : left + window] += logits.permute(1, 2, 0).double().numpy()
            count[top : top + window, left : left + window] += 1
    return total / count


@pytest.mark.parametrize(("views", "stride", "message"), [(0, 8, "no views"), (1, 17, "stride 17"), (1, 0, "stride 0")])
def test_impossible_requests_are_named(views, stride, message):
    with pytest.raises(ConfigError, match=message):
        segment(pointwise_model, [(torch.zeros(1, 3, 16, 16), False)] * views, (16, 16), 16, stride)
