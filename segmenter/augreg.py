"""Google's ViT weights (`.npz` of its vision_transformer repository, AugReg included) under this project's names."""

import re
import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from segmenter.errors import CheckpointError
from segmenter.fidelity import AS_IT_IS, REARRANGED, Origin

_PREFIX = "opt/target/"  # of files that hold a whole training state
_BLOCK = re.compile(r"Transformer/encoderblock_(\d+)/")
_ATTENTION = "MultiHeadDotProductAttention_1"
# our name in a block, Flax's there; kernels are stored [in, out], vectors as they are
_DENSE = {
    "norm1.weight": "LayerNorm_0/scale",
    "norm1.bias": "LayerNorm_0/bias",
    "norm2.weight": "LayerNorm_2/scale",
    "norm2.bias": "LayerNorm_2/bias",
    "mlp.fc1.weight": "MlpBlock_3/Dense_0/kernel",
    "mlp.fc1.bias": "MlpBlock_3/Dense_0/bias",
    "mlp.fc2.weight": "MlpBlock_3/Dense_1/kernel",
    "mlp.fc2.bias": "MlpBlock_3/Dense_1/bias",
}
_OUTSIDE = {
    "cls_token": "cls",
    "pos_embed": "Transformer/posembed_input/pos_embedding",
    "patch_embed.proj.weight": "embedding/kernel",
    "patch_embed.proj.bias": "embedding/bias",
    "norm.weight": "Transformer/encoder_norm/scale",
    "norm.bias": "Transformer/encoder_norm/bias",
}


def read_augreg(path: Path) -> tuple[dict[str, Tensor], dict[str, Origin], dict[str, Tensor], int]:
    """An `.npz` as tensors under the encoder's names, where each came from, what is left under its own, and the heads.

    The patch kernel is stored [P, P, 3, C], queries, keys and values a head apart ([C, A, D], biases [A, D]), and the
    projection after them [A, D, C]. What a file lacks is lacking in the result.
    Raises CheckpointError where it is no such file.
    """
    arrays = _read_npz(path)
    tensors: dict[str, Tensor] = {}
    origins: dict[str, Origin] = {}

    def take(name: str, *keys: str) -> None:
        if not all(key in arrays for key in keys):
            return
        found = [arrays.pop(key) for key in keys]
        try:
            values = [_rearranged(key, value) for key, value in zip(keys, found, strict=True)]
            whole = np.concatenate(values) if len(values) > 1 else values[0]
        except (ValueError, IndexError) as error:
            shapes = ", ".join(f"{key} {value.shape}" for key, value in zip(keys, found, strict=True))
            raise CheckpointError(f"{path}: {shapes}: not shaped as in Google's ViTs ({error})") from error
        how = AS_IT_IS if len(keys) == 1 and whole.shape == found[0].shape else REARRANGED
        origins[name] = Origin(", ".join(keys), found[0].shape, how)
        tensors[name] = torch.from_numpy(np.ascontiguousarray(whole, np.float32))

    query = next((value for key, value in arrays.items() if key.endswith("query/kernel") and value.ndim == 3), None)
    heads = 0 if query is None else query.shape[1]
    for name, key in _OUTSIDE.items():
        take(name, key)
    depth = 1 + max((int(match[1]) for match in map(_BLOCK.match, arrays) if match), default=-1)
    for index in range(depth):
        block, ours = f"Transformer/encoderblock_{index}/", f"blocks.{index}."
        for name, key in _DENSE.items():
            take(ours + name, block + key)
        for name, kind in (("weight", "kernel"), ("bias", "bias")):
            take(
                f"{ours}attn.qkv.{name}", *(f"{block}{_ATTENTION}/{part}/{kind}" for part in ("query", "key", "value"))
            )
            take(f"{ours}attn.proj.{name}", f"{block}{_ATTENTION}/out/{kind}")
    return tensors, origins, {key: torch.from_numpy(value) for key, value in arrays.items()}, heads


def _rearranged(key: str, value: np.ndarray) -> np.ndarray:
    """A stored array in PyTorch's layout: [out, in] kernels, [C, 3, P, P] patches."""
    part = key.rsplit("/", 2)
    if part[-1] == "kernel":
        if value.ndim == 4:
            return value.transpose(3, 2, 0, 1)
        if part[-2] == "out":
            return value.reshape(-1, value.shape[-1]).T
        return value.reshape(value.shape[0], -1).T
    if part[-1] == "bias":
        return value.reshape(-1)
    return value


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key.removeprefix(_PREFIX): file[key] for key in file.files}
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file; check the path") from error
    except (zipfile.BadZipFile, zlib.error, ValueError, OSError, EOFError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path}: not a whole .npz of plain arrays ({' '.join(str(error).split())}); download it again"
        ) from error
    strange = next((key for key, value in arrays.items() if value.dtype.kind not in "fiu"), None)
    if strange is not None:
        raise CheckpointError(f"{path}: {strange} holds no numbers; use Google's ViT weights")
    return arrays
