"""Segmenter's compiled routines: what must be fast outside the network, on any CPU, with numpy arrays in and out."""

try:
    from segmenter_trt._native import __version__, build_info, normalize, resize, upsample_argmax
except ModuleNotFoundError as error:
    if error.name != "segmenter_trt._native":
        raise
    raise ModuleNotFoundError(
        "segmenter_trt is not compiled for this Python; install the project with `pip install .` (it needs g++)",
        name=error.name,
    ) from error

__all__ = ["__version__", "build_info", "normalize", "resize", "upsample_argmax"]
