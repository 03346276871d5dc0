"""Segmenter without PyTorch: engines that label images, and the compiled routines around a network.

    with segmenter_trt.Engine("model.int8.onnx") as engine, segmenter_trt.Session(engine) as session:
        labels = session.run(image)  # uint8 RGB [H, W, 3] -> uint8 [H, W]

Runtimes (OpenVINO, TensorRT) and the CUDA driver are looked for when an engine is opened, not when this is imported.
"""

from pathlib import Path

try:
    from segmenter_trt._native import (
        ArtifactError,
        Engine,
        Error,
        InputError,
        ManifestError,
        RunError,
        Session,
        Unavailable,
        __version__,
        build_info,
        core_to_core_ns,
        normalize,
        resize,
        upsample_argmax,
    )
except ModuleNotFoundError as error:
    if error.name != "segmenter_trt._native":
        raise
    raise ModuleNotFoundError(
        "segmenter_trt is not compiled for this Python; install the project with `pip install .` (it needs g++)",
        name=error.name,
    ) from error
from segmenter_trt import runtimes

__all__ = [
    "ArtifactError",
    "Engine",
    "Error",
    "InputError",
    "ManifestError",
    "RunError",
    "Session",
    "Unavailable",
    "__version__",
    "build_info",
    "core_to_core_ns",
    "normalize",
    "plugin_library",
    "resize",
    "upsample_argmax",
]


def plugin_library() -> Path:
    """The library of TensorRT's plugins that run graphs of `segmenter export --lowering plugin`.

    TensorRT's own `load_library` wants `str(...)` of it. Raises Unavailable naming how to build it when this package
    was installed without it, as it is by default.
    """
    path = runtimes.installed_plugins()
    if path is None:
        raise Unavailable(
            "segmenter_trt was built without libsegmenter_trt_plugin.so; run `python -m segmenter_kernels.aot --out"
            " cubins --only attention patch_embed mask_scores upsample_argmax merge_windows resize normalize`, then"
            " install with"
            " CMAKE_ARGS='-DSEGMENTER_TRT_CUBINS=<cubins> -DTENSORRT_INCLUDE_DIR=<TensorRT's headers>'"
        )
    return path
