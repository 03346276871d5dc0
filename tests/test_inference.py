"""From a network to labels of one picture: whole, through windows, scaled, mirrored and resized."""

import numpy as np
import pytest
import torch

from segmenter.device import pick_device
from segmenter.errors import ConfigError, ImageError
from segmenter.inference import Inference, predictor
from segmenter.model import Segmenter
from segmenter.preprocess import normalize
from segmenter.window import scaled_views, segment


def test_predictor_gives_the_networks_labels(tiny_model: Segmenter) -> None:
    image = np.random.default_rng(0).integers(0, 255, (35, 50, 3), np.uint8)
    labels = predictor(tiny_model, Inference())(image)
    assert labels.dtype == np.uint8
    with torch.inference_mode():
        logits = tiny_model(normalize(image, tiny_model.config.preprocess))
    np.testing.assert_array_equal(labels, logits.argmax(1)[0].numpy())


def test_one_window_over_the_whole_image_changes_nothing(tiny_model: Segmenter) -> None:
    image = np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8)
    whole, windowed = (predictor(tiny_model, inference)(image) for inference in (Inference(), Inference(window=32)))
    np.testing.assert_array_equal(whole, windowed)


def test_windows_scales_and_flips(tiny_model: Segmenter) -> None:
    image = np.random.default_rng(0).integers(0, 255, (40, 70, 3), np.uint8)
    calls = []
    tiny_model.register_forward_pre_hook(lambda module, inputs: calls.append(tuple(inputs[0].shape)))
    inference = Inference(window=32, stride=24, window_batch=3, scales=(0.5, 1.0), flip=True)
    labels = predictor(tiny_model, inference)(image)
    assert {shape[1:] for shape in calls} == {(3, 32, 32)}
    # 2 x 3 windows of the image, and 1 x 2 of its half enlarged to 32x56; each mirrored too
    assert [shape[0] for shape in calls] == [2, 2, 3, 3, 3, 3]
    views = scaled_views(image, tiny_model.config.preprocess, (0.5, 1.0), flip=True)
    expected = segment(tiny_model, views, (40, 70), window=32, stride=24)
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, expected.argmax(0).numpy())


def test_images_are_resized_first_and_labelled_at_their_size(tiny_model: Segmenter) -> None:
    image = np.random.default_rng(0).integers(0, 255, (20, 35, 3), np.uint8)
    calls = []
    tiny_model.register_forward_pre_hook(lambda module, inputs: calls.append(tuple(inputs[0].shape)))
    inference = Inference(window=32, stride=24, window_batch=8, scales=(0.5, 1.0), resize=(256, 64))
    labels = predictor(tiny_model, inference)(image)
    # 64x112 has 3 x 5 windows, of which 8 at once; its half, 32x56, has 1 x 2
    assert [shape[0] for shape in calls] == [2, 8, 7]
    views = scaled_views(image, tiny_model.config.preprocess, (0.5, 1.0), resize=(256, 64))
    expected = segment(tiny_model, views, (20, 35), window=32, stride=24)
    np.testing.assert_array_equal(labels, expected.argmax(0).numpy())
    # one that is smaller than a patch is not, once resized
    assert predictor(tiny_model, inference)(image[:5]).shape == (5, 35)


@pytest.mark.parametrize("shape", [(1, 1), (7, 40), (40, 7)])
def test_images_smaller_than_a_patch_are_refused(tiny_model: Segmenter, shape: tuple[int, int]) -> None:
    H, W = shape
    for inference in (Inference(), Inference(window=16)):
        with pytest.raises(ImageError, match=f"image {W}x{H}: smaller than one 8x8 patch"):
            predictor(tiny_model, inference)(np.zeros((H, W, 3), np.uint8))
    with pytest.raises(ImageError, match=r"image 8x8 at scale 0\.5"):
        predictor(tiny_model, Inference(window=16, scales=(1.0, 0.5)))(np.zeros((8, 8, 3), np.uint8))
    assert predictor(tiny_model, Inference())(np.zeros((8, 8, 3), np.uint8)).shape == (8, 8)


def test_inference_options_are_checked(tiny_model: Segmenter) -> None:
    for wrong in (
        {"flip": True},
        {"scales": (0.5,)},
        {"window": 16, "stride": 32},
        {"window": 16, "stride": -1},
        {"window": 0},
        {"window_batch": 0},
        {"window": 16, "scales": ()},
        {"window": 16, "scales": (0.0,)},
        {"resize": (64, 32)},
        {"window": 16, "resize": (64, 0)},
    ):
        with pytest.raises(ConfigError):
            Inference(**wrong)
    with pytest.raises(ConfigError, match="window 4: smaller than one 8x8 patch"):
        predictor(tiny_model, Inference(window=4))
    # not before, as --paper brings the window
    with pytest.raises(ConfigError, match="--stride 8: works through sliding windows; add --window"):
        predictor(tiny_model, Inference(stride=8))


def test_devices_are_checked() -> None:
    assert pick_device("cpu") == "cpu"
    assert pick_device("auto") in ("cpu", "cuda")
    for name in ("abacus", "cuda:99", "meta"):
        with pytest.raises(ConfigError, match=f"device '{name}' cannot be used here"):
            pick_device(name)
