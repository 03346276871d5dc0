"""What a session needs to know of its artifact: sizes, batches, classes, and what the network is given."""

from dataclasses import dataclass

from segmenter.config import Preprocess, SegmenterConfig
from segmenter_engines.graph import Span, is_range
from segmenter_engines.manifest import NORMALIZED, Manifest, require_rgb


@dataclass(frozen=True)
class Spec:
    """What a session needs to know of its artifact."""

    model: str
    precision: str
    patch_size: int
    height: Span | None  # pixels of the images it takes; None for any
    width: Span | None
    batch: Span | None  # None for any
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    preprocess: Preprocess
    input: str = NORMALIZED  # what the network itself is given, see `Manifest.input`

    @property
    def size(self) -> tuple[int, int] | None:
        """(H, W) when it takes that size alone, else None."""
        if self.height is None or self.width is None or is_range(self.height) or is_range(self.width):
            return None
        return self.usual_size

    @property
    def usual_size(self) -> tuple[int, int] | None:
        """(H, W) it takes alone or is tuned for; None for any."""
        return None if self.height is None or self.width is None else (self.height[1], self.width[1])

    @property
    def ends(self) -> tuple[tuple[int, int], ...]:
        """Smallest and largest (H, W) it takes; none where it takes one size or any."""
        if self.height is None or self.width is None or self.size is not None:
            return ()
        return (self.height[0], self.width[0]), (self.height[2], self.width[2])

    @property
    def max_batch(self) -> int | None:
        """None for any."""
        return self.batch[2] if self.batch is not None else None

    @classmethod
    def of_config(cls, config: SegmenterConfig) -> "Spec":
        require_rgb(config)
        patch, preprocess = config.encoder.patch_size, config.preprocess
        return cls(config.name, "fp32", patch, None, None, None, config.classes, config.palette, preprocess)

    @classmethod
    def of_manifest(cls, manifest: Manifest) -> "Spec":
        return cls(
            manifest.model,
            manifest.precision,
            manifest.patch_size,
            manifest.height,
            manifest.width,
            manifest.batch,
            manifest.classes,
            manifest.palette,
            manifest.preprocess,
            manifest.input,
        )
