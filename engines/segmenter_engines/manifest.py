"""The JSON beside every artifact: what it is, what it was made from, and how well it does.

`X.onnx.json` lies beside `X.onnx`. Whoever reads one, in any language, refuses what breaks these rules (`read_fields`):
- At most 4 MiB of UTF-8 without a byte order mark: one JSON object, no name twice in an object, lists and objects
  nested at most 32 deep, every number within a double, no lone surrogate in any string. Numbers that are integers below
  have neither point nor exponent.
- Every field of `Manifest` is there but for plugins, compute_capabilities, details and verification, which may be left
  out; no other is. `format` is 2.
- Strings have 1 to 200 characters (code points) where nothing else is said, none of them a control character (below
  U+0020, U+007F to U+009F). artifact: 1 to 255, no `/` or `\\`, not `.` or `..`, ends with `.onnx`
  or `.plan` as `kind` says, and is the name of the file it lies beside. command: 0 to 8000. machine: up to 500.
- sha256: 64 digits 0-9a-f. source: at most 16 strings of up to 1000; versions: at most 100.
- patch_size: 1 to 1024. height, width, batch: three integers, 1 <= min <= opt <= max <= 65536.
- outputs: one or more of labels, masks, logits, confidence, none twice. classes: 1 to 32768; palette: as many colours,
  three integers from 0 to 255 each. preprocess: mean and std, three numbers each within 1e6, std at least 1e-6.
- engine: any (graphs alone), tensorrt or tensorrt-rtx. plugins: at most 100 identifiers in ASCII, none twice.
  compute_capabilities: at most 100 such as 9.0 or 8.0+, none twice.
- details: an object; its plugin_library, where there is one, is the name and the sha256 of the library a plan was built
  with. verification: null, or an object of objects that each have a boolean `passed` (see `verdict`).
"""

import json
import platform
import re
import shlex
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from segmenter.checkpoint import OFFICIAL_NAME, WEIGHTS_NAME
from segmenter.config import Preprocess, SegmenterConfig
from segmenter.errors import EngineError
from segmenter.files import atomic_path, require_writable, sha256
from segmenter.packages import installed
from segmenter_engines.graph_checks import require_self_contained, require_size
from segmenter_engines.manifest_fields import FORMAT, MAX_BYTES, NORMALIZED, PIXELS, FieldError, read_fields

__all__ = ["NORMALIZED", "PIXELS", "Manifest", "read_manifest"]


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
    def plugin_library(self) -> dict[str, str] | None:
        """`name` and `sha256` of the plugin library a plan was built with, None when it was built without one."""
        return self.details.get("plugin_library")

    def text(self) -> str:
        """What its file holds.

        Raises EngineError when `read_manifest` would refuse it.
        """
        text = json.dumps(asdict(self), indent=1) + "\n"
        try:
            read_fields(text.encode())
        except FieldError as error:
            raise EngineError(f"manifest of {self.artifact}: cannot be written: {error}") from error
        return text

    def write(self, artifact: Path) -> None:
        """Write it beside its artifact.

        Raises EngineError when `read_manifest` would refuse it.
        """
        path = manifest_path(artifact)
        if self.artifact != artifact.name:
            raise EngineError(f"{path}: cannot be written: it is the manifest of {self.artifact}")
        with atomic_path(path) as temporary:
            temporary.write_text(self.text())


def manifest_path(artifact: Path) -> Path:
    return artifact.with_name(artifact.name + ".json")


