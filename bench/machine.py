"""Facts about the machine a number was made on, and how much memory a process has needed."""

import ctypes
import functools
import os
import platform
import resource
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from segmenter.cores import scheduled_cores, usable_cores
from segmenter.cpu import cpu_flags, cpu_info
from segmenter.packages import installed

BUSY = 0.05  # share of the cores others may take before a run says so
KEEP_MEMORY = "glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=17179869184"
PACKAGES = (
    "segmenter-trt",
    "numpy",
    "torch",
    "triton",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "tensorrt",
    "tensorrt-rtx",
    "nvidia-modelopt",
)


def facts() -> dict[str, Any]:
    """CPU, memory, system, package versions, GPUs and the commit of the checkout; nothing that names the machine."""
    return {
        "cpu": _cpu(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "load_average": [round(load, 2) for load in os.getloadavg()],
        # what follows the version says who built it
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
        "python": platform.python_version(),
        "versions": versions(),
        "gpus": gpus(),
        "git": _git(),
    }


def busy_seconds() -> float | None:
    """CPU seconds spent by anyone on the cores this process may use, since boot; None where the system does not say."""
    try:
        lines = Path("/proc/stat").read_text().splitlines()
    except OSError:
        return None
    ours = {f"cpu{core}" for core in os.sched_getaffinity(0)}
    ticks = 0
    for name, *fields in (line.split() for line in lines if line.startswith("cpu")):
        if name in ours:
            user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, fields[:8])
            ticks += user + nice + system + irq + softirq + steal
    return ticks / os.sysconf("SC_CLK_TCK")


