"""Label a folder of pictures with an engine: on one machine, or a share of them on each of many.

`segmenter label model.int8.onnx --images photos --out labels --shard 0/8`, `--shard 1/8`, ... under any scheduler:
which pictures are whose follows from their names alone, labels appear whole or not at all, and what is there is not
made again.
"""

import os
import sys
import time
import warnings
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.progress import track

from segmenter.cli import run
from segmenter.errors import ConfigError, DataError
from segmenter.images import IMAGE_SUFFIXES, turned_warning
from segmenter.option import one_of, require_least
from segmenter_engines.labeller import Labeller, attempt, label_name, require_labels_of
from segmenter_engines.sessions import ENGINES, engine_for
from segmenter_engines.store import Store


@dataclass(frozen=True)
class Options:
    """Label every picture of a folder with an engine; run again, it goes on with those that have no labels yet.

    Exits with 1 when a picture could not be labelled; the others are.
    """

    artifact: Annotated[Path, tyro.conf.Positional]
    """A .onnx or .plan, or a checkpoint."""
    images: str
    """Folder of JPEG and PNG files, in it and below it; or a URL that fsspec opens, such as s3://bucket/photos."""
    out: str
    """Folder or URL for the labels, a PNG of class indices a picture, under its name; those of one engine alone."""
    shard: str = "0/1"
    """This machine's share: 0/8, 1/8, ... 7/8 are the shares of eight, alike in size where pictures are many."""
    engine: Annotated[str | None, one_of(ENGINES)] = None
    """Runtime to open it with; the first that fits when left out."""
    threads: int | None = None
    """CPU threads; every core this process may use when left out."""
    require_verified: bool = False
    """Refuse an engine that has not passed `segmenter verify`, instead of warning; a checkpoint needs no verdict."""
    require_signature: Path | None = None
    """Public Ed25519 key (PEM): only an engine that is signed with its private half is opened."""
    ray: int = 0
    """Label by so many workers of Ray Data, on the cluster `ray` finds; 0 labels here, without it."""
    ray_gpus: float = 0.0
    """GPUs of each of Ray's workers."""

    def __post_init__(self) -> None:
        require_least(self, ray=0, ray_gpus=0)


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
    every = pictures(images)
    own = share(every, options.shard)
    require_labels_of(options.artifact, out, engine_for(options.artifact, options.engine))
    if not own:
        print(f"none of the {len(every)} images falls to share {options.shard}, by the hashes of their names")
        return 0
    there = set(out.names((".png",)))
    todo = [name for name in own if label_name(name) not in there]
    errors, turned, seconds = _label_all(options, todo)
    console = Console(stderr=True)
    if turned:
        console.print(f"warning: {turned_warning(turned)}", markup=False, highlight=False, soft_wrap=True)
    for error in errors:
        console.print(f"error: {error}", markup=False, highlight=False, soft_wrap=True)
    if not todo:
        print(f"all {len(own)} images of this share were labelled already, in {options.out}")
        return 0
    done = len(todo) - len(errors)
    cost = f", {seconds / done:.4f} CPU seconds each" if done and seconds else ""
    print(
        f"{done} of {len(todo)} images labelled into {options.out}{cost}; {len(own) - len(todo)} of this share's"
        f" {len(own)} were there"
    )
    return 1 if errors else 0


def _label_all(options: Options, todo: Sequence[str]) -> tuple[list[str], list[str], float]:
    """Label pictures.

    Returns what went wrong with some, in a line each, the names of those whose EXIF orientation was not applied, and
    CPU seconds here once the engine is open.
    """
    if not todo:
        return [], [], 0.0
    where = (
        options.artifact,
        options.images,
        options.out,
        options.engine,
        options.threads,
        options.require_verified,
        options.require_signature,
    )
    if options.ray:
        from segmenter_engines.label_ray import label_by_ray

        return *label_by_ray(where, todo, options.ray, options.ray_gpus), 0.0
    console = Console(stderr=True)
    with warnings.catch_warnings(record=True) as told:
        labeller = Labeller(*where)
    for warning in told:
        console.print(f"warning: {warning.message}", markup=False, highlight=False, soft_wrap=True)
    began = time.process_time()
    try:
        names = track(todo, "labelling", console=console, transient=True)
        errors = [line for name in names if (line := attempt(labeller, name))]
        return errors, labeller.turned, time.process_time() - began
    finally:
        labeller.close()


def main(argv: Sequence[str] | None = None) -> int:
    return run(label, Options, argv)


if __name__ == "__main__":
    sys.exit(main())
