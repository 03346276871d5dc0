"""`segmenter label` as a Ray Data pipeline: each worker opens the engine once, and takes batches of names."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from segmenter.errors import EngineError, SegmenterError
from segmenter_engines.labeller import Labeller, attempt

Where = tuple[Path, str, str, str | None, int | None, bool, Path | None]  # what `Labeller` is made of
_NAMES = 16  # a batch


class RayLabeller:
    """For `ray.data.Dataset.map_batches`: {"name": [n]} -> the same with "error", empty where labels are made.

    "turned" says whose EXIF orientation was not applied, "refused" why this worker opens no engine, empty where it
    does: of what a constructor raises, Ray tells that a worker died.
    """

    def __init__(self, *where: object) -> None:
        self.labeller: Labeller | None = None
        self.refused = ""
        try:
            self.labeller = Labeller(*where)  # type: ignore[arg-type]
        except SegmenterError as error:
            self.refused = str(error)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        names = batch["name"]
        errors, turned = [""] * len(names), [False] * len(names)
        if self.labeller:
            self.labeller.turned.clear()
            errors = [attempt(self.labeller, str(name)) for name in names]
            turned = [name in self.labeller.turned for name in names]
        return {
            "name": names,
            "error": np.array(errors, dtype=str),
            "turned": np.array(turned, dtype=bool),
            "refused": np.array([self.refused] * len(names), dtype=str),
        }


def label_by_ray(where: Where, names: Sequence[str], workers: int, gpus: float = 0.0) -> tuple[list[str], list[str]]:
    """Label pictures of a store that all machines see by Ray's workers.

    Returns what went wrong with some, in a line each, and the names of those whose EXIF orientation was not applied.
    Raises ModuleNotFoundError without Ray, and EngineError when a worker cannot open the engine, or may not.
    """
    import ray

    artifact, images, out, engine, threads, verified, key = where
    # workers have other working folders
    images, out = (url if "://" in url else str(Path(url).resolve()) for url in (images, out))
    seen = artifact.resolve(), images, out, engine, threads, verified, key and key.resolve()
    rows = ray.data.from_items([{"name": name} for name in names])
    done = rows.map_batches(
        RayLabeller, fn_constructor_args=seen, batch_size=_NAMES, concurrency=workers, num_gpus=gpus
    )
    errors, turned = [], []
    for row in done.iter_rows():
        if row["refused"]:
            raise EngineError(row["refused"])
        if row["error"]:
            errors.append(row["error"])
        if row["turned"]:
            turned.append(row["name"])
    return errors, turned
