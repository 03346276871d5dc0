"""Augmentation: pure in its seed, image and labels moved together, the spec's normalisation and padding, odd inputs."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from segmenter.config import HALF, IMAGENET
from segmenter.errors import ConfigError
from segmenter.preprocess import normalize
from segmenter.training.augment import PRESETS, Augmentation, augment, augmentation_of
from segmenter.training.options import AugmentOptions

RANDOM = np.random.default_rng(5)
IMAGE = RANDOM.integers(0, 256, (70, 90, 3), dtype=np.uint8)
LABELS = RANDOM.integers(0, 7, (70, 90), dtype=np.uint8)
KEPT_COLOURS = Augmentation(brightness=0, contrast=0, saturation=0, hue=0)


def painted(labels: np.ndarray) -> np.ndarray:
    """An image whose colour tells the label: red is 20 times it."""
    return np.stack([labels * 20, np.full_like(labels, 128), 255 - labels * 20], axis=-1)


@pytest.mark.parametrize("name", PRESETS)
def test_same_seed_same_pair_and_other_seed_another(name: str) -> None:
    first = augment(IMAGE, LABELS, (1, 2), (48, 48), PRESETS[name], HALF)
    again = augment(IMAGE, LABELS, (1, 2), (48, 48), PRESETS[name], HALF)
    others = [augment(IMAGE, LABELS, (1, seed), (48, 48), PRESETS[name], HALF) for seed in (3, 4, 5)]
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not all(torch.equal(first[0], other[0]) for other in others)


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("crop", [(48, 64), (128, 128), (33, 17)])
def test_shapes_and_types(name: str, crop: tuple[int, int]) -> None:
    image, labels = augment(IMAGE, LABELS, (0, 0), crop, PRESETS[name], HALF)
    assert image.shape == (3, *crop)
    assert image.dtype == torch.float32
    assert image.is_contiguous()
    assert labels.shape == crop
    assert labels.dtype == torch.uint8


def test_nothing_to_do_is_normalisation_alone() -> None:
    image, labels = augment(IMAGE, LABELS, (0, 0), (70, 90), PRESETS["none"], IMAGENET)
    assert torch.equal(image, normalize(IMAGE, IMAGENET)[0])
    assert np.array_equal(labels.numpy(), LABELS)


def test_inputs_stay_untouched() -> None:
    image, labels = IMAGE.copy(), LABELS.copy()
    for seed in range(10):
        augment(image, labels, (0, seed), (64, 64), PRESETS["paper"], HALF)
    assert np.array_equal(image, IMAGE)
    assert np.array_equal(labels, LABELS)


@pytest.mark.parametrize("scale", [(1.0, 1.0), (1.0, 1.8), (0.5, 2.0)])
def test_image_and_labels_move_together(scale: tuple[float, float]) -> None:
    # blocks of 16 pixels, so that away from their borders resizing keeps the colour
    labels = RANDOM.integers(0, 7, (6, 8), dtype=np.uint8).repeat(16, axis=0).repeat(16, axis=1)
    settings = Augmentation(scale=scale, brightness=0, contrast=0, saturation=0, hue=0)
    for seed in range(12):
        image, target = augment(painted(labels), labels, (9, seed), (64, 96), settings, HALF)
        red = ((image[0] + 1) * 127.5 / 20).round()
        labelled = target != 255
        assert labelled.any()
        assert (red[labelled] == target[labelled]).float().mean() > 0.8


def test_half_of_the_images_are_mirrored() -> None:
    mirrored = 0
    for seed in range(200):
        image, labels = augment(IMAGE, LABELS, (4, seed), (70, 90), PRESETS["flip"], HALF)
        plain = np.array_equal(labels.numpy(), LABELS)
        assert plain or np.array_equal(labels.numpy(), LABELS[:, ::-1])
        wanted = normalize(IMAGE if plain else IMAGE[:, ::-1], HALF)[0]
        assert torch.equal(image, wanted)
        mirrored += not plain
    assert 70 < mirrored < 130


@pytest.mark.parametrize("preprocess", [HALF, IMAGENET])
def test_image_smaller_than_the_crop_is_padded(preprocess: object) -> None:
    settings = Augmentation(scale=(0.5, 0.5), flip_chance=0, brightness=0, contrast=0, saturation=0, hue=0)
    image, labels = augment(IMAGE[:40, :40], LABELS[:40, :40], (0, 0), (64, 48), settings, preprocess)  # type: ignore[arg-type]
    # 40x40 covers 64x48 at 64x64; half of that is 32x32
    assert (image[:, 32:] == 0).all()
    assert (image[:, :, 32:] == 0).all()
    assert (labels[32:] == 255).all()
    assert (labels[:, 32:] == 255).all()
    assert (labels[:32, :32] != 255).all()
    assert (image[:, :32, :32] != 0).float().mean() > 0.9


def test_labels_all_ignored() -> None:
    image, labels = augment(IMAGE, np.full_like(LABELS, 255), (0, 1), (32, 32), PRESETS["paper"], HALF)
    assert (labels == 255).all()
    assert torch.isfinite(image).all()


def test_no_label_is_invented() -> None:
    # nearest neighbour only: a single pixel of class 5 in class 2, void around; nothing in between may appear
    labels = np.full((61, 43), 2, np.uint8)
    labels[30, 20] = 5
    labels[:5] = 255
    seen: set[int] = set()
    for seed in range(60):
        _, target = augment(np.zeros((61, 43, 3), np.uint8), labels, (0, seed), (40, 40), PRESETS["paper"], HALF)
        seen |= set(target.unique().tolist())
    assert seen == {2, 5, 255}


@pytest.mark.parametrize("shape", [(1, 1), (1, 200), (200, 1), (3, 2)])
def test_tiny_images(shape: tuple[int, int]) -> None:
    image = RANDOM.integers(0, 256, (*shape, 3), dtype=np.uint8)
    for seed in range(5):
        pixels, target = augment(image, np.zeros(shape, np.uint8), (0, seed), (24, 16), PRESETS["paper"], HALF)
        assert pixels.shape == (3, 24, 16)
        assert (target == 0).any()


def test_crops_of_one_class_are_avoided() -> None:
    labels = np.zeros((64, 256), np.uint8)
    labels[:, 128:] = 1
    image = painted(labels)

    def mixed(most: float) -> float:
        settings = Augmentation(scale=(1.0, 1.0), max_class_share=most, flip_chance=0)
        pairs = [augment(image, labels, (7, seed), (64, 64), settings, HALF)[1] for seed in range(100)]
        return float(np.mean([0.25 < (target == 1).float().mean() < 0.75 for target in pairs]))

    assert mixed(1.0) < 0.35
    assert mixed(0.75) > 0.75


def test_colours_stay_in_range_and_change() -> None:
    changed = 0
    for seed in range(40):
        settings = Augmentation(scale=(1, 1), max_class_share=1, flip_chance=0)
        image, labels = augment(IMAGE, LABELS, (3, seed), (70, 90), settings, HALF)
        assert image.min() >= -1
        assert image.max() <= 1
        assert np.array_equal(labels.numpy(), LABELS)
        changed += not torch.equal(image, normalize(IMAGE, HALF)[0])
    assert changed > 25


def test_hue_alone_turns_hues_and_keeps_brightness() -> None:
    # a pure colour: turning its hue keeps the largest and the smallest channel
    image = np.empty((16, 16, 3), np.uint8)
    image[:] = 200, 60, 60
    settings = Augmentation(
        scale=(1, 1), flip_chance=0, brightness=0, contrast=0, saturation=0, hue=18, colour_chance=1
    )
    hues = set()
    for seed in range(20):
        pixels, _ = augment(image, np.zeros((16, 16), np.uint8), (2, seed), (16, 16), settings, HALF)
        colour = ((pixels[:, 0, 0] + 1) * 127.5).round()
        assert abs(colour.max() - 200) <= 2
        assert abs(colour.min() - 60) <= 2
        hues.add(tuple(colour.tolist()))
    assert len(hues) > 5


def test_options_win_over_their_set() -> None:
    assert augmentation_of(AugmentOptions(augment="flip")) == PRESETS["flip"]
    given = AugmentOptions(augment="mild", scale=(0.5, 1.0), short_side=64, long_ratio=2.0)
    assert augmentation_of(given) == replace(PRESETS["mild"], scale=(0.5, 1.0), short_side=64, long_ratio=2.0)
    assert (given.crop_for(), given.crop_for((32, 48))) == ((512, 512), (32, 48))
    assert AugmentOptions(crop=(8, 9)).crop_for((32, 48)) == (8, 9)


@pytest.mark.parametrize("changes", [{"scale": (0.0, 1.0)}, {"scale": (2.0, 1.0)}, {"contrast": 1.5}])
def test_impossible_settings(changes: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="wanted"):
        Augmentation(**changes)  # type: ignore[arg-type]
