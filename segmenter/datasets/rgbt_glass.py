"""RGB-T-Glass, glass or not: `{train,test}/SCENE/IMAGE/{rgb.png, mask.png}`, the test images as validation.

Masks hold 255 for glass and 0 for the rest; the thermal image beside them is not read.
Source: Huo et al. 2023, "Glass Segmentation with RGB-Thermal Image Pairs", and its code's folders.
"""

from pathlib import Path

from segmenter.datasets.pairs import Layout

EXPECTED = "RGB-T-Glass is folders train and test with SCENE/IMAGE/rgb.png and SCENE/IMAGE/mask.png"
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
