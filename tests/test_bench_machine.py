"""Facts about the machine, and the memory of a process."""

import json
import os
import platform
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from segmenter.cores import usable_cores
from segmenter_bench import machine


def test_facts_are_json_and_do_not_name_the_machine():
    facts = machine.facts()
    text = json.dumps(facts, allow_nan=False)
    assert facts["cpu"]["usable_cores"] == usable_cores() >= 1
    assert facts["memory_bytes"] > 2**28
    assert facts["versions"]["torch"]
    assert facts["python"].count(".") == 2
    for private in (socket.gethostname(), f"{Path.home()}/"):
        assert len(private) < 4 or private not in text


def test_the_commit_is_that_of_the_checkout_or_none():
    git = machine.facts()["git"]
    assert git is None or (len(git["commit"]) == 40 and isinstance(git["dirty"], bool))


def test_peak_memory_rises_with_use_and_can_be_forgotten():
    before = machine.peak_memory_bytes()
    ballast = np.ones(300 << 20, np.uint8)
    risen = machine.peak_memory_bytes()
    assert risen - before > 200 << 20 or risen > 300 << 20
    del ballast
    if machine.forget_peak_memory():
        assert machine.peak_memory_bytes() < risen - (200 << 20)


def test_a_large_parent_is_not_counted_as_the_childs_memory():
    ballast = np.ones(300 << 20, np.uint8)
    code = "from segmenter_bench.machine import peak_memory_bytes; print(peak_memory_bytes())"
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=_environment()
    )
    assert ballast.size == 300 << 20
    assert 5 << 20 < int(output.stdout) < 150 << 20


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library than glibc")
def test_what_a_worker_frees_costs_no_pages_again_and_counts_no_more():
    code = (
        "import numpy as np, resource\n"
        "from segmenter_bench.machine import forget_peak_memory, peak_memory_bytes\n"
        "faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "np.ones(100 << 20, np.uint8)\n"
        "before = faults()\n"
        "for _ in range(3): np.ones(100 << 20, np.uint8)\n"
        "print(faults() - before, peak_memory_bytes() if forget_peak_memory() else 0)"
    )

    def child(environment):
        command = [sys.executable, "-c", code]
        output = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
        return tuple(map(int, output.split()))

    plain, _ = child(_environment())
    kept, peak = child(machine.keeping_memory(_environment()))
    assert plain > 150  # huge pages may make 3 x 100 MiB as few as 150 faults
    assert kept < 20
    assert peak < 100 << 20


def test_tunables_that_are_set_stay():
    assert machine.keeping_memory({})["GLIBC_TUNABLES"] == machine.KEEP_MEMORY
    both = machine.keeping_memory({"GLIBC_TUNABLES": "glibc.malloc.check=0"})["GLIBC_TUNABLES"]
    assert both == f"glibc.malloc.check=0:{machine.KEEP_MEMORY}"


def test_cpu_seconds_grow_while_working():
    busy, ours = machine.busy_seconds(), machine.process_seconds(os.getpid())
    total = 0
    while machine.process_seconds(os.getpid()) < ours + 0.05:
        total += sum(range(10000))
    assert total > 0
    if busy is not None:
        assert machine.busy_seconds() > busy
    assert machine.process_seconds(2**22 + 1) == 0.0


def test_what_a_process_spent_stays_ours_when_it_has_ended():
    code = "import time\nwhile time.process_time() < 0.3: pass\nprint(flush=True)\nimport sys; sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        spending = machine.Spending([child.pid])
        child.stdout.readline()
        before = spending()
    assert machine.process_seconds(child.pid) == 0.0
    assert spending() >= before >= 0.25


def test_this_process_is_none_of_the_others():
    spending = machine.Spending([])
    before, end = spending(), time.process_time() + 0.1
    while time.process_time() < end:
        pass
    assert spending() > before


def test_a_gpu_that_answers_only_some_questions_is_described_by_those(monkeypatch):
    class NVMLError(Exception):
        pass

    def unsupported(*_):
        raise NVMLError

    nvml = SimpleNamespace(
        NVMLError=NVMLError,
        NVML_CLOCK_SM=1,
        NVML_CLOCK_MEM=2,
        NVML_TEMPERATURE_GPU=0,
        nvmlInit=lambda: None,
        nvmlShutdown=lambda: None,
        nvmlDeviceGetCount=lambda: 1,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetName=lambda handle: b"GPU 9",
        nvmlSystemGetDriverVersion=lambda: "580.1",
        nvmlDeviceGetCudaComputeCapability=lambda handle: (9, 0),
        nvmlDeviceGetMemoryInfo=lambda handle: SimpleNamespace(total=2**37),
        nvmlDeviceGetClockInfo=lambda handle, kind: 1000 * kind,
        nvmlDeviceGetMaxClockInfo=unsupported,
        nvmlDeviceGetPowerUsage=lambda handle: 98765,
        nvmlDeviceGetEnforcedPowerLimit=unsupported,
        nvmlDeviceGetTemperature=lambda handle, kind: 41,
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    assert machine.gpus() == [
        {
            "name": "GPU 9",
            "driver": "580.1",
            "compute_capability": "9.0",
            "memory_bytes": 2**37,
            "sm_clock_mhz": 1000,
            "memory_clock_mhz": 2000,
            "power_watts": 98.765,
            "temperature_celsius": 41,
        }
    ]
    nvml.nvmlInit = unsupported
    assert machine.gpus() == []


def test_the_energy_of_the_gpu_that_engines_run_on_where_it_counts_it(monkeypatch):
    class NVMLError(Exception):
        pass

    def unsupported(*_):
        raise NVMLError

    class Driver:
        """Of a machine of two GPUs, of which this process may use the second alone."""

        status = 0

        def cuInit(self, flags):
            return self.status

        def cuDeviceGet(self, device, index):
            device._obj.value = 5 + index
            return 0

        def cuDeviceGetUuid(self, found, device):
            found[:] = [0] * 15 + [device.value]
            return 0

    names = {f"GPU-00000000-0000-0000-0000-00000000000{index}": index for index in (4, 5)}
    millijoules = {4: 1000, 5: 2500}
    nvml = SimpleNamespace(
        NVMLError=NVMLError,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=names.__getitem__,
        nvmlDeviceGetTotalEnergyConsumption=lambda handle: millijoules[handle],
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setattr(machine.ctypes, "CDLL", lambda name: Driver())
    meter = machine.energy_meter()
    assert meter() == 2.5
    millijoules[4] += 500
    assert meter() == 2.5
    millijoules[5] += 500
    assert meter() == 3.0
    monkeypatch.setattr(Driver, "status", 100)
    assert machine.energy_meter() is None
    monkeypatch.setattr(Driver, "status", 0)
    nvml.nvmlDeviceGetTotalEnergyConsumption = unsupported
    assert machine.energy_meter() is None
    nvml.nvmlInit = unsupported
    assert machine.energy_meter() is None
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert machine.energy_meter() is None


def _environment():
    return os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
