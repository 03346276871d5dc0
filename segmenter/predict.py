"""Label pictures: class maps as palette PNGs, and overlays with a legend.

`python -m segmenter.predict --checkpoint FOLDER --images FILE_OR_FOLDER --out FOLDER`
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from rich.console import Console
from rich.progress import track

from segmenter.cli import run
from segmenter.device import pick_device
from segmenter.errors import ImageError
from segmenter.image_paths import find_images, require_kept
from segmenter.images import (
    orientation,
    overlay,
    read_image,
    turned_warning,
    with_legend,
    write_image,
    write_labels,
)
from segmenter.inference import Inference, Predict, predict_named, predictor
from segmenter.option import ANY_CHECKPOINT, require


@dataclass(frozen=True)
class Options:
    """Label an image, or every JPEG and PNG in a folder, with a trained checkpoint.

    Exits with 1 when a picture could not be labelled; the others are.
    """

    checkpoint: Annotated[Path, ANY_CHECKPOINT]
    images: Path
    """A JPEG or PNG file, or a folder of them."""
    out: Path
    """Folder for labels/NAME.png (class indices, coloured) and overlays/NAME.png (picture, classes, legend)."""
    alpha: float = 0.5
    """Share of the class colour in the overlays, 0 to 1."""
    inference: Annotated[Inference, tyro.conf.arg(name="")] = field(default_factory=Inference)

    def __post_init__(self) -> None:
        require(0.0 <= self.alpha <= 1.0, "--alpha", self.alpha, "0 to 1")


def predict_file(
    predict: Predict,
    path: Path,
    out: Path,
    classes: Sequence[str],
    palette: Sequence[tuple[int, int, int]],
    alpha: float,
) -> None:
    """Write `labels/NAME.png` and `overlays/NAME.png` into `out` for one picture.

    Raises ImageError naming a picture that cannot be read or is smaller than one patch.
    """
    image = read_image(path)
    labels = predict_named(predict, image, path)
    labels_path, overlay_path = _outputs(path, out)
    write_labels(labels_path, labels, palette)
    present = [index for index in np.unique(labels) if index < len(classes)]
    picture = with_legend(
        overlay(image, labels, palette, alpha),
        [classes[index] for index in present],
        [palette[index] for index in present],
    )
    write_image(overlay_path, picture)


def _outputs(path: Path, out: Path) -> tuple[Path, Path]:
    return out / "labels" / f"{path.stem}.png", out / "overlays" / f"{path.stem}.png"


def predict(options: Options) -> int:
    from segmenter.checkpoint import load_model

    files = find_images(options.images)
    require_kept(files, [output for path in files for output in _outputs(path, options.out)])
    model = load_model(options.checkpoint, pick_device(options.inference.device))
    label = predictor(model, options.inference)
    failed, turned = 0, []
    console = Console(stderr=True)
    for path in track(files, "predicting", console=console, transient=True):
        try:
            predict_file(label, path, options.out, model.config.classes, model.config.palette, options.alpha)
            if orientation(path) != 1:
                turned.append(path)
        except ImageError as error:
            failed += 1
            console.print(f"error: {error}", markup=False, highlight=False, soft_wrap=True)
    if turned:
        console.print(f"warning: {turned_warning(turned)}", markup=False, highlight=False, soft_wrap=True)
    print(f"{len(files) - failed} of {len(files)} images labelled into {options.out}")
    return 1 if failed else 0


def main(argv: Sequence[str] | None = None) -> int:
    return run(predict, Options, argv)


if __name__ == "__main__":
    sys.exit(main())
