"""Segmenter without PyTorch: engines that label images, and the compiled routines around a network.

    engine = segmenter_trt.Engine("model.int8.onnx")
    session = segmenter_trt.Session(engine)
    labels = session.run(image)  # uint8 RGB [H, W, 3] -> uint8 [H, W]

Runtimes (OpenVINO, TensorRT) and the CUDA driver are looked for when an engine is opened, not when this is imported.
"""

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
    "normalize",
    "resize",
    "upsample_argmax",
]
