"""A graph's input against its manifest, as a runtime that has read the graph tells of it."""

from collections.abc import Sequence
from pathlib import Path

from segmenter.errors import EngineError
from segmenter_engines.manifest import PIXELS, Manifest


def require_promised_input(path: Path, manifest: Manifest, sides: Sequence[int | None]) -> None:
    """See that a graph takes the images its manifest says. sides: of its input, None for one it leaves open.

    Raises EngineError when a side it fixes is another in the manifest, or a range there.
    """
    spans = [manifest.batch, manifest.height, manifest.width]
    spans.insert(3 if manifest.input == PIXELS else 1, (3, 3, 3))
    if len(sides) != len(spans) or any(
        side is not None and (least, most) != (side, side) for side, (least, _, most) in zip(sides, spans, strict=True)
    ):
        takes = ", ".join("any" if side is None else str(side) for side in sides)
        says = ", ".join(str(least) if least == most else f"{least} to {most}" for least, _, most in spans)
        raise EngineError(
            f"{path}: the graph takes images [{takes}], its manifest says [{says}]; export it again, which writes both"
        )
