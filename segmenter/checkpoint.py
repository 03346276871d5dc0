"""Checkpoints: a folder of `config.json` and `model.safetensors`, each written atomically, and how to open any kind."""

import json
from pathlib import Path
from types import ModuleType

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from segmenter.config import SegmenterConfig
from segmenter.errors import CheckpointError, ConfigError
from segmenter.files import atomic_path
from segmenter.model import Segmenter

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
OFFICIAL_NAME = "checkpoint.pth"
VARIANT_NAME = "variant.yml"


def save_model(model: Segmenter, folder: Path | str) -> None:
    """Write `config.json` and `model.safetensors` into `folder`, replacing each only once it is whole."""
    folder = Path(folder)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    write_tensors(tensors, folder / WEIGHTS_NAME)
    with atomic_path(folder / CONFIG_NAME) as temporary:
        temporary.write_text(json.dumps(model.config.to_dict(), indent=1) + "\n")


def write_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Write tensors as safetensors, atomically.

    Raises OSError as the file system does, a full disk included.
    """
    with atomic_path(path) as temporary:
        try:
            save_file(tensors, temporary)
        except SafetensorError as error:
            # safetensors wraps the file system's errors; give them back their own type
            raise OSError(f"{path}: {error}") from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file, on the CPU.

    Raises CheckpointError when the file is missing, truncated or no safetensors.
    """
    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path}: no such file; point at a folder holding {CONFIG_NAME} and {WEIGHTS_NAME}"
        ) from error
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path}: not a whole safetensors file ({error}); copy or download it again, or use an earlier checkpoint"
        ) from error


def read_config(path: Path) -> SegmenterConfig:
    """Configuration from a checkpoint's `config.json`.

    Raises CheckpointError when it is missing or not one.
    """
    try:
        return SegmenterConfig.from_dict(json.loads(path.read_text()))
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path}: no such file; a checkpoint is a folder with {CONFIG_NAME} and {WEIGHTS_NAME},"
            f" or an official {OFFICIAL_NAME} beside its {VARIANT_NAME}"
        ) from error
    except (ConfigError, ValueError, OSError) as error:
        raise CheckpointError(f"{path}: {error}; restore it, or save the checkpoint again") from error


def load_weights(model: Segmenter, tensors: dict[str, Tensor], source: Path) -> None:
    """Put `tensors` into the model, every name and shape matching.

    Raises CheckpointError naming the first differences: the usual sign of a checkpoint of another variant.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    differences = [f"{name} is missing" for name in wanted.keys() - found.keys()]
    differences += [f"{name} is not part of it" for name in found.keys() - wanted.keys()]
    differences += [
        f"{name} is {found[name]}, wanted {wanted[name]}"
        for name in wanted.keys() & found.keys()
        if wanted[name] != found[name]
    ]
    if differences:
        shown = "; ".join(sorted(differences)[:4])
        more = f"; and {len(differences) - 4} more" if len(differences) > 4 else ""
        raise CheckpointError(
            f"{source}: weights do not fit the configuration {model.config.name!r}: {shown}{more};"
            " use the configuration these weights were trained with"
        )
    model.load_state_dict({name: tensor.to(torch.float32) for name, tensor in tensors.items()})


def load_model(path: Path | str, device: str = "cpu", ops: ModuleType | None = None) -> Segmenter:
    """Open a checkpoint as a network in eval mode.

    path: our checkpoint folder; or an official `checkpoint.pth` beside its `variant.yml`, or the folder of both.
    ops: module of fused ops, `segmenter.ops` when None.
    Raises CheckpointError for anything missing, truncated, unsafe, or of another variant.
    """
    path = Path(path)
    if path.suffix == ".pth" or (path / OFFICIAL_NAME).is_file():
        from segmenter.pretrained import load_official

        model = load_official(path if path.suffix == ".pth" else path / OFFICIAL_NAME, ops)
    else:
        folder = path.parent if path.name in (WEIGHTS_NAME, CONFIG_NAME) else path
        if not folder.is_dir():
            raise CheckpointError(
                f"{path}: no such checkpoint; wanted a folder with {CONFIG_NAME} and {WEIGHTS_NAME},"
                f" or an official {OFFICIAL_NAME} beside its {VARIANT_NAME}"
            )
        model = Segmenter(read_config(folder / CONFIG_NAME), ops)
        load_weights(model, read_tensors(folder / WEIGHTS_NAME), folder / WEIGHTS_NAME)
    return model.to(device).eval()
