"""What must hold of any engine: rows of a batch do not touch each other, and the same in gives the same out.

TensorRT has shipped batches wrong in all rows but the first, with every check on one image passed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from segmenter.errors import EngineError
from segmenter.preprocess import normalize
from segmenter_engines.manifest import PIXELS
from segmenter_engines.sessions.session import Session

BATCHES = (2, 3)  # and the largest
LARGEST_ON_CPU = 8  # graphs take any batch; on a CPU larger ones gain nothing and only cost memory


@dataclass(frozen=True)
class Invariants:
    """What was found; None where an engine cannot be asked."""

    batches: tuple[int, ...] = ()  # sizes whose rows were compared with their images alone
    row_disagreement: float | None = None  # largest share of an image's pixels labelled otherwise in a batch than alone
    repeatable: bool | None = None  # the same batch twice: bit-equal
    nan_stays: bool | None = None  # NaN in one row left the others bit-equal
    nan_refused: bool | None = None  # and a batch that holds it got no labels; None where 8 bits made it a number

    @property
    def faults(self) -> list[str]:
        """What does not hold, in words; rows have a limit of their own and are not among them."""
        told = (
            (self.repeatable, "the same batch twice gives different scores"),
            (self.nan_stays, "NaN in one row of a batch changes the others"),
            (self.nan_refused, "scores that are no numbers are labelled as if nothing were wrong"),
        )
        return [text for holds, text in told if holds is False]


def check_invariants(session: Session, images: Sequence[np.ndarray], alone: Sequence[np.ndarray]) -> Invariants:
    """Put images through an engine in batches of several sizes, twice, and with a row of NaN.

    images: uint8 RGB [H, W, 3]; alone: the labels the engine gives each by itself. Those of the first's shape count,
    and where they are fewer than the rows of a batch, the same moved sideways: of equal rows none could be told from
    another.
    """
    pairs = [(image, labels) for image, labels in zip(images, alone, strict=True) if image.shape == images[0].shape]
    sizes = _sizes(session)
    rows = _rows(session, pairs, max((1, *sizes)))
    worst = max((_row_disagreement(session, rows[:size]) for size in sizes), default=None)
    few = next((size for size in sizes if size >= 3), len(rows))
    three = np.stack([image for image, _ in rows[:few]])
    return Invariants(sizes, worst, *_repeated_and_spoilt(session, three))


def one_at_a_time(session: Session) -> Callable[[np.ndarray], np.ndarray]:
    """Image -> labels; an engine that takes no fewer than so many at once gets the image that many times."""
    least = session.spec.batch[0] if session.spec.batch is not None else 1
    return session if least == 1 else lambda image: session(np.stack([image] * least))[0]


def _sizes(session: Session) -> tuple[int, ...]:
    most = session.spec.max_batch
    if session.describe()["device"] == "cpu":
        most = min(most or LARGEST_ON_CPU, LARGEST_ON_CPU)
    wanted = {*BATCHES, most} if most else {*BATCHES}
    least = session.spec.batch[0] if session.spec.batch is not None else 1
    return tuple(sorted(size for size in wanted if size > 1 and least <= size <= (most or size)))


def _rows(
    session: Session, pairs: Sequence[tuple[np.ndarray, np.ndarray]], count: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """So many images with their labels alone, no two the same: those given, then the same moved, labelled here."""
    label, rows = one_at_a_time(session), list(pairs[:count])
    turns = -(-count // len(pairs))
    for row in range(len(rows), count):
        image = pairs[row % len(pairs)][0]
        moved = np.roll(image, max(1, image.shape[1] // turns) * (row // len(pairs)), axis=1)
        rows.append((moved, label(moved)))
    return rows


def _row_disagreement(session: Session, rows: Sequence[tuple[np.ndarray, np.ndarray]]) -> float:
    together = session(np.stack([image for image, _ in rows]))
    return max(float((row != labels).mean()) for row, (_, labels) in zip(together, rows, strict=True))


def _repeated_and_spoilt(session: Session, images: np.ndarray) -> tuple[bool | None, bool | None, bool | None]:
    pixels = session.spec.input == PIXELS
    x = images if pixels else normalize(images, session.spec.preprocess).numpy()
    try:
        first, second = session.masks(x), session.masks(x)
    except EngineError:
        # an engine that gives labels alone: they tell whether it repeats itself, and cannot tell what is no number
        return bool(np.array_equal(session(images), session(images))), None, None
    repeatable = bool(np.array_equal(first, second))
    if pixels:
        return repeatable, None, None  # no byte is NaN
    row, others = len(x) // 2, [index for index in range(len(x)) if index != len(x) // 2]
    spoilt = x.copy()
    spoilt[row] = np.nan
    try:
        scores = session.masks(spoilt)
    except EngineError:
        return repeatable, None, True
    stays = bool(np.array_equal(scores[others], first[others]))
    if session.spec.precision == "int8" and np.isfinite(scores[row]).all():
        # integers have no NaN: the first layer in 8 bits that no sum goes around turns it into some number
        return repeatable, stays, None
    try:
        session._labels(spoilt, images.shape[1:3])
    except (EngineError, ValueError):
        return repeatable, stays, True
    return repeatable, stays, False
