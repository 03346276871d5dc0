"""Which shapes a plan takes: smallest, usual and largest batch, height and width."""

from collections.abc import Sequence
from dataclasses import dataclass

from segmenter.errors import EngineError
from segmenter_engines.manifest import PIXELS, Manifest

Range = tuple[int, int, int]
LARGEST_BATCH = 8  # unless asked for more: a plan's memory grows with its largest batch


@dataclass(frozen=True)
class Profile:
    """Ranges of a plan's input, each (min, opt, max); `pixels` for uint8 [B, H, W, 3], else float32 [B, 3, H, W]."""

    batch: Range
    height: Range
    width: Range
    pixels: bool

    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """The smallest, usual and largest shape of the input."""
        return tuple(
            (B, H, W, 3) if self.pixels else (B, 3, H, W)
            for B, H, W in zip(self.batch, self.height, self.width, strict=True)
        )

    def fixed(self) -> tuple[int, ...]:
        """The input's shape with -1 for what varies."""
        low, _, high = self.shapes()
        return tuple(small if small == large else -1 for small, large in zip(low, high, strict=True))


def profile_of(base: Manifest, batch: Range | None, height: Range | None, width: Range | None) -> Profile:
    """What a graph takes, narrowed to what was asked for.

    Raises EngineError for a range that is not ordered, or that the graph does not take.
    """
    largest = min(base.batch[2], LARGEST_BATCH)
    usual = min(base.batch[1], largest)
    return Profile(
        batch=_narrowed("batch", batch or (min(base.batch[0], usual), usual, largest), base.batch),
        height=_narrowed("height", height or base.height, base.height),
        width=_narrowed("width", width or base.width, base.width),
        pixels=base.input == PIXELS,
    )


def _narrowed(name: str, wanted: Sequence[int], taken: Range) -> Range:
    low, usual, high = wanted
    if not taken[0] <= low <= usual <= high <= taken[2]:
        told = f"from {taken[0]} to {taken[2]}" if taken[0] < taken[2] else f"all three {taken[0]}"
        again = "" if name == "batch" else "; export the graph again for other sizes"
        raise EngineError(f"{name} {tuple(wanted)}: wanted min <= opt <= max, {told}, as the graph takes it{again}")
    return low, usual, high
