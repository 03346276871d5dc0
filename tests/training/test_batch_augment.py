"""Augmentation of a batch on the device: the same samples as on the CPU, pixel by pixel."""

from pathlib import Path

import numpy as np
import pytest
import torch

from segmenter.config import HALF, Preprocess
from segmenter.datasets import Sample, Subset
from segmenter.datasets.shapes import Shapes
from segmenter.train import main as train
from segmenter.training.augment import PRESETS, Augmentation
from segmenter.training.data import Augmented, Order, batches

RANDOM = np.random.default_rng(2)
SIZES = ((60, 90), (90, 60), (33, 47), (120, 40), (64, 64))


class Mixed:
    """Smooth pictures of several sizes and four channels; each channel tells the place."""

    classes, palette, ignore, channels = tuple("abcdefg"), ((0, 0, 0),) * 7, 255, 4

    def __len__(self) -> int:
        return len(SIZES)

    def __getitem__(self, index: int) -> Sample:
        H, W = SIZES[index]
        y, x = np.mgrid[:H, :W]
        image = np.stack((y * 255 // H, x * 255 // W, (x + y) % 256, (x * y) % 200), axis=-1).astype(np.uint8)
        labels = ((y // 7 + x // 5) % 7).astype(np.uint8)
        labels[:3] = 255
        return Sample(image, labels, str(index))


@pytest.mark.parametrize("name", ["paper", "mild", "none"])
def test_a_batch_is_what_the_cpu_makes_of_each(name: str) -> None:
    wide = Preprocess((0.4, 0.5, 0.6, 0.5), (0.2, 0.25, 0.3, 0.5))
    common = (Mixed(), (48, 56), PRESETS[name], wide, 7)
    order = Order(len(SIZES), 5, 3, 0, 8)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    alone = batches(Augmented(*common), order, 0)  # type: ignore[arg-type]
    together = batches(Augmented(*common, raw=True), order, 0, device)  # type: ignore[arg-type]
    padded = 0
    for (images, labels), (others, other_labels) in zip(alone, together, strict=True):
        assert torch.equal(labels, other_labels.cpu())
        difference = (images - others.cpu()).abs() * 255 * 0.25
        # a level where Pillow rounds after each direction; contrast and saturation stretch it, each by half at most
        assert difference[:, 3].max() <= 2.1
        assert difference.mean() < 0.5
        padding = (images == 0).all(dim=1)
        assert torch.equal(padding, (others.cpu() == 0).all(dim=1))
        padded += int(padding.sum())
    assert (padded > 0) == (name == "paper")


def test_workers_change_nothing() -> None:
    settings = Augmentation()
    samples = Augmented(Shapes("train", length=5), (32, 32), settings, HALF, 0, raw=True)
    here = list(batches(samples, Order(5, 2, 0, 0, 4), 0))
    there = list(batches(samples, Order(5, 2, 0, 0, 4), 1))
    for (images, labels), (others, other_labels) in zip(here, there, strict=True):
        assert torch.equal(images, others)
        assert torch.equal(labels, other_labels)


def test_channels_have_equal_means_and_deviations() -> None:
    """Over many samples, as somebody who compares two runs would look."""
    samples = Subset(Shapes("train"), 60)
    made = []
    for raw in (False, True):
        every = batches(Augmented(samples, (96, 96), PRESETS["paper"], HALF, 1, raw=raw), Order(60, 20, 0, 0, 3), 0)
        images, labels = (torch.cat(parts) for parts in zip(*every, strict=True))
        made.append((images, torch.bincount(labels.flatten().long(), minlength=256)))
    (first, first_counts), (second, second_counts) = made
    assert torch.equal(first_counts, second_counts)
    for measure in (torch.mean, torch.std):
        torch.testing.assert_close(measure(first, dim=(0, 2, 3)), measure(second, dim=(0, 2, 3)), atol=2e-3, rtol=0)


def test_a_run_that_augments_on_the_device(tmp_path: Path) -> None:
    options = "--dataset shapes --limit 8 --width 32 --depth 1 --crop 64 64 --batch 4 --steps 4 --augment-on device"
    quiet = ["--no-tensorboard", "--workers", "0", "--threads", "1", "--eval-every", "0"]
    assert train(["--out", str(tmp_path / "run"), *options.split(), *quiet]) == 0
