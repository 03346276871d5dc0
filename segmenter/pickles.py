"""PyTorch's pickles, read without running anything in them."""

import pickle
import re
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from segmenter.errors import CheckpointError

PICKLES = (".pth", ".pt", ".bin")
# what trainings note beside weights: NumPy's numbers and arrays, by its names before and after 2.0, and the curves that
# mmengine keeps of losses, with the methods that old releases of it stored in each
_NOTED = (
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
    "numpy.ndarray",
    "numpy.dtype",
    "mmengine.logging.history_buffer.HistoryBuffer",
    "builtins.getattr",
)


class _Nothing:
    """Stands for whatever `_NOTED` would have made, and keeps nothing of it: only its name is looked at."""

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        pass


def load_plain(path: Path) -> Any:
    """What a PyTorch pickle holds of tensors and plain values, without running anything in it.

    Raises CheckpointError where it is missing, truncated, or holds other objects than tensors and what trainings note.
    """
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals([(_Nothing, name) for name in _NOTED]):
            # torch talks of reporting the file to its makers; what follows below is for the user of this one
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file; check the path") from error
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        more = f" ({found[1]})" if found else ""
        raise CheckpointError(
            f"{path}: holds more than tensors{more}, or is no checkpoint, and was not loaded (it could run code);"
            " where you trust it, load it with what wrote it and save its tensors and plain values alone"
        ) from error
    except Exception as error:  # a damaged pickle can fail anywhere inside the unpickler
        raise CheckpointError(
            f"{path}: truncated or not a PyTorch checkpoint ({type(error).__name__}: {error}); copy it again"
        ) from error


def read_pickle(path: Path) -> dict[str, Tensor]:
    """The tensors of a PyTorch checkpoint, those under `model` where there is one.

    Raises CheckpointError as `load_plain` does, and where there are none.
    """
    data = load_plain(path)
    tensors = data.get("model", data) if isinstance(data, dict) else None
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise CheckpointError(
            f"{path}: wanted a dictionary of tensors under 'model'; this is another kind of file"
            " (`segmenter pretrained` imports mmsegmentation's)"
        )
    return tensors
