"""Configurations: frozen dataclasses that own every default, and the paper's variants by name."""

from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from segmenter.errors import ConfigError

PATCH_SIZES = (8, 14, 16, 32)
HEAD_WIDTH = 64  # channels a head of the paper's networks, of timm's ViTs and of DINOv2's
MAX_CLASSES = 1 << 15  # labels are 16 bit integers at most
_KINDS = {int: "whole numbers", float: "a number", bool: "true or false", str: "text"}


def _require_kinds(part: str, values: dict[str, Any], defaults: object) -> None:
    """Raises ConfigError for a value of another kind than the field's default; a whole number passes as a float."""
    for name, value in values.items():
        default = getattr(defaults, name, value)
        sequence = isinstance(default, tuple)
        if sequence and len(value) != len(default):
            raise ConfigError(f"{part} {name} {value!r}: wanted {len(default)} values, as in {default!r}")
        for one, like in zip(value, default, strict=True) if sequence else [(value, default)]:
            if type(one) is not type(like) and (type(one), type(like)) != (int, float):
                raise ConfigError(f"{part} {name} {value!r}: wanted {_KINDS[type(like)]}, as in {default!r}")


def _require_counts(part: str, **counts: int) -> None:
    for name, count in counts.items():
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise ConfigError(f"{part} {name.replace('_', ' ')} {count!r}: wanted a whole number, at least 1")


def _require_heads(part: str, width: int, heads: int) -> None:
    if width % heads:
        raise ConfigError(f"{part} width {width} cannot be split over {heads} heads; change one of them")


@dataclass(frozen=True)
class Preprocess:
    """How uint8 RGB, and the channels after it where there are any, become the network's input.

    `(x / 255 - mean) / std`, per channel.
    """

    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)

    def __post_init__(self) -> None:
        if len(self.mean) < 3 or len(self.std) != len(self.mean) or min(self.std) <= 0:
            raise ConfigError(
                f"preprocess mean {self.mean}, std {self.std}: wanted 3 numbers each, or more where channels follow"
                " RGB, every std above 0"
            )


