"""What mmsegmentation notes beside weights, under `meta`: classes, and its configuration as Python text.

The text is parsed for values and never run. Names are those of releases 0.x and 1.x.
"""

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from segmenter.config import HALF, Preprocess, default_palette
from segmenter.errors import CheckpointError, ConfigError
from segmenter.official import Classes

MASK_HEAD, LINEAR_HEAD = "SegmenterMaskTransformerHead", "FCNHead"
SEGMENTER = f"a VisionTransformer with a {MASK_HEAD} or a {LINEAR_HEAD} of one layer"
# what parsing other text than Python's, and taking values of other kinds than wanted, raises
_NO_TEXT = (SyntaxError, RecursionError, MemoryError)
_NO_VALUE = (LookupError, TypeError, AttributeError, ValueError, ConfigError)


@dataclass(frozen=True)
class Settings:
    """What shapes do not tell of a network; the defaults are what all of mmsegmentation's own Segmenters have.

    heads: None is 64 channels a head. image_size: None is a square grid. notes: what to tell the user.
    """

    heads: int | None = None
    decoder_heads: int | None = None
    norm_eps: float = 1e-6
    decoder_norm_eps: float = 1e-5
    drop_path: float = 0.1
    decoder_drop_path: float = 0.1
    position_resize: Literal["bilinear", "bicubic"] = "bicubic"
    image_size: tuple[int, int] | None = None
    preprocess: Preprocess = HALF
    notes: tuple[str, ...] = ()


def read_settings(path: Path, meta: Mapping[str, Any]) -> Settings:
    """Settings from the configuration in `meta`, mmsegmentation's own where there is none, with a note that says so.

    Where the text leaves a setting out, it is the default of mmsegmentation's classes.
    Raises CheckpointError naming what such a configuration has that this network cannot express.
    """
    text = meta.get("cfg", meta.get("config"))
    if not isinstance(text, str):
        return Settings(notes=(_assumed("no configuration in it"),))
    try:
        values = _assignments(text)
        model = values["model"]
        backbone, head = model["backbone"], model["decode_head"]
        in_test = model.get("data_preprocessor")  # 1.x; before, the data's pipelines
        images = {"bgr_to_rgb": False} | in_test if in_test else values["img_norm_cfg"]
        _require_expressible(path, backbone, head, images)
        size = backbone.get("img_size", 224)
        return Settings(
            heads=backbone.get("num_heads", 12),
            decoder_heads=head.get("num_heads"),
            norm_eps=float(backbone.get("norm_cfg", {}).get("eps", 1e-5)),
            decoder_norm_eps=float((head.get("norm_cfg") or {}).get("eps", 1e-5)),
            drop_path=float(backbone.get("drop_path_rate", 0.0)),
            decoder_drop_path=float(head.get("drop_path_rate", 0.1)),
            position_resize=backbone.get("interpolate_mode", "bicubic"),
            image_size=(size, size) if isinstance(size, int) else (int(size[0]), int(size[-1])),
            preprocess=_preprocess(images),
            notes=_windows(model.get("test_cfg") or {}),
        )
    except (*_NO_TEXT, *_NO_VALUE) as error:
        return Settings(notes=(_assumed(f"its configuration could not be read ({type(error).__name__}: {error})"),))


def read_classes(meta: Mapping[str, Any]) -> Classes | None:
    """The class names in `meta` and their colours, the usual ones where it has none; None without names."""
    noted = meta.get("dataset_meta")  # 1.x
    noted = noted if isinstance(noted, Mapping) else meta
    names, colours = (noted.get(key, noted.get(key.upper())) for key in ("classes", "palette"))
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        return None
    return tuple(names), _palette(colours, len(names)) or default_palette(len(names))


def _palette(colours: object, count: int) -> tuple[tuple[int, int, int], ...] | None:
    try:
        palette = tuple((int(red), int(green), int(blue)) for red, green, blue in colours)  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        return None
    fits = len(palette) == count and all(0 <= value <= 255 for colour in palette for value in colour)
    return palette if fits else None


def _assumed(why: str) -> str:
    usual = Settings()
    return (
        f"{why}: taken to be as mmsegmentation's own Segmenters are, LayerNorm eps {usual.norm_eps:g} (in the decoder"
        f" {usual.decoder_norm_eps:g}), heads of 64 channels, a square grid, positions resized {usual.position_resize},"
        " images of mean 0.5 and std 0.5"
    )


def _assignments(text: str) -> dict[str, Any]:
    """The values that a configuration gives the names read here."""
    wanted = ("model", "img_norm_cfg")
    return {
        statement.targets[0].id: _value(statement.value)
        for statement in ast.parse(text).body
        if isinstance(statement, ast.Assign)
        and isinstance(statement.targets[0], ast.Name)
        and statement.targets[0].id in wanted
    }


def _value(node: Any) -> Any:
    """The value of a literal, `dict(a=1)` among them. Raises ValueError for any other expression."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict" and not node.args:
        return {keyword.arg: _value(keyword.value) for keyword in node.keywords}
    if isinstance(node, ast.Dict):
        return {_value(key): _value(value) for key, value in zip(node.keys, node.values, strict=True)}
    if isinstance(node, ast.List | ast.Tuple):
        return [_value(item) for item in node.elts]
    return ast.literal_eval(node)


def _require_expressible(
    path: Path, backbone: Mapping[str, Any], head: Mapping[str, Any], images: Mapping[str, Any]
) -> None:
    depth = backbone.get("num_layers", 12)
    last = backbone.get("out_indices", -1)
    types = [str(part["type"]).rpartition(".")[2] for part in (backbone, head)]
    held = [
        (types[0] == "VisionTransformer", f"a backbone {types[0]}"),
        (types[1] in (MASK_HEAD, LINEAR_HEAD), f"a decode_head {types[1]}"),
        (backbone.get("with_cls_token", True), "no class token in the blocks"),
        (last in (-1, depth - 1, [depth - 1]), f"out_indices {last}"),
        (backbone.get("interpolate_mode", "bicubic") in ("bilinear", "bicubic"), "positions resized another way"),
        (_is_gelu(backbone) and (types[1] != MASK_HEAD or _is_gelu(head)), "activations other than GELU"),
        (not head.get("align_corners", False), "align_corners"),
        (head.get("out_channels") != 1, "one output and a threshold"),
        (images.get("to_rgb", images.get("bgr_to_rgb", True)), "images of blue, green and red"),
    ]
    others = [part for holds, part in held if not holds]
    if others:
        raise CheckpointError(
            f"{path}: its configuration has {', '.join(others)}, which this network cannot express; use {SEGMENTER}"
        )


def _is_gelu(part: Mapping[str, Any]) -> bool:
    return part.get("act_cfg", {"type": "GELU"}) == {"type": "GELU"}


def _preprocess(images: Mapping[str, Any]) -> Preprocess:
    """Of values of 0 to 255, which are left so where a configuration has no mean and std."""
    mean, std = images.get("mean") or [0.0] * 3, images.get("std") or [1.0] * 3
    return Preprocess(tuple(round(value / 255, 12) for value in mean), tuple(round(value / 255, 12) for value in std))


def _windows(test: Mapping[str, Any]) -> tuple[str, ...]:
    if test.get("mode") != "slide":
        return ()
    (height, width), (down, right) = test["crop_size"], test["stride"]
    how = "" if (height, down) != (width, right) else f": evaluate with --window {width} --stride {right}"
    return (f"mmsegmentation tests it in windows of {height}x{width}, {down}x{right} apart{how}",)
