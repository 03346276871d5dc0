"""`segmenter label` as a Ray Data pipeline: each worker opens the engine once, and takes batches of names."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from segmenter_engines.labeller import Labeller, attempt

Where = tuple[Path, str, str, str | None, int | None]  # what `Labeller` is made of
_NAMES = 16  # a batch


class RayLabeller:
    """For `ray.data.Dataset.map_batches`: {"name": [n]} -> the same with "error", empty where labels are made."""

    def __init__(self, *where: object) -> None:
        self.labeller = Labeller(*where)  # type: ignore[arg-type]

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        errors = [attempt(self.labeller, str(name)) for name in batch["name"]]
        return {"name": batch["name"], "error": np.array(errors, dtype=str)}


def label_by_ray(where: Where, names: Sequence[str], workers: int, gpus: float = 0.0) -> list[str]:
    """Label pictures of a store that all machines see by Ray's workers; what went wrong with some, in a line each.

    Raises ModuleNotFoundError without Ray.
    """
    import ray

    artifact, images, out, *rest = where
    # workers have other working folders
    seen = artifact.resolve(), *(url if "://" in url else str(Path(url).resolve()) for url in (images, out)), *rest
    rows = ray.data.from_items([{"name": name} for name in names])
    done = rows.map_batches(
        RayLabeller, fn_constructor_args=seen, batch_size=_NAMES, concurrency=workers, num_gpus=gpus
    )
    return [row["error"] for row in done.iter_rows() if row["error"]]
