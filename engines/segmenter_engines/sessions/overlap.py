"""Images through lanes that overlap: labels in the order of the images, and errors where they belong."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import cycle
from typing import TypeVar

import numpy as np

from segmenter.errors import EngineError

AnyLane = TypeVar("AnyLane")


def overlapped(
    images: Iterable[np.ndarray],
    lanes: Sequence[AnyLane],
    submit: Callable[[AnyLane, np.ndarray], None],
    collect: Callable[[AnyLane, np.ndarray], np.ndarray],
) -> Iterator[np.ndarray]:
    """Labels of images or batches, each submitted to a lane in turn and collected when its lane is wanted again.

    An error of `images`, or EngineError of `submit`, comes after the labels of what came before it and ends the stream;
    one of `collect` comes at once.
    """
    waiting: deque[tuple[AnyLane, np.ndarray]] = deque()
    source, failure = iter(images), None
    try:
        for lane in cycle(lanes):
            try:
                image = next(source)
            except StopIteration:
                break
            except Exception as error:  # whatever the caller's code raises
                failure = error
                break
            if len(waiting) == len(lanes):
                yield collect(*waiting.popleft())
            try:
                submit(lane, image)
            except EngineError as error:
                failure = error
                break
            waiting.append((lane, image))
        while waiting:
            yield collect(*waiting.popleft())
        if failure is not None:
            raise failure
    finally:
        failure = None  # or the error and this frame hold each other, and with them the engine
