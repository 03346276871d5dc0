"""Checkpoints: a folder of `config.json` and `model.safetensors`, each written atomically, and how to open any kind.

Two files cannot be replaced in one step. Both name the configuration they were saved with, by its hash, so that a pair
which a kill left half replaced is found when it is opened. Editing `config.json` leaves that name alone and is allowed.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from segmenter.config import SegmenterConfig
from segmenter.device import pick_device
from segmenter.errors import CheckpointError, ConfigError
from segmenter.files import atomic_path
from segmenter.model import Segmenter

CONFIG_NAME = "config.json"
STATES = "states"  # folder of a training run's checkpoints, which its links `best` and `last` lead to
WEIGHTS_NAME = "model.safetensors"
OFFICIAL_NAME = "checkpoint.pth"
VARIANT_NAME = "variant.yml"
TRAINED_WITH = "use the configuration these weights were trained with"  # the next step where the two do not fit
_SAVED_WITH = "config_sha256"


def save_model(model: Segmenter, folder: Path | str) -> None:
    """Write `config.json` and `model.safetensors` into `folder`, replacing each only once it is whole."""
    folder = Path(folder)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    name = {_SAVED_WITH: _hash(model.config)}
    # the small file waits, written, while the large one is replaced: the disk is full before, or not at all
    with atomic_path(folder / CONFIG_NAME) as temporary:
        temporary.write_text(json.dumps(model.config.to_dict() | name, indent=1) + "\n")
        write_tensors(tensors, folder / WEIGHTS_NAME, name)


def require_new_checkpoint(out: Path, source: Path | None = None) -> None:
    """See that a network may be written to a folder: not over what it is made of, nor into a training run's own states.

    source: checkpoint the network comes from. Raises CheckpointError otherwise.
    """
    wanted = out.resolve()
    # a checkpoint may be named by any of its files
    if source is not None and wanted == (source.resolve().parent if source.is_file() else source.resolve()):
        raise CheckpointError(f"--out {out}: is the checkpoint it would be made of, and would be lost; pass another")
    if wanted.parent.name == STATES and wanted.is_dir():
        raise CheckpointError(
            f"--out {out}: is a state of a training run, and its network would be lost; pass another folder"
        )


def write_tensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write tensors as safetensors, atomically.

    Raises OSError as the file system does, a full disk included.
    """
    with atomic_path(path) as temporary:
        try:
            save_file(tensors, temporary, metadata)
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
            f"{path}: no such file; check the path (a checkpoint is a folder of {CONFIG_NAME} and {WEIGHTS_NAME})"
        ) from error
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path}: not a whole safetensors file ({error}); copy or download it again, or use an earlier checkpoint"
        ) from error


def read_config(path: Path) -> SegmenterConfig:
    """Configuration from a checkpoint's `config.json`.

    Raises CheckpointError when it is missing or not one.
    """
    return _read_config(path)[0]


def _read_config(path: Path) -> tuple[SegmenterConfig, str]:
    """A configuration, and the hash it was saved under."""
    try:
        values = json.loads(path.read_text())
        config = SegmenterConfig.from_dict(values)
        return config, values.get(_SAVED_WITH) or _hash(config)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path}: no such file; a checkpoint is a folder with {CONFIG_NAME} and {WEIGHTS_NAME},"
            f" or an official {OFFICIAL_NAME} beside its {VARIANT_NAME}"
        ) from error
    except (ConfigError, ValueError, OSError) as error:
        raise CheckpointError(f"{path}: {error}; restore it, or save the checkpoint again") from error


def _hash(config: SegmenterConfig) -> str:
    return hashlib.sha256(json.dumps(config.to_dict(), sort_keys=True).encode()).hexdigest()


def _require_pair(folder: Path, saved_with: str) -> None:
    """Raises CheckpointError when the weights in a folder say they were saved with another configuration."""
    with safe_open(folder / WEIGHTS_NAME, "pt") as file:
        wanted = (file.metadata() or {}).get(_SAVED_WITH, saved_with)
    if wanted != saved_with:
        raise CheckpointError(
            f"{folder}: {WEIGHTS_NAME} was saved with another {CONFIG_NAME} than the one beside it, as when a save was"
            f" killed between the two; save the checkpoint again, or bring back the {CONFIG_NAME} of these weights"
        )


def _require_itself(folder: Path) -> None:
    """Raises CheckpointError for a folder that is no checkpoint and holds some, as engine folders and runs do."""
    if (folder / CONFIG_NAME).exists() or (folder / WEIGHTS_NAME).exists():
        return
    held = sorted(str(path.parent) for path in folder.glob(f"*/{CONFIG_NAME}"))
    if held:
        raise CheckpointError(f"{folder}: is no checkpoint, but a folder that holds some; pass {' or '.join(held[:4])}")


