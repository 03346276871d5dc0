import pytest
import torch

from segmenter.errors import ConfigError
from segmenter.window import anchors, enlarge, scaled_views, segment, window_logits


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


def test_flipped_views_are_flipped_back():
    image = torch.randn(1, 3, 32, 40)
    plain, flipped = (segment(pointwise_model, [view], (32, 40), 32, 32) for view in scaled_views(image, flip=True))
    torch.testing.assert_close(plain, flipped)


def test_small_views_are_enlarged_to_the_window():
    assert enlarge(torch.zeros(1, 3, 30, 45), 64).shape == (1, 3, 64, 96)
    assert enlarge(torch.zeros(1, 3, 45, 30), 64).shape == (1, 3, 96, 64)
    assert enlarge(torch.zeros(1, 3, 64, 80), 64).shape == (1, 3, 64, 80)


def test_views_of_several_scales():
    views = scaled_views(torch.zeros(1, 3, 40, 60), (0.5, 1.0), flip=True)
    assert [(tuple(view.shape[2:]), flipped) for view, flipped in views] == [
        ((20, 30), False),
        ((20, 30), True),
        ((40, 60), False),
        ((40, 60), True),
    ]


@pytest.mark.parametrize(("views", "stride", "message"), [(0, 8, "no views"), (1, 17, "stride 17"), (1, 0, "stride 0")])
def test_impossible_requests_are_named(views, stride, message):
    with pytest.raises(ConfigError, match=message):
        segment(pointwise_model, [(torch.zeros(1, 3, 16, 16), False)] * views, (16, 16), 16, stride)
