"""Pictures to be labelled by an engine, the command that does, and what it wrote."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segmenter.images import read_labels
from segmenter_engines.label import main
from tests.small_engines import pictures

NAMES = ["a.png", "b.jpg", "deep/c.png", "deep/d.PNG", "e.jpeg"]


@pytest.fixture(name="photos")
def photos_fixture(tmp_path: Path) -> Path:
    """Pictures of the engine's size, and one that is larger, in a folder and below it."""
    folder = tmp_path / "photos"
    (folder / "deep").mkdir(parents=True)
    for index, (name, image) in enumerate(zip(NAMES, pictures(len(NAMES)), strict=True)):
        larger = image.repeat(2, axis=0) if index == 2 else image
        Image.fromarray(larger).save(folder / name)
    (folder / ".hidden.png").write_bytes(b"none")
    return folder


def label(engine: Path, photos: object, out: object, *more: str) -> int:
    return main([str(engine), "--images", str(photos), "--out", str(out), "--threads", "1", *more])


def labels(out: Path) -> dict[str, np.ndarray]:
    return {path.relative_to(out).as_posix(): read_labels(path) for path in out.rglob("*.png")}