def outline(
    config: SegmenterConfig, tensors: Mapping[str, Tensor], source: Path, advice: str = TRAINED_WITH
) -> dict[str, Tensor]:
    """The state that a network of a configuration would have, names and shapes alone, on PyTorch's meta device.

    A file may claim any size, and memory is not spent on it before weights have been held against it. tensors: those
    weights; of more blocks than they can be of, some are left out. source, advice: of the error.
    Raises CheckpointError for sizes that no tensor can have.
    """
    most = len(tensors) + 1  # one too many is enough not to fit
    encoder = replace(config.encoder, depth=min(config.encoder.depth, most))
    decoder = replace(config.decoder, depth=min(config.decoder.depth, most))
    try:
        with torch.device("meta"):
            return Segmenter(replace(config, encoder=encoder, decoder=decoder)).state_dict()
    except (RuntimeError, TypeError) as error:  # as PyTorch says that a size is beyond 64 bits
        raise CheckpointError(
            f"{source}: weights do not fit the configuration {config.name!r}, whose sizes no tensor can have; {advice}"
        ) from error


def load_network(
    config: SegmenterConfig,
    tensors: Mapping[str, Tensor],
    source: Path,
    advice: str = TRAINED_WITH,
    ops: ModuleType | None = None,
) -> Segmenter:
    """The network of a configuration with weights, built once every name and shape of them is seen to match.

    Raises CheckpointError as `load_weights` does.
    """
    _require_fit(config, outline(config, tensors, source, advice), tensors, source, advice)
    model = Segmenter(config, ops)
    _fill(model, tensors, source)
    return model


def _require_fit(
    config: SegmenterConfig, state: Mapping[str, Tensor], tensors: Mapping[str, Tensor], source: Path, advice: str
) -> None:
    """Raises CheckpointError naming the first differences between a network's state and weights."""
    wanted = {name: tuple(tensor.shape) for name, tensor in state.items()}
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
            f"{source}: weights do not fit the configuration {config.name!r}: {shown}{more}; {advice}"
        )


def load_weights(model: Segmenter, tensors: Mapping[str, Tensor], source: Path, advice: str = TRAINED_WITH) -> None:
    """Put `tensors` into the model, every name and shape matching, every value a number.

    advice: the next step where they do not match.
    Raises CheckpointError naming the first differences, the usual sign of a checkpoint of another variant, or the first
    tensor that holds a NaN or an infinity.
    """
    _require_fit(model.config, model.state_dict(), tensors, source, advice)
    _fill(model, tensors, source)


def _fill(model: Segmenter, tensors: Mapping[str, Tensor], source: Path) -> None:
    """Put `tensors` that fit into the model. Raises CheckpointError for the first that holds a NaN or an infinity."""
    broken = next((name for name in model.state_dict() if not bool(torch.isfinite(tensors[name]).all())), None)
    if broken is not None:
        raise CheckpointError(
            f"{source}: {broken} holds values that are no numbers (NaN or infinite), as a training that came apart"
            " leaves them; use an earlier checkpoint"
        )
    model.load_state_dict({name: tensor.to(torch.float32) for name, tensor in tensors.items()})


def load_model(path: Path | str, device: str = "cpu", ops: ModuleType | None = None) -> Segmenter:
    """Open a checkpoint as a network in eval mode.

    path: our checkpoint folder; or an official `checkpoint.pth` beside its `variant.yml`, or the folder of both.
    device: one of PyTorch's names, or 'auto'. ops: module of fused ops, `segmenter.ops` when None.
    Raises CheckpointError for anything missing, truncated, unsafe, or of another variant; ConfigError for a device that
    is not here.
    """
    path = Path(path)
    if path.suffix == ".pth" or (path / OFFICIAL_NAME).is_file():
        from segmenter.official import load_official

        model = load_official(path if path.suffix == ".pth" else path / OFFICIAL_NAME, ops)
    else:
        folder = path.parent if path.name in (WEIGHTS_NAME, CONFIG_NAME) else path
        if not folder.is_dir():
            raise CheckpointError(
                f"{path}: no such checkpoint; wanted a folder with {CONFIG_NAME} and {WEIGHTS_NAME},"
                f" or an official {OFFICIAL_NAME} beside its {VARIANT_NAME}"
            )
        _require_itself(folder)
        config, saved_with = _read_config(folder / CONFIG_NAME)
        tensors = read_tensors(folder / WEIGHTS_NAME)
        _require_pair(folder, saved_with)
        model = load_network(config, tensors, folder / WEIGHTS_NAME, ops=ops)
    return model.to(pick_device(device)).eval()
