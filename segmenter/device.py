"""Devices by name."""

from segmenter.errors import ConfigError


def pick_device(name: str) -> str:
    """A device that is there: `name` itself, or for 'auto' a GPU before the CPU.

    Raises ConfigError for a device that is none or is not here.
    """
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        if torch.empty(0, device=name).is_meta:
            raise NotImplementedError("it holds no numbers")
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(f"device {name!r} cannot be used here ({error}); use cpu") from error
    return name
