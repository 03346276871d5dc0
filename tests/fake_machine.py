"""A machine with a GPU and both TensorRT runtimes, all of them stand-ins, and a plan for it."""

import gc

import pytest

from segmenter_engines.sessions import plan as plans
from segmenter_engines.sessions import tensorrt as module
from tests.fake_cuda import FakeCuda
from tests.fake_tensorrt import VERSIONS, FakeTensorRT, write_plan
from tests.small_engines import pictures

H, W = 40, 56


class Machine:
    """One with a GPU and both runtimes, all of them fake."""

    def __init__(self, monkeypatch):
        self.cuda = FakeCuda()
        self.trt = {engine: FakeTensorRT(self.cuda, engine) for engine in VERSIONS}
        monkeypatch.setattr(module, "require_driver", lambda engine: None)
        monkeypatch.setattr(module, "open_device", lambda engine, libraries: self.cuda)
        monkeypatch.setattr(plans, "tensorrt", self.trt.__getitem__)
        monkeypatch.setattr(plans, "builder_log", lambda engine: self.trt[engine].log)


@pytest.fixture(name="machine")
def machine_fixture(monkeypatch, tmp_path):
    """Afterwards nothing may be left, and nothing may have been touched that was not there."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    machine = Machine(monkeypatch)
    yield machine
    if machine.cuda.live:
        gc.collect()
    assert machine.cuda.faults == []
    assert machine.cuda.live == {}
    assert plans._OPEN == {}
    assert all(trt.alive == 0 for trt in machine.trt.values())


@pytest.fixture(name="plan")
def plan_fixture(tmp_path):
    return write_plan(tmp_path / "model.fp16.plan")


def shots(count, height=H, width=W, seed=0):
    return pictures(count, height, width, seed)
