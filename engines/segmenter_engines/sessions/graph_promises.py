"""A graph against its manifest, as a runtime that has read the graph tells of it."""

from collections.abc import Sequence
from pathlib import Path

from segmenter.errors import EngineError
from segmenter_engines.graph import Span
from segmenter_engines.manifest import PIXELS, Manifest

Sides = Sequence[int | None]  # of an input or output, None for one that the graph leaves open


def require_native(path: Path, manifest: Manifest, runtime: str) -> None:
    """Raises EngineError for a graph with custom ops, which need a runtime that is given plugins."""
    if manifest.plugins:
        raise EngineError(
            f"{path}: holds {manifest.plugins[0]}, which {runtime} has not; export it with --lowering native"
        )


def require_promised(path: Path, manifest: Manifest, images: Sides, masks: Sides) -> None:
    """See that a graph takes the images, and gives the class masks, that its manifest says.

    Raises EngineError when a side it fixes is another in the manifest, or a range there.
    """
    taken = [manifest.batch, manifest.height, manifest.width]
    taken.insert(3 if manifest.input == PIXELS else 1, (3, 3, 3))
    _require(path, "takes images", images, taken)
    K = len(manifest.classes)
    patches = [_patches(span, manifest.patch_size) for span in (manifest.height, manifest.width)]
    _require(path, "gives masks", masks, [manifest.batch, (K, K, K), *patches])


def _patches(pixels: Span, P: int) -> Span:
    least, usual, most = pixels
    return -(-least // P), -(-usual // P), -(-most // P)


def _require(path: Path, does: str, sides: Sides, spans: Sequence[Span]) -> None:
    if len(sides) != len(spans) or any(
        side is not None and (least, most) != (side, side) for side, (least, _, most) in zip(sides, spans, strict=True)
    ):
        told = ", ".join("any" if side is None else str(side) for side in sides)
        says = ", ".join(str(least) if least == most else f"{least} to {most}" for least, _, most in spans)
        raise EngineError(
            f"{path}: the graph {does} [{told}], its manifest says [{says}]; export it again, which writes both"
        )
