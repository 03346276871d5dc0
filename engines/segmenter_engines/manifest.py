"""The JSON beside every artifact: what it is, what it was made from, and how well it does."""

import json
import platform
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from segmenter.checkpoint import OFFICIAL_NAME, WEIGHTS_NAME
from segmenter.config import Preprocess
from segmenter.errors import EngineError
from segmenter.files import atomic_path, sha256
from segmenter.packages import installed

FORMAT = 2
PIXELS, NORMALIZED = "pixels", "normalized"


@dataclass(frozen=True)
class Manifest:
    """Facts about one artifact (an ONNX graph or a plan); written as `<artifact>.json`."""

    artifact: str  # file name, in the same folder
    kind: str  # onnx or plan
    engine: str  # runtime it was made for; "any" for a plain ONNX
    precision: str  # fp32, fp16, bf16, int8 or fp8
    sha256: str
    source: dict[str, str]  # hashes of what it was made from: the checkpoint, and the graph unless it was made of that
    model: str  # name of the configuration
    patch_size: int
    input: str  # PIXELS: uint8 [B, H, W, 3]; NORMALIZED: float32 [B, 3, H, W], as `preprocess` makes it
    height: tuple[int, int, int]  # min, opt, max pixels of the images it takes; three times the same for a fixed size
    width: tuple[int, int, int]
    batch: tuple[int, int, int]  # min, opt, max
    outputs: tuple[str, ...]
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    preprocess: Preprocess
    command: str
    versions: dict[str, str]
    machine: str
    plugins: tuple[str, ...] = ()  # custom ops its runtime must bring, such as SegmenterAttention
    compute_capabilities: tuple[str, ...] = ()  # of the GPUs a plan runs on: "9.0" that alone, "8.0+" and later ones
    details: dict[str, Any] = field(default_factory=dict)  # calibration, builder options, ...
    verification: dict[str, Any] | None = None
    format: int = FORMAT

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) in pixels: the one it takes, or the one it is tuned for."""
        return self.height[1], self.width[1]

    @property
    def fixed_size(self) -> tuple[int, int] | None:
        """(H, W) in pixels when it takes that size alone, else None."""
        return self.size if self.height[0] == self.height[2] and self.width[0] == self.width[2] else None

    @property
    def plugin_library(self) -> dict[str, str] | None:
        """`name` and `sha256` of the plugin library a plan was built with, None when it was built without one."""
        return self.details.get("plugin_library")

    def text(self) -> str:
        """What its file holds."""
        return json.dumps(asdict(self), indent=1) + "\n"

    def write(self, artifact: Path) -> None:
        with atomic_path(manifest_path(artifact)) as temporary:
            temporary.write_text(self.text())


def manifest_path(artifact: Path) -> Path:
    return artifact.with_name(artifact.name + ".json")


def read_manifest(artifact: Path, *, check_hash: bool = True) -> Manifest:
    """The manifest beside an artifact.

    Raises EngineError when either is missing, the manifest is not one, or the artifact is not the file it vouches for.
    """
    path = manifest_path(artifact)
    if not artifact.is_file():
        raise EngineError(f"{artifact}: no such engine file; make it with `segmenter export` or `segmenter build`")
    try:
        values = json.loads(path.read_text())
        if values.get("format") != FORMAT:
            raise EngineError(
                f"{path}: manifest format {values.get('format')}, wanted {FORMAT}; make the artifact again"
            )
        values["preprocess"] = Preprocess(**{key: tuple(value) for key, value in values["preprocess"].items()})
        for key in ("height", "width", "batch", "outputs", "classes", "plugins", "compute_capabilities"):
            values[key] = tuple(values[key])
        values["palette"] = tuple(tuple(colour) for colour in values["palette"])
        manifest = Manifest(**values)
    except FileNotFoundError as error:
        raise EngineError(
            f"{artifact}: no manifest {path.name} beside it; copy both files, or make them again"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise EngineError(
            f"{path}: not a manifest ({type(error).__name__}: {error}); make the artifact again"
        ) from error
    if check_hash and sha256(artifact) != manifest.sha256:
        raise EngineError(f"{artifact}: is not the file its manifest vouches for (SHA-256 differs); make both again")
    return manifest


def require_out(out: Path, suffix: str, source: Path) -> None:
    """See that an artifact may be written as `out`: named `*suffix`, and not over what it is made of.

    Raises EngineError otherwise.
    """
    if out.suffix != suffix:
        raise EngineError(f"{out}: what is written here is named *{suffix}; pass such a name")
    if out.resolve() == source.resolve():
        raise EngineError(f"{out}: is the file it would be made of, and would be lost; pass another --out")


def vouched(digest: str) -> str:
    """A file's SHA-256 as manifests name it in `source`."""
    return f"sha256:{digest}"


def derived_from(base: Manifest) -> dict[str, str]:
    """`source` of what is made from a graph: that graph, and the checkpoint behind it."""
    origin = {"checkpoint": base.source["checkpoint"]} if "checkpoint" in base.source else {}
    return {"onnx": vouched(base.sha256)} | origin


def require_checkpoint(artifact: Path, manifest: Manifest, checkpoint: Path) -> None:
    """See that an artifact goes back to a checkpoint: a folder of ours, or an official checkpoint.pth.

    Raises EngineError when it was made of other weights, or does not say of which.
    """
    wanted, found = vouched(sha256(weights_of(checkpoint))), manifest.source.get("checkpoint", "nothing")
    if found != wanted:
        raise EngineError(
            f"{artifact}: made of other weights ({found}) than {checkpoint} holds ({wanted}); pass the checkpoint it"
            " was made of, or make it again with `segmenter pipeline`"
        )


def weights_of(checkpoint: Path) -> Path:
    """The file that holds a checkpoint's weights."""
    if not checkpoint.is_dir():
        return checkpoint
    names = (OFFICIAL_NAME, WEIGHTS_NAME)
    return next((checkpoint / name for name in names if (checkpoint / name).is_file()), checkpoint / WEIGHTS_NAME)


def versions_of(*packages: str) -> dict[str, str]:
    """Installed versions of this project and the named distributions; those not installed are left out."""
    return {"python": platform.python_version()} | installed("segmenter-trt", "torch", *packages)


def machine_name() -> str:
    return f"{platform.system()} {platform.machine()}"


def command_line() -> str:
    """The command this process runs, with its program's folder left out."""
    return " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