def read_manifest(artifact: Path, *, check_hash: bool = True) -> Manifest:
    """The manifest beside an artifact.

    check_hash: also see that the artifact is the file it vouches for and, of a graph, that it is whole in that file.
    Raises EngineError when either is missing, the manifest breaks a rule above, or the artifact is not what it says.
    """
    path = manifest_path(artifact)
    if artifact.is_dir():
        raise EngineError(f"{artifact}: is a folder, wanted an engine; pass an .onnx or .plan file, such as one in it")
    if not artifact.is_file():
        raise EngineError(f"{artifact}: no such engine file; make it with `segmenter export` or `segmenter build`")
    if not path.is_file():
        raise EngineError(f"{artifact}: no manifest {path.name} beside it; copy both files, or make them again")
    try:
        with path.open("rb") as file:
            manifest = Manifest(**read_fields(file.read(MAX_BYTES + 1)))
    except FieldError as error:
        raise EngineError(f"{path}: not a manifest of this release: {error}; make the artifact again") from error
    if manifest.artifact != artifact.name:
        raise EngineError(
            f"{path}: is the manifest of {manifest.artifact}; give both files their names back, or make them again"
        )
    if check_hash:
        if manifest.kind == "onnx":
            require_size(artifact)  # before it is read at all
        require_hash(artifact, manifest, sha256(artifact))
        if manifest.kind == "onnx":
            require_self_contained(artifact)
    return manifest


def require_hash(artifact: Path, manifest: Manifest, found: str) -> None:
    """Raises EngineError where an artifact's SHA-256 is another than its manifest vouches for."""
    if found != manifest.sha256:
        raise EngineError(
            f"{artifact}: is not the file its manifest vouches for (expected SHA-256 {manifest.sha256}, it has"
            f" {found}); copy both files again, or {rebuild_command(artifact, manifest)}"
        )


def rebuild_command(artifact: Path, manifest: Manifest) -> str:
    """Advice that ends an error: how to make the artifact again."""
    graph = artifact.suffix == ".onnx"
    steps = ("export", "quantize", "pipeline") if graph else ("build", "pipeline")
    usual = "export CHECKPOINT" if graph else "build GRAPH.onnx"
    made = manifest.command.startswith(tuple(f"segmenter {step} " for step in steps))
    command = manifest.command if made else f"segmenter {usual} --out {artifact.name}"
    return f"make it again: `{command}`"


def require_out(out: Path, suffix: str, source: Path) -> None:
    """See, before long work, that an artifact may be written as `out`: named `*suffix`, not over what it is made of.

    Raises EngineError otherwise, OSError naming `out` where no file can be put there.
    """
    if out.suffix != suffix:
        raise EngineError(f"{out}: what is written here is named *{suffix}; pass such a name")
    if out.resolve() == source.resolve():
        raise EngineError(f"{out}: is the file it would be made of, and would be lost; pass another --out")
    require_writable(out)


def vouched(digest: str) -> str:
    """A file's SHA-256 as manifests name it in `source`."""
    return f"sha256:{digest}"


def require_rgb(config: SegmenterConfig) -> None:
    """Raises EngineError for a network of more channels than RGB's, which no engine takes."""
    if config.encoder.channels != 3:
        raise EngineError(
            f"{config.name}: takes images of {config.encoder.channels} channels, and engines take RGB alone; evaluate"
            " it with `segmenter evaluate`, or train a network on RGB for engines"
        )


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


def read_quantised(path: Path) -> Manifest:
    """The manifest of a quantised graph. Raises EngineError where it is of anything else."""
    manifest = read_manifest(path)
    if manifest.precision not in ("int8", "fp8") or manifest.kind != "onnx":
        raise EngineError(
            f"{path}: is {manifest.precision} {manifest.kind}; wanted a graph that `segmenter quantize` made"
        )
    return manifest


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
    """The system, its processor's kind and, where PyTorch sees one, its GPU."""
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{platform.system()} {platform.machine()}{gpu}"


def command_line() -> str:
    """The command this process runs, in one line that a shell runs again, without the program's folder."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]", " ", shlex.join([*_program(), *sys.argv[1:]]))[:8000]


def _program() -> list[str]:
    """What starts this process in a shell: `segmenter build` for `python -m segmenter_engines.build` as well."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is None:
        name = Path(sys.argv[0]).name
        return ["python", name] if name.endswith(".py") else [name]
    package, _, module = spec.name.removesuffix(".__main__").rpartition(".")
    if package == "segmenter_engines":  # its modules that run are commands, by the same names
        return ["segmenter", module.replace("_", "-")]
    return ["segmenter"] if (package, module) == ("", "segmenter") else ["python", "-m", spec.name]
