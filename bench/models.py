"""The network under test: an engine folder of a trained checkpoint, or one made of seeded random weights.

Speed does not depend on what the weights learnt, so a variant nobody has trained here can still be timed.
"""

import hashlib
import json
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from segmenter.checkpoint import CONFIG_NAME, WEIGHTS_NAME, read_config, save_model
from segmenter.config import SegmenterConfig, variant
from segmenter.datasets import open_dataset
from segmenter.errors import CheckpointError, ConfigError
from segmenter.files import atomic_path, sha256
from segmenter_bench.machine import versions
from segmenter_bench.race import say
from segmenter_bench.random_weights import random_model
from segmenter_engines.folder import CHECKPOINT, manifests

MARK = "random.json"  # written last: the weights are random; and which of the engines were made of them
CALIBRATION_IMAGES = 4


@dataclass(frozen=True)
class Subject:
    """An engine folder, and what is known of the network in it."""

    folder: Path
    config: SegmenterConfig
    size: tuple[int, int]  # H, W of the images its engines take
    max_batch: dict[str, int]  # of each artifact it holds, by file name
    trained: bool
    sha256: str  # of the weights

    def facts(self) -> dict[str, Any]:
        height, width = self.size
        return {
            "name": self.config.name,
            "classes": list(self.config.classes),
            "palette": [list(colour) for colour in self.config.palette],
            "height": height,
            "width": width,
            "trained": self.trained,
            "weights_sha256": self.sha256,
        }


def open_folder(folder: Path) -> Subject:
    """An engine folder that exists.

    Raises CheckpointError when it holds no checkpoint, EngineError when its engines are not of that checkpoint.
    """
    checkpoint = folder / CHECKPOINT
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no folder; wanted an engine folder, as `segmenter pipeline` fills it")
    if (folder / CONFIG_NAME).exists():
        raise CheckpointError(
            f"{folder}: is a checkpoint; wanted an engine folder: fill one with"
            f" `segmenter pipeline {folder} --out FOLDER`"
        )
    if not checkpoint.is_dir():
        raise CheckpointError(
            f"{folder}: no folder {CHECKPOINT!r} in it; wanted an engine folder, with the checkpoint in {CHECKPOINT}/"
            " and the engines beside it: fill one with `segmenter pipeline CHECKPOINT --out FOLDER`"
        )
    config = read_config(checkpoint / CONFIG_NAME)
    found = manifests(folder)
    sizes = [manifest.size for manifest in found.values()]
    size = sizes[0] if sizes else config.encoder.image_size
    max_batch = {name: manifest.batch[2] for name, manifest in found.items()}
    return Subject(folder, config, size, max_batch, not (folder / MARK).exists(), sha256(checkpoint / WEIGHTS_NAME))


def random_folder(
    name: str, height: int, width: int, classes: int, cache: Path, seed: int = 0, artifacts: bool = True
) -> Subject:
    """An engine folder of `variant(name, classes)` with random weights, made in `cache` or found there.

    artifacts: whether engines that open no checkpoint are wanted; exporting and building them takes a while.

    What cannot be made here (a missing package, a failed build) leaves its reason, which the bench repeats.
    Raises ConfigError for an unknown variant or an impossible size.
    """
    P = variant(name).encoder.patch_size
    if min(height, width) < P:
        raise ConfigError(f"size {height}x{width} is smaller than one {P} pixel patch of {name}; enlarge it")
    config = variant(name, classes, image_size=(height - height % P, width - width % P))
    folder = cache / f"{_slug(config.name)}-{height}x{width}-k{classes}-{_fingerprint(seed)}"
    known = json.loads((folder / MARK).read_text(encoding="utf-8")) if (folder / MARK).exists() else None
    if known is None or (artifacts and not known["artifacts"]):
        if known is None:
            save_model(random_model(config, seed), folder / CHECKPOINT)
        if artifacts:
            # here, because benching a folder that is there needs no package that exports
            from segmenter_engines.artifacts import make_artifacts

            images = pictures(CALIBRATION_IMAGES, (height, width), "train")
            make_artifacts(folder, height, width, images, say=say)
        facts = {"seed": seed, "variant": config.name, "artifacts": artifacts}
        with atomic_path(folder / MARK) as temporary:
            temporary.write_text(json.dumps(facts) + "\n", encoding="utf-8")
    return open_folder(folder)


def pictures(count: int, size: tuple[int, int], split: str = "val") -> list[np.ndarray]:
    """`count` made-up scenes, uint8 RGB [H, W, 3]: the `shapes` dataset enlarged."""
    dataset, (H, W) = open_dataset("shapes", None, split), size
    scenes = (Image.fromarray(dataset[index].image) for index in range(count))
    return [np.asarray(scene.resize((W, H), Image.Resampling.BICUBIC)) for scene in scenes]


def _slug(name: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in name.lower())


def _fingerprint(seed: int) -> str:
    """Changes with the code and the packages that make an engine folder, so that a stale one is never measured."""
    digest = hashlib.sha256(f"{seed} {sorted(versions().items())}".encode())
    for package in ("segmenter", "segmenter_engines"):
        spec = find_spec(package)
        assert spec is not None
        assert spec.origin is not None
        for source in sorted(Path(spec.origin).parent.rglob("*.py")):
            digest.update(source.read_bytes())
    return digest.hexdigest()[:8]
