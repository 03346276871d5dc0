"""Every engine by name, and `open_session`, which picks one for an artifact."""

import warnings
from contextlib import suppress
from importlib import import_module
from pathlib import Path

from segmenter.checkpoint import CONFIG_NAME, OFFICIAL_NAME, VARIANT_NAME, WEIGHTS_NAME
from segmenter.cores import usable_cores
from segmenter.errors import EngineError, Unavailable
from segmenter_engines.manifest import read_manifest
from segmenter_engines.sessions.session import Mode, Session
from segmenter_engines.sessions.spec import Spec
from segmenter_engines.verified import unverified

__all__ = ["ENGINES", "Session", "Spec", "engine_for", "open_engine", "open_session"]

# engine -> (module, class, extra of this project that installs its runtime)
ENGINES = {
    "eager": ("segmenter_engines.sessions.torch", "EagerSession", ""),
    "compiled": ("segmenter_engines.sessions.torch", "CompiledSession", ""),
    "triton": ("segmenter_engines.sessions.triton", "TritonSession", "gpu"),
    "onnxruntime": ("segmenter_engines.sessions.onnxruntime", "OnnxRuntimeSession", "engines"),
    "openvino": ("segmenter_engines.sessions.openvino", "OpenVinoSession", "engines"),
    "tensorrt-rtx": ("segmenter_engines.sessions.tensorrt", "TensorRTSession", "tensorrt-rtx"),
    "tensorrt": ("segmenter_engines.sessions.tensorrt", "TensorRTSession", "tensorrt"),
}


def open_session(
    path: Path | str,
    engine: str | None = None,
    *,
    threads: int | None = None,
    precision: str | None = None,
    require_verified: bool = False,
    require_signature: Path | str | None = None,
    mode: Mode = "latency",
) -> Session:
    """Open an artifact as a `Session`, and warn (RuntimeWarning) when it is not verified in that engine.

    path, engine, threads, precision, mode: as of `open_engine`. require_verified: refuse instead of warning. A
    checkpoint is what engines are verified against, and needs no verdict. require_signature: a public Ed25519 key (PEM)
    that the artifact's manifest must be signed for, see `segmenter_engines.signature`.
    A session serves one thread at a time: open one for each. OpenVINO's refuses a call, and to be closed, while
    another call runs (EngineError), and is as good as before.
    Raises EngineError as `open_engine` does, and when what is required is not there.
    """
    path = Path(path)
    if require_signature is not None:
        # here, for the package it needs is an extra
        from segmenter_engines.signature import require_signature as require

        require(path, Path(require_signature))
    session = open_engine(path, engine, threads=threads, precision=precision, mode=mode)
    if _is_checkpoint(path):
        return session
    manifest = read_manifest(path, check_hash=False)
    reason = unverified(manifest, session.name, session.describe()["device"])
    if reason is not None:
        advice = f"{path}: {reason}; run `segmenter verify --engine {session.engine}` on this machine"
        passed = {name.rpartition("-")[0] for name in manifest.verification or {} if not unverified(manifest, name)}
        if others := passed & ENGINES.keys() - {session.engine}:
            advice += f", or open it in {' or '.join(sorted(others))}, where it is verified"
        if require_verified:
            session.close()
            raise EngineError(advice)
        warnings.warn(advice, RuntimeWarning, stacklevel=2)
    return session


def open_engine(
    path: Path | str,
    engine: str | None = None,
    *,
    threads: int | None = None,
    precision: str | None = None,
    mode: Mode = "latency",
) -> Session:
    """Open an artifact as a `Session`, verified or not: for who judges it anyway.

    path: a checkpoint folder or official checkpoint.pth (engines `eager`, `compiled`, `triton`), an exported .onnx
    (`onnxruntime`, `openvino`), or a .plan (`tensorrt-rtx`). engine: one of `ENGINES`; None takes the first that fits
    the path. threads: CPU threads, every core this process may use when None. precision: see the engine's class.
    mode: `latency`, or `throughput` for the engines that run images of a batch beside each other.
    Raises EngineError, in one line, when the engine is unknown or does not fit the path, and Unavailable when this
    machine lacks what it needs.
    """
    path = Path(path)
    engine = engine_for(path, engine)
    if threads is not None and threads < 1:
        raise EngineError(f"{threads} threads: wanted at least 1")
    module, name, extra = ENGINES[engine]
    try:
        kind = getattr(import_module(module), name)
    except ModuleNotFoundError as error:
        raise Unavailable(
            f"engine {engine}: the package {error.name} is not installed; pip install 'segmenter-trt[{extra}]'"
        ) from error
    if mode not in kind.modes:
        raise EngineError(f"mode {mode!r}: engine {engine} knows {' and '.join(kind.modes)}; pass one of them")
    chosen = {} if mode == "latency" else {"mode": mode}  # most engines have but one
    session: Session = kind(path, threads or usable_cores(), precision, **chosen)
    return session


def engine_for(path: Path, engine: str | None = None) -> str:
    """The engine that `open_engine` opens an artifact with: the one asked for, else the first that fits it.

    Raises EngineError when the engine is unknown or does not fit the path.
    """
    choices = _choices(path)
    if engine is not None and engine not in ENGINES:
        raise EngineError(f"engine {engine!r} is unknown; choose one of {', '.join(ENGINES)}")
    if not choices:
        raise EngineError(
            f"{path}: no checkpoint; wanted a checkpoint folder ({CONFIG_NAME} and {WEIGHTS_NAME}, or an official"
            f" {OFFICIAL_NAME} and its {VARIANT_NAME}), or a file of an engine folder (.onnx or .plan, its manifest"
            f" beside it){_in_folder(path, engine) or '; make one with `segmenter pipeline`'}"
        )
    engine = engine or choices[0]
    if engine not in choices:
        raise EngineError(
            f"{path}: engine {engine} cannot open it; it is for {' or '.join(choices)}{_in_folder(path, engine)}"
        )
    return engine


def _choices(path: Path) -> tuple[str, ...]:
    """The engines that open an artifact, the first one unasked; none for a folder that is no checkpoint."""
    if path.suffix == ".onnx":
        return ("onnxruntime", "openvino")
    if path.suffix == ".plan":
        return (read_manifest(path, check_hash=False).engine,)
    if _is_checkpoint(path):
        return ("eager", "compiled", "triton")
    if path.is_dir():
        return ()
    what = "is no artifact" if path.exists() else "no such artifact"
    raise EngineError(f"{path}: {what}; wanted a checkpoint folder, an .onnx or a .plan")


def _in_folder(path: Path, engine: str | None) -> str:
    """Advice for who names an engine folder: what in it an engine, or any, may open."""
    found = []
    for artifact in sorted(path.iterdir()) if path.is_dir() else ():
        with suppress(EngineError):  # what is no artifact, or a damaged one
            choices = _choices(artifact)
            if choices if engine is None else engine in choices:
                found.append(artifact.name)
    return f"; in it, {engine or 'engines'} can open {', '.join(found)}" if found else ""


def _is_checkpoint(path: Path) -> bool:
    return path.suffix == ".pth" or any((path / name).exists() for name in (CONFIG_NAME, WEIGHTS_NAME, OFFICIAL_NAME))
