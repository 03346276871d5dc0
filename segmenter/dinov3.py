"""DINOv3's ViTs under this project's names, from the names that Meta, timm or Hugging Face's transformers give them.

Meta masks the biases of keys, timm stores those of queries and values alone or none, and Hugging Face's three
projections are apart. What a file does not hold because its source's code knows it, biases of zero and the periods of
rotary positions, is filled in.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from segmenter.config import HEAD_WIDTH
from segmenter.errors import CheckpointError
from segmenter.fidelity import BY_DEFINITION, MASKED, REARRANGED, Origin
from segmenter.rotary import Rotary

PERIODS = "rotary.periods"
# from any of the three namings to ours, in this order
_RENAMED = tuple(
    (re.compile(pattern), ours)
    for pattern, ours in (
        (r"^(storage_tokens|reg_token|embeddings\.register_tokens)$", "register_tokens"),
        (r"^rope_embed\.periods$", PERIODS),
        (r"^embeddings\.cls_token$", "cls_token"),
        (r"^embeddings\.patch_embeddings\.", "patch_embed.proj."),
        (r"^layer\.", "blocks."),
        (r"\.(gamma_|layer_scale)([12])(\.lambda1)?$", r".ls\2.gamma"),
        (r"\.attention\.o_proj\.", ".attn.proj."),
        (r"\.(attention\.([qkv])_proj\.|attn\.([qkv])_(?=bias$))", r".attn.\2\3."),
        (r"\.mlp\.up_proj\.", ".mlp.fc1."),
        (r"\.mlp\.down_proj\.", ".mlp.fc2."),
    )
)
_PART = re.compile(r"blocks\.\d+\.attn\.([qkv]\.(weight|bias)|qkv\.bias_mask)")


def is_dinov3(keys: Mapping[str, Tensor]) -> bool:
    """Whether these are a ViT of DINOv3's: without learnt positions, and with periods or what its ViTs have besides."""
    names = {_renamed(key.removeprefix("backbone.")) for key in keys}
    besides = {"cls_token", "register_tokens", "blocks.0.ls1.gamma"}
    return "pos_embed" not in names and (PERIODS in names or besides <= names)


def read_dinov3(
    path: Path, found: Mapping[str, Tensor], wanted: re.Pattern[str]
) -> tuple[dict[str, Tensor], dict[str, Origin], dict[str, Tensor]]:
    """The tensors of a file under the encoder's names, where each came from, and what is left under its own.

    wanted: names of the encoder's parameters. What a file lacks is lacking in the result.
    Raises CheckpointError where parts of a projection are missing or do not fit together.
    """
    tensors: dict[str, Tensor] = {}
    origins: dict[str, Origin] = {}
    rest: dict[str, Tensor] = {}
    parts: dict[str, str] = {}  # key in the file of what is only a part of one of our tensors
    for key, value in found.items():
        bare = key.removeprefix("backbone.")
        name = _renamed(bare)
        if _PART.fullmatch(name):
            parts[name] = key
        # Hugging Face has tokens where there are none, too
        elif wanted.fullmatch(name) and value.numel():
            tensors[name], origins[name] = value.float(), Origin(key, tuple(value.shape))
        else:
            rest[bare] = value
    try:
        _join_projections(found, parts, tensors, origins)
    except RuntimeError as error:
        raise CheckpointError(
            f"{path}: projections of queries, keys and values do not fit together ({error}); download it again"
        ) from error
    if parts:
        some = ", ".join(sorted(parts.values())[:3])
        raise CheckpointError(
            f"{path}: {some}: parts of a projection whose other parts are missing from the file; use whole weights of"
            " such a network"
        )
    if PERIODS not in tensors:
        tensors[PERIODS], origins[PERIODS] = Rotary(HEAD_WIDTH, 0).periods, Origin("", (), BY_DEFINITION)
    return tensors, origins, rest


def _renamed(key: str) -> str:
    name = key
    for pattern, ours in _RENAMED:
        name = pattern.sub(ours, name)
    return name


def _join_projections(
    found: Mapping[str, Tensor], parts: dict[str, str], tensors: dict[str, Tensor], origins: dict[str, Origin]
) -> None:
    """Make each block's packed projection of its parts, which are taken out of `parts`."""

    def take(name: str, missing: str = "") -> None:
        """Put together queries, keys and values; zeros for those in `missing`, which no block of the file has."""
        letters = [letter for letter in "qkv" if letter not in missing]
        names = {letter: name.replace(".qkv.", f".{letter}.") for letter in letters}
        if not letters or not all(each in parts for each in names.values()):
            return
        keys = {letter: parts.pop(each) for letter, each in names.items()}
        values = {letter: found[key].float() for letter, key in keys.items()}
        like = values[letters[0]]
        tensors[name] = torch.cat([values.get(letter, torch.zeros_like(like)) for letter in "qkv"])
        origins[name] = Origin(", ".join(keys.values()), tuple(like.shape), REARRANGED)

    biases = {name.split(".")[3] for name in parts if name.endswith(".bias")}
    packed = any(name.endswith(".attn.qkv.bias") for name in tensors)
    for block in sorted({name.split(".attn.")[0] for name in (*tensors, *parts) if ".attn." in name}):
        weight, bias, mask = (f"{block}.attn.qkv.{kind}" for kind in ("weight", "bias", "bias_mask"))
        take(weight)
        take(bias, "".join(set("qkv") - biases))
        if mask in parts and bias in tensors:
            keys = f"{origins[bias].key}, {parts[mask]}"
            tensors[bias] = tensors[bias] * found[parts.pop(mask)].float()
            origins[bias] = Origin(keys, origins[bias].shape, MASKED)
        if not biases and not packed and weight in tensors:
            tensors[bias] = tensors[weight].new_zeros(tensors[weight].shape[:1])
            origins[bias] = Origin("", (), BY_DEFINITION)
