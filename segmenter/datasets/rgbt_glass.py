"""RGB-T-Glass, glass or not: `{train,test}/SCENE/IMAGE/{rgb.png, mask.png, temperature.npy}`, test as validation.

Masks hold 255 for glass and 0 for the rest. `rgbt_glass` reads RGB alone, `rgbt_glass_thermal` the temperatures too, as
a fourth channel.
Source: Huo et al. 2023, "Glass Segmentation with RGB-Thermal Image Pairs", and its code's folders.
"""

from dataclasses import replace
from pathlib import Path

from segmenter.datasets.pairs import Layout

EXPECTED = (
    "RGB-T-Glass is folders train and test with SCENE/IMAGE/rgb.png and SCENE/IMAGE/mask.png, and for thermal"
    " SCENE/IMAGE/temperature.npy"
)
CLASSES = ("background", "glass")
PALETTE = ((60, 60, 60), (80, 200, 255))
_FOLDERS = {"train": "train", "val": "test"}


def layout(root: Path, split: str) -> Layout:
    """The layout of `root` for a split, 'train' or 'val'."""
    folder = root / _FOLDERS[split]
    return Layout(
        *(folder, folder, CLASSES, PALETTE, EXPECTED),
        values=(0, 255),
        void=(),
        depth=2,
        image_name="{}/rgb",
        mask_name="{}/mask",
    )


def thermal_layout(root: Path, split: str) -> Layout:
    """The same with the temperatures as a fourth channel."""
    return replace(layout(root, split), thermal=True)