def process_seconds(pid: int) -> float:
    """CPU seconds a process has spent, its threads included; 0 when it is gone or the system does not say."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Spending:
    """CPU seconds that this process and others it started have spent; one that has ended keeps its last reading.

    Without that, what it had spent would be others' from its end on.
    """

    def __init__(self, pids: Iterable[int]) -> None:
        self._seconds = dict.fromkeys((os.getpid(), *pids), 0.0)

    def __call__(self) -> float:
        for pid, before in self._seconds.items():
            self._seconds[pid] = max(before, process_seconds(pid))
        return sum(self._seconds.values())


class Neighbours:
    """How much of the usable cores other programs take from now on. ours: CPU seconds spent by what is measured."""

    def __init__(self, ours: Callable[[], float]) -> None:
        self._ours = ours
        self._start, self._busy, self._spent = time.perf_counter(), busy_seconds(), ours()

    def share(self) -> float | None:
        """Their share of the cores so far, None where the system does not say."""
        now = busy_seconds()
        if self._busy is None or now is None:
            return None
        others = now - self._busy - (self._ours() - self._spent)
        return max(others, 0.0) / (scheduled_cores() * (time.perf_counter() - self._start))


def busiest(rows: Iterable[Mapping[str, Any]]) -> float:
    """The largest share of the CPU cores others took while these rows were timed."""
    return max((row.get("others_busy") or 0.0 for row in rows), default=0.0)


def busy_note(share: float) -> str | None:
    """What a run says where others took that share of the cores; None for a quiet machine."""
    if share <= BUSY:
        return None
    return (
        f"Other programs took up to {share:.0%} of the CPU cores during the timing: wall times are too long, their"
        " ratios unsure. Ratios by CPU time suffer less; better repeat the run on a quiet machine."
    )


def peak_memory_bytes() -> int:
    """The most memory this process has held at once, resident, since its start or the last `forget_peak_memory`."""
    status = Path("/proc/self/status")
    if status.exists():
        # ru_maxrss would count the parent too: it survives exec
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def keeping_memory(environment: Mapping[str, str]) -> dict[str, str]:
    """`environment` for a process whose freed memory stays with it, where its C library is glibc.

    glibc gives a large buffer back to the system when it is freed, and the next call pays for every page of it again:
    half the time of the official way's attention and logits, and another share in each process. A tuned server keeps
    its memory, so every engine is measured as in one.
    """
    tunables = [*filter(None, [environment.get("GLIBC_TUNABLES")]), KEEP_MEMORY]
    return {**environment, "GLIBC_TUNABLES": ":".join(tunables)}


def forget_peak_memory() -> bool:
    """Start the peak of `peak_memory_bytes` anew, without what was freed; False where the system does not let us."""
    # absent where the C library is not glibc, whose memory is not kept either
    if give_back := getattr(ctypes.CDLL(None), "malloc_trim", None):
        give_back(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _cpu() -> dict[str, Any]:
    return {
        "model": cpu_info().get("model name") or platform.processor() or platform.machine(),
        "architecture": platform.machine(),
        "cores": os.cpu_count(),
        "usable_cores": usable_cores(),
        "flags": cpu_flags(),
    }


def versions() -> dict[str, str]:
    """Installed versions of the packages that can change a number, those that are there."""
    return installed(*PACKAGES)


def gpus() -> list[dict[str, Any]]:
    """Name, memory, driver, clocks, power and temperature of each NVIDIA GPU; empty without NVML or a driver."""
    try:
        pynvml = import_module("pynvml")
    except ImportError:
        return []
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        return [_gpu(pynvml, index) for index in range(pynvml.nvmlDeviceGetCount())]
    finally:
        pynvml.nvmlShutdown()


def energy_meter() -> Callable[[], float] | None:
    """Joules that the GPU which engines run on, the first this process may use, has spent since its driver was loaded.

    None where nothing counts them: without NVML, a driver or a GPU, on a part of one, and on GPUs older than Volta.
    """
    try:
        nvml = import_module("pynvml")
    except ImportError:
        return None
    name = _first_gpu()
    if name is None:
        return None
    try:
        nvml.nvmlInit()
        counter = functools.partial(nvml.nvmlDeviceGetTotalEnergyConsumption, nvml.nvmlDeviceGetHandleByUUID(name))
        counter()
    except nvml.NVMLError:
        return None
    return lambda: counter() / 1000.0


def _first_gpu() -> str | None:
    """The UUID of CUDA's first device, which CUDA_VISIBLE_DEVICES chooses and NVML does not know of."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    device, found = ctypes.c_int(), (ctypes.c_ubyte * 16)()
    if driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), 0) or driver.cuDeviceGetUuid(found, device):
        return None
    return f"GPU-{uuid.UUID(bytes=bytes(found))}"


def _gpu(nvml: Any, index: int) -> dict[str, Any]:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    readers = {
        "name": lambda: nvml.nvmlDeviceGetName(handle),
        "driver": nvml.nvmlSystemGetDriverVersion,
        "compute_capability": lambda: ".".join(map(str, nvml.nvmlDeviceGetCudaComputeCapability(handle))),
        "memory_bytes": lambda: nvml.nvmlDeviceGetMemoryInfo(handle).total,
        "sm_clock_mhz": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
        "sm_clock_max_mhz": lambda: nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_SM),
        "memory_clock_mhz": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM),
        "power_watts": lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1000,
        "power_limit_watts": lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1000,
        "temperature_celsius": lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
    }
    facts: dict[str, Any] = {}
    for name, read in readers.items():
        try:
            value = read()
        except nvml.NVMLError:
            continue  # virtual and embedded GPUs answer only some of these
        facts[name] = value.decode() if isinstance(value, bytes) else value
    return facts


def _git() -> dict[str, Any] | None:
    """Commit of the checkout this file lies in, and whether its tracked files were changed; None outside a checkout."""
    here = Path(__file__).resolve()
    folder = here.parent
    try:
        # installed into a folder below someone else's checkout, this file is not part of it
        _git_output(folder, "ls-files", "--error-unmatch", here.name)
        commit = _git_output(folder, "rev-parse", "HEAD")
        changed = _git_output(folder, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit, "dirty": bool(changed)}


def _git_output(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