HALF = Preprocess()
IMAGENET = Preprocess(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
SATELLITE = Preprocess(mean=(0.430, 0.411, 0.296), std=(0.213, 0.156, 0.143))  # of DINOv3's SAT-493M
NORMALIZATIONS = {"vit": HALF, "deit": IMAGENET, "imagenet": IMAGENET, "satellite": SATELLITE}


def whole_patches(size: tuple[int, int], patch_size: int) -> tuple[int, int]:
    """Height and width rounded up to whole patches."""
    return -(-size[0] // patch_size) * patch_size, -(-size[1] // patch_size) * patch_size


@dataclass(frozen=True)
class EncoderConfig:
    """A ViT encoder (Dosovitskiy et al. 2021; DeiT when `distilled`; DINOv2 when `layer_scale`; DINOv3 when rotary)."""

    patch_size: int = 16
    image_size: tuple[int, int] = (512, 512)  # height, width it was trained at, and learnt positions were made for
    width: int = 192
    depth: int = 12
    heads: int = 3
    mlp_width: int = 768
    distilled: bool = False
    registers: int = 0  # tokens that take part and are read by nobody (Darcet et al. 2024)
    layer_scale: bool = False
    dropout: float = 0.0
    drop_path: float = 0.1  # stochastic depth: rate of the last block, growing linearly from 0
    norm_eps: float = 1e-5
    position_resize: Literal["bilinear", "bicubic", "dinov2"] = "bilinear"  # see segmenter.vit.resize_position
    channels: int = 3  # of the image: RGB, and any that follow, such as a thermal one
    positions: Literal["learnt", "rotary"] = "learnt"  # rotary: see segmenter.rotary.Rotary

    def __post_init__(self) -> None:
        if self.patch_size not in PATCH_SIZES:
            raise ConfigError(f"patch size {self.patch_size}: wanted one of {PATCH_SIZES}")
        _require_counts("encoder", width=self.width, depth=self.depth, heads=self.heads, mlp_width=self.mlp_width)
        _require_heads("encoder", self.width, self.heads)
        if self.channels < 3:
            raise ConfigError(f"encoder channels {self.channels}: wanted 3, for RGB, or more")
        if self.position_resize not in ("bilinear", "bicubic", "dinov2"):
            raise ConfigError(f"position resize {self.position_resize!r}: wanted 'bilinear', 'bicubic' or 'dinov2'")
        if any(side < self.patch_size or side % self.patch_size for side in self.image_size):
            raise ConfigError(f"image size {self.image_size}: wanted multiples of the patch size {self.patch_size}")
        if self.registers < 0:
            raise ConfigError(f"encoder registers {self.registers}: wanted 0 or more")
        if self.positions not in ("learnt", "rotary"):
            raise ConfigError(f"encoder positions {self.positions!r}: wanted 'learnt' or 'rotary'")
        if self.positions == "rotary" and self.head_width % 4:
            raise ConfigError(
                f"encoder width {self.width} of {self.heads} heads: rotary positions want a multiple of 4 channels a"
                f" head, not {self.head_width}; change one of them"
            )

    @property
    def grid(self) -> tuple[int, int]:
        return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size

    @property
    def head_width(self) -> int:
        """Channels a head."""
        return self.width // self.heads

    @property
    def extra_tokens(self) -> int:
        """Class token, and the distillation token and registers where there are any."""
        return 1 + self.distilled + self.registers


@dataclass(frozen=True)
class DecoderConfig:
    """Patch tokens to class masks: `linear`, or the paper's mask transformer (section 3.2)."""

    kind: Literal["linear", "mask"] = "mask"
    width: int = 192
    depth: int = 2
    heads: int = 3
    mlp_width: int = 768
    dropout: float = 0.1
    drop_path: float = 0.0
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        if self.kind not in ("linear", "mask"):
            raise ConfigError(f"decoder {self.kind!r}: wanted 'linear' or 'mask'")
        _require_counts("decoder", width=self.width, depth=self.depth, heads=self.heads, mlp_width=self.mlp_width)
        _require_heads("decoder", self.width, self.heads)


@dataclass(frozen=True)
class SegmenterConfig:
    """Everything needed to build the network and to feed it."""

    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    classes: tuple[str, ...] = ()
    palette: tuple[tuple[int, int, int], ...] = ()  # one RGB colour a class
    preprocess: Preprocess = HALF
    name: str = "custom"

    def __post_init__(self) -> None:
        if not self.classes:
            raise ConfigError("a Segmenter needs at least one class; pass classes=('road', 'sky', ...)")
        if not self.palette:
            object.__setattr__(self, "palette", default_palette(len(self.classes)))
        if len(self.palette) != len(self.classes):
            raise ConfigError(f"{len(self.palette)} colours for {len(self.classes)} classes; give one a class")
        if len(self.preprocess.mean) != self.encoder.channels:
            raise ConfigError(
                f"preprocess of {len(self.preprocess.mean)} channels, encoder of {self.encoder.channels}; give one mean"
                " and std a channel"
            )

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    def with_channels(self, channels: int) -> "SegmenterConfig":
        """The same for images of so many channels; those beyond the ones it has are brought to -1 .. 1.

        Raises ConfigError for fewer than it has.
        """
        more = channels - self.encoder.channels
        if more < 0:
            raise ConfigError(
                f"{self.name!r} takes images of {self.encoder.channels} channels where the dataset's have {channels};"
                " use a dataset that has them, or another network"
            )
        preprocess = Preprocess(self.preprocess.mean + (0.5,) * more, self.preprocess.std + (0.5,) * more)
        return replace(self, encoder=replace(self.encoder, channels=channels), preprocess=preprocess)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "SegmenterConfig":
        """Rebuild from `to_dict` after a trip through JSON.

        Raises ConfigError when a field is missing, unknown or of the wrong kind.
        """
        try:
            encoder = dict(values["encoder"])
            encoder["image_size"] = tuple(encoder["image_size"])
            preprocess = {key: tuple(value) for key, value in values["preprocess"].items()}
            decoder = dict(values["decoder"])
            _require_kinds("encoder", encoder, EncoderConfig())
            _require_kinds("decoder", decoder, DecoderConfig())
            return cls(
                encoder=EncoderConfig(**encoder),
                decoder=DecoderConfig(**decoder),
                classes=tuple(values["classes"]),
                palette=tuple(tuple(colour) for colour in values["palette"]),
                preprocess=Preprocess(**preprocess),
                name=values["name"],
            )
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ConfigError(f"not a Segmenter configuration: {type(error).__name__}: {error}") from error


def default_palette(count: int) -> tuple[tuple[int, int, int], ...]:
    """`count` distinct RGB colours by the PASCAL VOC bit-interleaving rule, skipping its black."""
    colours = []
    for index in range(1, count + 1):
        rgb = [0, 0, 0]
        for bit in range(8):
            for channel in range(3):
                rgb[channel] |= ((index >> (3 * bit + channel)) & 1) << (7 - bit)
        colours.append((rgb[0], rgb[1], rgb[2]))
    return tuple(colours)


@dataclass(frozen=True)
class _Size:
    width: int
    depth: int
    heads: int


_SIZES = {"Ti": _Size(192, 12, 3), "S": _Size(384, 12, 6), "B": _Size(768, 12, 12), "L": _Size(1024, 24, 16)}
# paper, tables 3 to 6, and the official configuration file: backbone, patch size, training crop
_BACKBONES: dict[str, tuple[str, int, int, bool]] = {
    "Seg-Ti/16": ("Ti", 16, 512, False),
    "Seg-S/16": ("S", 16, 512, False),
    "Seg-S/32": ("S", 32, 512, False),
    "Seg-B/16": ("B", 16, 512, False),
    "Seg-B/8": ("B", 8, 512, False),
    "Seg-B/32": ("B", 32, 512, False),
    "Seg-L/16": ("L", 16, 640, False),
    "Seg-L/32": ("L", 32, 640, False),
    "Seg-DeiT-Ti/16": ("Ti", 16, 512, True),
    "Seg-DeiT-S/16": ("S", 16, 512, True),
    "Seg-DeiT-B/16": ("B", 16, 512, True),
}


def _masked(name: str) -> str:
    head, patch = name.split("/")
    return f"{head}-Mask/{patch}"


VARIANTS = tuple(name for linear in _BACKBONES for name in (linear, _masked(linear)))


def variant(name: str, classes: tuple[str, ...] | int = 150, **encoder_changes: Any) -> SegmenterConfig:
    """Configuration of a variant of the paper, such as `Seg-B-Mask/16` or `Seg-DeiT-B/16`.

    `classes` are names, or a number of anonymous ones. Keyword arguments replace fields of the encoder
    (`image_size=(768, 768)`, `drop_path=0.0`).

    Raises ConfigError for a name that is none of `VARIANTS`.
    Source: Strudel et al. 2021, tables 3 to 6; decoder as in section 3.2 (2 layers, heads of 64).
    """
    known = {key.lower(): key for key in VARIANTS}
    key = name.lower() if name.lower().startswith("seg-") else f"seg-{name.lower()}"
    if key not in known:
        raise ConfigError(f"variant {name!r} is unknown; choose one of {', '.join(VARIANTS)}")
    exact = known[key]
    mask = "-Mask" in exact
    letter, patch, side, deit = _BACKBONES[exact.replace("-Mask", "")]
    size = _SIZES[letter]
    encoder = EncoderConfig(
        patch_size=patch,
        image_size=(side, side),
        width=size.width,
        depth=size.depth,
        heads=size.heads,
        mlp_width=4 * size.width,
        distilled=deit,
    )
    decoder = DecoderConfig(
        kind="mask" if mask else "linear", width=size.width, heads=size.width // HEAD_WIDTH, mlp_width=4 * size.width
    )
    names = tuple(f"class {index}" for index in range(classes)) if isinstance(classes, int) else tuple(classes)
    return SegmenterConfig(
        encoder=replace(encoder, **encoder_changes),
        decoder=decoder,
        classes=names,
        preprocess=IMAGENET if deit else HALF,
        name=exact,
    )
