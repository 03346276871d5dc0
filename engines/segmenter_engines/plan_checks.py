"""What is checked of a plan before any runtime sees it: plans and plugin libraries are code that will be run.

Where a plan says what wrote it, in its first 32 bytes:
- TensorRT-RTX, found by building one network with 1.4.0, 1.5.0, 1.6.1 and 1.7.1: 0 `vtrt`, 16 the length of the file as
  a little endian uint64, 24 major, minor, patch and build of the version as a byte each, 28 `vtrt` again.
- TensorRT 10 and 11: 0 `ftrt`, 24 the version alike, as NVIDIA's `trtexec --getPlanVersionOnly` reads them.
Both while 4 holds a uint32 of 0; with another one the layout is not known, and the manifest's version alone counts.
"""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from segmenter.errors import EngineError, Unavailable
from segmenter.files import sha256
from segmenter_engines.manifest import Manifest, manifest_path, rebuild_command, require_hash

TAGS = {b"vtrt": "tensorrt-rtx", b"ftrt": "tensorrt"}
_HEADER_BYTES = 32


@dataclass(frozen=True)
class PlanHeader:
    """What a plan says of itself."""

    engine: str
    version: tuple[int, ...] | None  # major, minor, patch, build, each modulo 256; None in a layout that is not known
    length: int | None  # bytes of the whole file; None where that is not known to be told


def read_header(plan: bytes) -> PlanHeader | None:
    """The header of a plan; None for what does not begin as a plan does."""
    engine = TAGS.get(plan[:4])
    if engine is None or len(plan) < _HEADER_BYTES:
        return None
    if plan[4:8] != bytes(4):
        return PlanHeader(engine, None, None)
    length = int.from_bytes(plan[16:24], "little") if engine == "tensorrt-rtx" else None
    return PlanHeader(engine, tuple(plan[24:28]), length)


def read_plan(path: Path, manifest: Manifest) -> bytes:
    """The bytes of a plan, read once, so that what is checked of them is what is run.

    manifest: as `read_manifest` gives it, with or without its hash checked.
    Raises EngineError when it is no plan's, or vouches for another file.
    """
    if manifest.kind != "plan":
        again = rebuild_command(path, manifest)
        raise EngineError(f"{path}: its manifest is of an {manifest.kind}, wanted a plan; {again}")
    plan = path.read_bytes()
    require_hash(path, manifest, hashlib.sha256(plan).hexdigest())
    return plan


def check_plan(
    path: Path,
    manifest: Manifest,
    plan: bytes,
    runtime_version: str,
    device_capability: tuple[int, int] | None,
    plugins: Path | None = None,
    gpu: str = "this one",
) -> None:
    """See that a plan may be given to the runtime.

    plan: its bytes, of `read_plan`. runtime_version: the `__version__` of the runtime's module. device_capability:
    (major, minor) of the GPU; None leaves it unchecked. plugins: the plugin library that would be loaded for it, None
    where there is none. gpu: what an error calls the GPU.
    Opens no runtime and loads no library.
    Raises EngineError naming what was expected, what is here, and the command that rebuilds; Unavailable, which is
    one, where it is the GPU that does not fit.
    """
    again = rebuild_command(path, manifest)
    _check_version(path, manifest, runtime_version, plan, again)
    if device_capability is not None and not runs_on(manifest.compute_capabilities, device_capability):
        wanted, here = " or ".join(manifest.compute_capabilities), ".".join(map(str, device_capability))
        built = manifest.command.startswith("segmenter build ")
        advice = again + "," if built else "build its graph: `segmenter build`"  # a pipeline would make the same again
        raise Unavailable(
            f"{path}: built for GPUs of compute capability {wanted}, {gpu} has {here}; run it on one of those, or"
            f" {advice} with --gpus {here}, or --engine tensorrt where TensorRT-RTX does not know such GPUs"
        )
    _check_plugins(path, manifest, plugins, again)


def runs_on(capabilities: tuple[str, ...], device: tuple[int, int]) -> bool:
    """Whether a GPU is among those of a manifest: "9.0" is that alone, "8.0+" that and later; none named is any."""
    for text in capabilities:
        least = tuple(int(part) for part in text.rstrip("+").split("."))
        if device == least or (text.endswith("+") and device >= least):
            return True
    return not capabilities


def _check_version(path: Path, manifest: Manifest, runtime_version: str, plan: bytes, again: str) -> None:
    told = manifest.versions.get(manifest.engine, "")
    expected, here = _numbers(told), _numbers(runtime_version)
    if not _agree(expected, here):
        raise EngineError(
            f"{path}: built with {manifest.engine} {told or 'of a version its manifest does not tell'}, this is"
            f" {runtime_version}; install that version, or {again}"
        )
    header = read_header(plan)
    if header is None or header.engine != manifest.engine:
        begins = "no plan does" if header is None else f"one of {header.engine} does"
        raise EngineError(f"{path}: begins as {begins}, wanted one of {manifest.engine}; {again}")
    if header.length not in (None, len(plan)):
        raise EngineError(f"{path}: has {len(plan)} bytes, its own header says {header.length}; {again}")
    if header.version is not None and not _agree(header.version, tuple(number % 256 for number in here)):
        wrote = ".".join(map(str, header.version))
        raise EngineError(
            f"{path}: its own header says {manifest.engine} {wrote} wrote it, this is {runtime_version}; {again}"
        )


def _agree(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Whether two versions are one, by the numbers that both tell, at least three.

    TensorRT's Python module leaves the fourth out up to 10.7: 10.7.0, of which a plan's header says 10.7.0.23.
    """
    told = min(len(one), len(other))
    return told >= 3 and one[:told] == other[:told]


def _numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version, at most four: 10.14.1.48.post1 -> (10, 14, 1, 48)."""
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in match[0].split("."))[:4] if match else ()


def _check_plugins(path: Path, manifest: Manifest, plugins: Path | None, again: str) -> None:
    if not manifest.plugins:
        return
    names, recorded = ", ".join(manifest.plugins), manifest.plugin_library
    if recorded is None:
        raise EngineError(
            f"{manifest_path(path)}: vouches for no plugin library where the plan needs one ({names}); {again}"
        )
    if plugins is None or not plugins.is_file():
        raise EngineError(
            f"{path}: needs the plugin library {recorded['name']} ({names}), which is not here"
            f" ({plugins or 'none was found'}); install segmenter-trt with its plugins, or {again}"
        )
    if (found := sha256(plugins)) != recorded["sha256"]:
        raise EngineError(
            f"{path}: built with plugin library {recorded['name']} of SHA-256 {recorded['sha256']}, {plugins} has"
            f" {found}; install that one, or {again}"
        )
