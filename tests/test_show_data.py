"""`segmenter show-data` draws the very samples a run begins with, their labels in their colours, and void hatched."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segmenter.config import HALF
from segmenter.datasets import Sample, open_dataset
from segmenter.show_data import Options, contact_sheet, main
from segmenter.training.augment import PRESETS
from segmenter.training.data import Augmented, Order, batches
from segmenter.training.options import AugmentOptions


class Halves:
    """Left half class 0, right half class 1, a band of void at the top; three channels, and a fourth in steps."""

    classes, palette, ignore = ("left", "right"), ((250, 0, 0), (0, 0, 250)), 255

    def __init__(self, channels: int) -> None:
        self.channels = channels

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Sample:
        image = np.full((64, 64, self.channels), 100, np.uint8)
        image[..., 3:] = 40
        labels = np.repeat(np.repeat(np.array([[0, 1]], np.uint8), 32, axis=1), 64, axis=0)
        labels[:16] = 255
        return Sample(image, labels, str(index))


@pytest.mark.parametrize("channels", [3, 4])
def test_panels_colours_and_hatching(channels: int) -> None:
    plain = AugmentOptions(augment="none", crop=(64, 64))
    options = Options(Path("s.png"), samples=4, side=64, augmentation=plain)
    sheet = contact_sheet(Halves(channels), options)
    wide = 64 * (channels - 1)
    assert sheet.shape[1] == max(2 * (wide + 8) + 8, 160)
    for top, left in ((8, 8), (8, 8 + wide + 8), (80, 8)):
        assert (sheet[top : top + 64, left : left + 64] == 100).all()
        if channels == 4:
            assert (sheet[top : top + 64, left + 64 : left + 128] == 40).all()
        labelled = sheet[top : top + 64, left + wide - 64 : left + wide]
        assert (labelled[16:, :32] == (175, 50, 50)).all()
        assert (labelled[16:, 32:] == (50, 50, 175)).all()
        void = labelled[:16].reshape(-1, 3)
        for colour in (255, 0, 100):
            assert 0.2 < (void == colour).all(axis=1).mean() < 0.6


def test_the_samples_are_those_of_a_run(picture_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "deep" / "sheet.png"
    common = ["--dataset", "folder", "--data", str(picture_root), "--seed", "3", "--crop", "32", "48", "--side", "48"]
    assert main([*common, "--out", str(out), "--samples", "5"]) == 0
    assert "5 of 3 folder train samples, paper, crop 48x32" in capsys.readouterr().out
    sheet = np.array(Image.open(out))
    samples = Augmented(open_dataset("folder", picture_root, "train"), (32, 48), PRESETS["paper"], HALF, 3)
    for index, (images, _) in enumerate(batches(samples, Order(3, 1, 3, 0, 5), 0)):
        top, left = index // 3 * 40 + 8, index % 3 * (96 + 8) + 8
        shown = sheet[top : top + 32, left : left + 48]
        wanted = ((images[0] * 0.5 + 0.5) * 255).round().clamp(0, 255).permute(1, 2, 0).numpy()
        padding = (images[0] == 0).all(0).numpy()  # grey by its normalisation, black by the sheet's
        assert np.abs(shown.astype(float) - wanted)[~padding].max() <= 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--samples", "0"], "--samples 0: wanted at least 1"),
        (["--crop", "0", "5"], "--crop 0 5: wanted at least a pixel"),
        (["--dataset", "coco"], "dataset 'coco': wanted one of"),
    ],
)
def test_impossible_options(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--out", str(tmp_path / "s.png"), *options]) == 2
    assert message in capsys.readouterr().err
    assert main(["--out", str(tmp_path / "s.gif")]) == 2
    assert "s.gif: wanted the name of a picture, such as s.png" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
