"""Where a token looks: its attention in every layer and head, drawn over the image.

`python -m segmenter.attention --checkpoint FOLDER --images FILE_OR_FOLDER --out FOLDER --at 240 180`
"""

import difflib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

from rich.console import Console
from rich.progress import track

from segmenter.attention_sheet import attention_sheet
from segmenter.cli import run
from segmenter.config import SegmenterConfig
from segmenter.device import pick_device
from segmenter.errors import ConfigError, ImageError
from segmenter.image_paths import find_images, require_kept
from segmenter.images import read_image, write_image
from segmenter.option import ANY_CHECKPOINT, require

if TYPE_CHECKING:
    from torch import Tensor

    from segmenter.model import Segmenter
    from segmenter.vit import Block

Part = Literal["encoder", "decoder"]
Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels


@dataclass(frozen=True)
class Options:
    """Draw where a token of a network looks: a row a layer, the mean of its heads and each head beside each other."""

    checkpoint: Annotated[Path, ANY_CHECKPOINT]
    images: Path
    """A JPEG or PNG file, or a folder of them."""
    out: Path
    """Folder for NAME.png, one for each image."""
    part: Part = "encoder"
    """Whose layers: the encoder's, or the mask transformer's."""
    at: tuple[int, int] | None = None
    """Attention of the patch with this pixel, X to the right and Y down from 0 0."""
    token: str | None = None
    """Attention of a token by its name; 'class' in the encoder when neither is given.
    In the encoder 'class' or 'distillation', in the decoder a class by its name."""
    layers: tuple[int, ...] = ()
    """Layers to draw, counted from 0; all of them when none is given."""
    width: int = 240
    """Pixels across each picture; 0 for the image's own width."""
    device: str = "auto"
    """'cpu', 'cuda', 'cuda:1', ...; 'auto' takes a GPU where there is one."""

    def __post_init__(self) -> None:
        if self.at is not None and self.token is not None:
            raise ConfigError("--at and --token both name a token; pass one of them")
        require(self.width >= 0, "--width", self.width, "pixels, or 0 for the image's own width")


def attention_maps(model: "Segmenter", image: "Tensor", part: Part, token: int) -> "Tensor":
    """Attention that one token pays to every patch, in each layer and head: [1, 3, H, W] -> [layers, A, h, w].

    image: normalised; token: its place in the sequence, which in the encoder is the extra tokens and then the patches,
    in the decoder the patches and then the classes. What it pays to tokens that are no patches is left out, so a map
    adds up to 1 at most.
    Raises ConfigError for the decoder where it is linear.
    """
    import torch

    from segmenter.decoder import MaskDecoder
    from segmenter.model import pad_to_patches

    P, (H, W) = model.config.encoder.patch_size, image.shape[-2:]
    h, w = -(-H // P), -(-W // P)
    rotation = None
    with torch.inference_mode():
        if part == "encoder":
            first, blocks = model.config.encoder.extra_tokens, model.encoder.blocks
            x = model.encoder.embed(pad_to_patches(image, P))
            rotation = model.encoder.rotation((h, w), x.dtype)
        else:
            if not isinstance(model.decoder, MaskDecoder):
                raise ConfigError("the decoder is linear and has no attention; look at --part encoder")
            first, blocks = 0, model.decoder.blocks
            x = model.decoder.embed(model.patch_tokens(image))
        rows = []
        for block in cast("list[Block]", list(blocks)):
            rows.append(block.attn.probabilities(block.norm1(x), slice(token, token + 1), rotation)[0, :, 0])
            x = block(x, rotation)
        return torch.stack(rows)[:, :, first : first + h * w].unflatten(2, (h, w))


def find_token(options: Options, config: SegmenterConfig, size: tuple[int, int]) -> tuple[int, str, Box | None]:
    """Place in the sequence, description, and for a patch its box of the token to look at in an image of (H, W).

    Raises ConfigError for a pixel outside the image, a name no token has, and a decoder without either.
    """
    H, W = size
    P, extra = config.encoder.patch_size, config.encoder.extra_tokens
    h, w = -(-H // P), -(-W // P)
    first = extra if options.part == "encoder" else 0
    if options.at is not None:
        x, y = options.at
        if not (0 <= x < W and 0 <= y < H):
            raise ConfigError(f"--at {x} {y}: outside the image of {W}x{H} pixels; wanted 0 0 to {W - 1} {H - 1}")
        row, column = y // P, x // P
        box = column * P, row * P, min((column + 1) * P, W), min((row + 1) * P, H)
        return first + row * w + column, f"patch at {x}, {y}", box
    if options.part == "encoder":
        names = ("class", "distillation")[: 1 + config.encoder.distilled]  # registers have no name
        wanted = options.token or names[0]
    elif options.token is None:
        raise ConfigError("--part decoder: whose attention? name a class with --token, or a patch with --at X Y")
    else:
        names, wanted = config.classes, options.token
        first = h * w
    places = {name.casefold(): index for index, name in enumerate(names)}
    if wanted.casefold() not in places:
        near = difflib.get_close_matches(wanted.casefold(), places, n=3, cutoff=0.5) or list(places)[:5]
        raise ConfigError(f"--token {wanted}: the {options.part} has no such token; wanted one like {', '.join(near)}")
    place = places[wanted.casefold()]
    return (place if options.part == "encoder" else first + place), f"{names[place]} token", None


def draw(options: Options, model: "Segmenter", path: Path) -> None:
    """Write the sheet of one image. Raises ImageError naming a file that cannot be read, else as `find_token`."""
    from segmenter.preprocess import normalize

    config, image = model.config, read_image(path)
    if image.shape[2] != len(config.preprocess.mean):
        raise ImageError(
            f"{path}: has {image.shape[2]} channels where the network takes {len(config.preprocess.mean)};"
            " look at one trained on RGB images"
        )
    token, what, box = find_token(options, config, image.shape[:2])
    x = normalize(image, config.preprocess).to(next(model.parameters()).device)
    maps = attention_maps(model, x, options.part, token).float().cpu().numpy()
    layers = require_layers(options.layers, len(maps), options.part)
    title = f"{options.part}, {what}"
    sheet = attention_sheet(
        image, maps[list(layers)], config.encoder.patch_size, layers, title, box, options.width or image.shape[1]
    )
    write_image(_sheet_path(options, path), sheet)


def _sheet_path(options: Options, path: Path) -> Path:
    return options.out / f"{path.stem}.png"


def require_layers(layers: Sequence[int], depth: int, part: str) -> tuple[int, ...]:
    """The layers, or all of them when none is named. Raises ConfigError for one the part has not."""
    for layer in layers:
        if not 0 <= layer < depth:
            raise ConfigError(f"--layers {layer}: the {part} has layers 0 to {depth - 1}")
    return tuple(layers) or tuple(range(depth))


def attention(options: Options) -> int:
    from segmenter.checkpoint import load_model

    files = find_images(options.images)
    require_kept(files, [_sheet_path(options, path) for path in files])
    model = load_model(options.checkpoint, pick_device(options.device))
    for path in track(files, "looking", console=Console(stderr=True), transient=True):
        draw(options, model, path)
    print(f"attention over {len(files)} images drawn into {options.out}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    return run(attention, Options, argv)


if __name__ == "__main__":
    sys.exit(main())
