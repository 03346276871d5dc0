"""Errors a user can cause, each naming the thing, what was wanted, what came, and the next step."""

FAILED = 2  # exit status of a command that ended in one of them


class SegmenterError(Exception):
    """Base of every error this project raises on purpose; commands print it and exit with `FAILED`."""


class ConfigError(SegmenterError):
    """A variant name, option or configuration value that cannot be used."""


class CheckpointError(SegmenterError):
    """A checkpoint that is missing, truncated, unsafe, or of another variant."""


class ImageError(SegmenterError):
    """An image or label file that cannot be read as what it should be."""


class DataError(SegmenterError):
    """A dataset folder that does not hold what its layout promises."""


class EngineError(SegmenterError):
    """An engine that cannot be built, opened or run."""


class Unavailable(EngineError):  # noqa: N818 - what a machine lacks, and nobody's error
    """An engine this machine lacks the package, the driver or the device for: nothing is wrong with the engine."""


class VerificationError(SegmenterError):
    """An engine whose labels left the limit set for its precision."""
