"""Label a folder of pictures with an engine: on one machine, or a share of them on each of many.

`segmenter label model.int8.onnx --images photos --out labels --shard 0/8`, `--shard 1/8`, ... under any scheduler:
which pictures are whose follows from their names alone, labels appear whole or not at all, and what is there is not
made again.
"""

import json
import os
import sys
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated

import numpy as np
import tyro
from PIL import Image
from rich.console import Console
from rich.progress import track

from segmenter.cli import run
from segmenter.datasets.fitted import fit
from segmenter.errors import ConfigError, DataError, ImageError
from segmenter.files import sha256
from segmenter.images import IMAGE_SUFFIXES, label_picture, read_image
from segmenter.option import one_of
from segmenter_engines.invariants import one_at_a_time
from segmenter_engines.manifest import weights_of
from segmenter_engines.sessions import ENGINES, Session, open_session
from segmenter_engines.store import Store

ENGINE_NAME = "engine.json"  # in the folder of labels: what made them


@dataclass(frozen=True)
class Options:
    """Label every picture of a folder with an engine; run again, it goes on with those that have no labels yet."""

    artifact: Annotated[Path, tyro.conf.Positional]
    """A .onnx or .plan, or a checkpoint."""
    images: str
    """Folder of JPEG and PNG files, in it and below it; or a URL that fsspec opens, such as s3://bucket/photos."""
    out: str
    """Folder, or URL, for a PNG of class indices a picture, under its name; labels of one engine."""
    shard: str = "0/1"
    """This machine's share: 0/8, 1/8, ... 7/8 are the shares of eight."""
    engine: Annotated[str | None, one_of(ENGINES)] = None
    """Runtime to open it with; the first that fits when left out."""
    threads: int | None = None
    """CPU threads."""
    ray: int = 0
    """Label by so many workers of Ray Data, on the cluster `ray` finds; 0 labels here, without it."""
    ray_gpus: float = 0.0
    """GPUs of each of Ray's workers."""

    def __post_init__(self) -> None:
        if self.ray < 0 or self.ray_gpus < 0:
            raise ConfigError(f"--ray {self.ray} --ray-gpus {self.ray_gpus}: wanted 0 or more")


class Labeller:
    """An engine that labels pictures of a store by name, into another.

    Raises what `open_session` does, and ConfigError where the labels there are of another engine.
    """

    def __init__(
        self, artifact: Path, images: str, out: str, engine: str | None = None, threads: int | None = None
    ) -> None:
        self.images, self.out = Store(images), Store(out)
        self.session: Session = open_session(artifact, engine, threads=threads)
        self.predict = one_at_a_time(self.session)
        if not require_labels_of(artifact, self.out, self.session.classes):
            facts = _facts(artifact, self.session.classes) | {"engine": self.session.name}
            with self.out.writing(ENGINE_NAME) as temporary:
                temporary.write_text(json.dumps(facts, indent=1), encoding="utf-8")

    def label(self, name: str) -> None:
        """Write one picture's labels, at its own size; an engine of other sizes sees it resized.

        Raises ImageError naming a picture that cannot be read.
        """
        with self.images.reading(name) as path:
            image = read_image(path)
        labels = self.predict(fit(image, self._taken(image.shape[0], image.shape[1])))
        if labels.shape != image.shape[:2]:
            resized = Image.fromarray(labels).resize((image.shape[1], image.shape[0]), Image.Resampling.NEAREST)
            labels = np.asarray(resized)
        with self.out.writing(label_name(name)) as path:
            label_picture(labels, self.session.palette).save(path, format="PNG")

    def close(self) -> None:
        self.session.close()

    def _taken(self, H: int, W: int) -> tuple[int, int]:
        """The nearest size that the engine takes."""
        spec = self.session.spec
        height, width = (
            side if span is None else min(max(side, span[0]), span[2])
            for side, span in ((H, spec.height), (W, spec.width))
        )
        return height, width


def require_labels_of(artifact: Path, out: Store, classes: Sequence[str] | None = None) -> bool:
    """Whether a store says what its labels are of. Raises ConfigError where that is another engine."""
    there = out.read_text(ENGINE_NAME)
    if there is not None and not _agrees(there, _facts(artifact, classes)):
        raise ConfigError(f"--out {out.url}: holds labels of another engine ({ENGINE_NAME}); choose another folder")
    return there is not None


