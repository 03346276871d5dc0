"""An engine that labels pictures of a store by name, and what says whose labels a store holds."""

import json
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from segmenter.datasets.fitted import fit
from segmenter.errors import ConfigError, DataError, ImageError
from segmenter.files import sha256
from segmenter.images import label_picture, orientation, read_image, resize_labels
from segmenter_engines.invariants import one_at_a_time
from segmenter_engines.manifest import weights_of
from segmenter_engines.sessions import Session, open_session
from segmenter_engines.store import Store

ENGINE_NAME = "engine.json"  # in the folder of labels: what made them


class Labeller:
    """An engine that labels pictures of a store by name, into another.

    Raises what `open_session` does, and ConfigError where the labels there are of another engine.
    """

    def __init__(
        self,
        artifact: Path,
        images: str,
        out: str,
        engine: str | None = None,
        threads: int | None = None,
        require_verified: bool = False,
        require_signature: Path | None = None,
    ) -> None:
        self.images, self.out = Store(images), Store(out)
        self.session: Session = open_session(
            artifact,
            engine,
            threads=threads,
            require_verified=require_verified,
            require_signature=require_signature,
        )
        self.predict = one_at_a_time(self.session)
        self.turned: list[str] = []  # the names of those labelled whose EXIF orientation was not applied
        try:
            self._say_whose(artifact)
        except BaseException:
            self.close()
            raise

    def label(self, name: str) -> None:
        """Write one picture's labels, at its own size; an engine of other sizes sees it resized.

        Raises ImageError naming a picture that cannot be read.
        """
        with self.images.reading(name) as path:
            image = read_image(path)
            if orientation(path) != 1:
                self.turned.append(name)
        labels = self.predict(fit(image, self._taken(image.shape[0], image.shape[1])))
        labels = resize_labels(labels, image.shape[0], image.shape[1])
        with self.out.writing(label_name(name)) as path:
            label_picture(labels, self.session.palette).save(path, format="PNG")

    def close(self) -> None:
        self.session.close()

    def _say_whose(self, artifact: Path) -> None:
        """See that the labels there are of this engine, and say so where nothing did."""
        name, classes = self.session.name, self.session.classes
        if not require_labels_of(artifact, self.out, name, classes):
            with self.out.writing(ENGINE_NAME) as temporary:
                facts = _facts(artifact, classes) | {"engine": name}
                temporary.write_text(json.dumps(facts, indent=1), encoding="utf-8")

    def _taken(self, H: int, W: int) -> tuple[int, int]:
        """The nearest size that the engine takes."""
        spec = self.session.spec
        height, width = (
            side if span is None else min(max(side, span[0]), span[2])
            for side, span in ((H, spec.height), (W, spec.width))
        )
        return height, width


def require_labels_of(artifact: Path, out: Store, engine: str, classes: Sequence[str] | None = None) -> bool:
    """Whether a store says what its labels are of. Raises ConfigError where that is another engine.

    engine: a session's name, such as `openvino-int8`; before there is one, the engine's alone.
    """
    there = out.read_text(ENGINE_NAME)
    if there is None:
        return False
    known = _noted(there)
    if any(known.get(key) != value for key, value in _facts(artifact, classes).items()):
        raise ConfigError(f"--out {out.url}: holds labels of another engine ({ENGINE_NAME}); choose another folder")
    maker = str(known.get("engine") or "none it names")
    if engine not in (maker, maker.rpartition("-")[0]):
        raise ConfigError(
            f"--out {out.url}: holds labels of another engine, {maker} ({ENGINE_NAME}), and this is {engine}; choose"
            " another folder or --engine"
        )
    return True


def label_name(name: str) -> str:
    """Where the labels of a picture are: `a/b.jpg` becomes `a/b.png`, and so does the key `a//b.jpg` of a store."""
    return str(PurePosixPath(name.lstrip("/")).with_suffix(".png"))


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


def _noted(there: str) -> dict[str, Any]:
    """What a file of facts says; nothing where it is damaged."""
    try:
        known = json.loads(there)
    except ValueError:
        return {}
    return known if isinstance(known, dict) else {}
