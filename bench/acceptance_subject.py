"""What acceptance judges: the code, the kernels' tiles and the machine. This file needs nothing but Python.

A step that ended well is done as long as these are what they were: after an edit, an upgrade or on another machine of
the same folder it runs again.
"""

import ctypes
import hashlib
import importlib.util
import os
import platform
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# packages by where a checkout has them; `segmenter_bench` is the folder bench under another name
SOURCES = {"segmenter": ROOT, "segmenter_engines": ROOT / "engines", "segmenter_kernels": ROOT / "kernels"}
SOURCES["segmenter_trt"] = ROOT / "csrc"
CODE = (".py", ".so", ".cc", ".h")


def code() -> str:
    """A digest of the code that steps run: of the packages installed, else of this checkout's, and of its tests."""
    folders = list(map(_package, (*SOURCES, "segmenter_bench")))
    if (ROOT / "csrc").is_dir():  # a checkout, whose kernel tests build what is there
        folders += [ROOT / "csrc", ROOT / "tests"]
    files = [file for folder in folders for file in folder.rglob("*") if file.suffix in CODE and file.is_file()]
    return _digest(files)


def tiles_in(folder: Path) -> str:
    """A digest of the kernels' tiles, which `segmenter_kernels.tune` writes into a folder."""
    return _digest(folder.glob("*.json"))


def configs() -> Path:
    """Where the kernels that steps run have their tiles."""
    return _package("segmenter_kernels") / "configs"


def machine() -> str:
    """CPU, cores and GPUs, as far as they decide what is measured."""
    return ", ".join([_cpu(), f"{os.cpu_count()} cores", *gpus()])


def gpus() -> list[str]:
    """Names of the NVIDIA GPUs that a driver finds; empty without one."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return []
    count = ctypes.c_int()
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return []
    names = []
    for index in range(count.value):
        device, name = ctypes.c_int(), ctypes.create_string_buffer(256)
        known = driver.cuDeviceGet(ctypes.byref(device), index) == 0
        known = known and driver.cuDeviceGetName(name, len(name), device) == 0
        names.append(name.value.decode(errors="replace") if known else "a GPU")
    return names


def _package(name: str) -> Path:
    """Where steps find a package: installed, else in this checkout."""
    found = importlib.util.find_spec(name)
    if found and found.origin:
        return Path(found.origin).resolve().parent
    return SOURCES[name] / name if name in SOURCES else ROOT / "bench"


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def _digest(files: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for file in sorted(set(files)):
        digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()