def label_name(name: str) -> str:
    """Where the labels of a picture are: `a/b.jpg` becomes `a/b.png`, and so does the key `a//b.jpg` of a store."""
    return str(PurePosixPath(name.lstrip("/")).with_suffix(".png"))


def pictures(images: Store) -> list[str]:
    """The pictures of a store.

    Raises DataError where there is no such folder or none in it, ConfigError where two would have one name for their
    labels.
    """
    if not images.is_folder():
        what = "is a file" if Path(images.root).exists() else "no such folder"
        raise DataError(f"{images.url}: {what}; point --images at a folder with images")
    names = images.names(IMAGE_SUFFIXES)
    if not names:
        raise DataError(f"{images.url}: holds no images ({', '.join(IMAGE_SUFFIXES)}); point --images at some")
    by_label: dict[str, str] = {}
    for name in names:
        if (other := by_label.setdefault(label_name(name), name)) != name:
            raise ConfigError(f"{images.url}: {other} and {name} would both become {label_name(name)}; rename one")
    return names


def share(names: Sequence[str], shard: str) -> list[str]:
    """The names of one share, `i/n`: by a hash of each, so that files that come or go change nobody else's.

    Raises ConfigError for what is no share.
    """
    index, slash, count = shard.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise ConfigError(f"--shard {shard}: wanted i/n with i from 0 to n - 1, such as 0/8")
    return [name for name in names if zlib.crc32(os.fsencode(name)) % int(count) == int(index)]


def label(options: Options) -> int:
    images, out = Store(options.images), Store(options.out)
    if out.lies_in(images):
        raise ConfigError(f"--out {out.url}: lies in --images, whose pictures labels would mix with; choose another")
    own = share(pictures(images), options.shard)
    require_labels_of(options.artifact, out)
    there = set(out.names((".png",)))
    todo = [name for name in own if label_name(name) not in there]
    errors, seconds = _label_all(options, todo)
    console = Console(stderr=True)
    for error in errors:
        console.print(f"error: {error}", markup=False, highlight=False, soft_wrap=True)
    if own and not todo:
        print(f"all {len(own)} images of this share were labelled already, in {options.out}")
        return 0
    done = len(todo) - len(errors)
    cost = f", {seconds / done:.4f} CPU seconds each" if done and seconds else ""
    print(
        f"{done} of {len(todo)} images labelled into {options.out}{cost}; {len(own) - len(todo)} of this share's"
        f" {len(own)} were there"
    )
    return 1 if errors else 0


def _label_all(options: Options, todo: Sequence[str]) -> tuple[list[str], float]:
    """Label pictures; what went wrong with some, in a line each, and CPU seconds here once the engine is open."""
    if not todo:
        return [], 0.0
    where = options.artifact, options.images, options.out, options.engine, options.threads
    if options.ray:
        from segmenter_engines.label_ray import label_by_ray

        return label_by_ray(where, todo, options.ray, options.ray_gpus), 0.0
    labeller = Labeller(*where)
    began = time.process_time()
    try:
        names = track(todo, "labelling", console=Console(stderr=True), transient=True)
        errors = [line for name in names if (line := attempt(labeller, name))]
        return errors, time.process_time() - began
    finally:
        labeller.close()


def attempt(labeller: Labeller, name: str) -> str:
    """Label a picture; what is wrong with it, empty where nothing is."""
    try:
        labeller.label(name)
    except (ImageError, DataError) as error:
        return str(error)
    return ""


def _facts(artifact: Path, classes: Sequence[str] | None) -> dict[str, object]:
    facts: dict[str, object] = {"artifact_sha256": sha256(weights_of(artifact))}
    return facts if classes is None else facts | {"classes": list(classes)}


def _agrees(there: str, facts: dict[str, object]) -> bool:
    try:
        known = json.loads(there)
    except ValueError:
        return False
    return isinstance(known, dict) and all(known.get(key) == value for key, value in facts.items())


def main(argv: Sequence[str] | None = None) -> int:
    return run(label, Options, argv)


if __name__ == "__main__":
    sys.exit(main())
