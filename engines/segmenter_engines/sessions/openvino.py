"""OpenVINO on the CPU: fp32 and int8 graphs, in float32 or, where the CPU has it, bfloat16."""

import ctypes
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any
from weakref import WeakSet

import numpy as np
import openvino

from segmenter.cores import scheduled_cores
from segmenter.cpu import cpu_flags, int8_saturates
from segmenter.errors import EngineError, Unavailable
from segmenter_engines.manifest import read_manifest
from segmenter_engines.sessions.graph_promises import Sides, require_native, require_promised
from segmenter_engines.sessions.session import Mode, Session
from segmenter_engines.sessions.spec import Spec
from segmenter_engines.verified import passed_saturating

_HINTS = {"fp32": "f32", "bf16": "bf16"}
_lock = Lock()
_cores: list[tuple[int, openvino.Core]] = []  # with the process that made it
_sessions: WeakSet["OpenVinoSession"] = WeakSet()


def _keep_for_ever() -> None:
    """In a child of fork(): what is OpenVINO's would wait, when it goes, for threads that the child has not.

    Nor has it the thread that may have held the lock.
    """
    global _lock
    _lock = Lock()
    for thing in (_cores, *((session._request, session._queue) for session in _sessions)):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_keep_for_ever)


def shared_core() -> openvino.Core:
    """The process's one core, which never goes.

    A core leads the signals of the thread that first asks it for the CPU (a property, a compilation) to a stack of its
    own and unmaps that when it goes. Of two cores that do not go in the reverse of the order they came in, the thread
    keeps an unmapped one, and its next signal (Ctrl-C) ends the process with a segmentation fault: so it is in OpenVINO
    2026.4.
    Raises Unavailable in a child of fork() whose parent had it: OpenVINO would wait for threads that the child has not.
    """
    with _lock:
        if not _cores:
            _cores.append((os.getpid(), openvino.Core()))
        opener, core = _cores[0]
    if opener != os.getpid():
        raise Unavailable(
            "engine openvino: this process was forked from one that had opened OpenVINO, whose threads it has not; open"
            " engines after the fork alone, or start processes by spawn"
        )
    return core


class OpenVinoSession(Session):
    """An exported graph in OpenVINO, cut after its class masks.

    precision: what the floating-point layers compute in, fp32 or bf16. None means fp32 for an fp32 graph and, for an
    int8 one, bf16 where the CPU has native instructions for it. mode: `latency` runs a batch as one request;
    `throughput` makes a request of each image, as many at once as OpenVINO finds best.
    """

    engine = "openvino"
    modes = ("latency", "throughput")

    def __init__(self, path: Path, threads: int, precision: str | None = None, mode: Mode = "latency") -> None:
        manifest = read_manifest(path)
        require_native(path, manifest, "OpenVINO")
        if precision not in (None, *_HINTS):
            raise EngineError(f"precision {precision!r}: OpenVINO computes in {' or '.join(_HINTS)} on a CPU")
        core = shared_core()
        native = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if precision == "bf16" and not native:
            raise Unavailable("openvino in bf16: this CPU has no bfloat16 instructions; use fp32 or int8")
        self._floats = precision or ("bf16" if manifest.precision == "int8" and native else "fp32")
        spec = Spec.of_manifest(manifest)
        super().__init__(spec, threads)
        self.mode = self._splitting(mode)
        self._version = openvino.get_version().split("-")[0]
        try:
            model = core.read_model(path)
            model = openvino.Model([model.output("masks")], model.get_parameters())
            require_promised(path, manifest, _sides(model.input(0)), _sides(model.output(0)))
            options: dict[str, Any] = {
                "INFERENCE_NUM_THREADS": threads,
                "INFERENCE_PRECISION_HINT": _HINTS[self._floats],
                "PERFORMANCE_HINT": mode.upper(),
            }
            if threads < scheduled_cores():
                # it keeps them on the first cores, which are every process's first: the system spreads them
                options["ENABLE_CPU_PINNING"] = False
            compiled = core.compile_model(model, "CPU", options)
        except RuntimeError as error:
            raise EngineError(f"{path}: OpenVINO {self._version} cannot open it: {error}") from error
        saturates = manifest.precision == "int8" and int8_saturates(cpu_flags())
        if saturates and not passed_saturating(manifest, self.name):
            warnings.warn(
                f"{path}: this CPU has no VNNI, so OpenVINO may overflow where large activations meet large weights;"
                " run `segmenter verify` on this machine, or take the onnxruntime engine, which sums exactly",
                RuntimeWarning,
                stacklevel=2,
            )
        self._in_use = Lock()
        self._request: Any = compiled.create_infer_request()
        self._failed = False  # a failed call leaves some of OpenVINO's layers at its shapes, others at those before
        self._queue: Any = openvino.AsyncInferQueue(compiled) if mode == "throughput" else None
        _sessions.add(self)

    @property
    def name(self) -> str:
        return f"openvino-{'bf16' if self.spec.precision == 'fp32' and self._floats == 'bf16' else self.spec.precision}"

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Refuse what comes while another call runs: it would compute, and write masks, in that one's request."""
        if not self._in_use.acquire(blocking=False):
            raise EngineError(
                f"{self.name}, {self.spec.model}: in use by another call; one session serves one thread, open another"
            )
        try:
            yield
        finally:
            self._in_use.release()

    @contextmanager
    def _named(self) -> Iterator[None]:
        shared_core()  # which raises where nothing may be computed
        with self._alone(), super()._named():  # until the call has read its masks
            yield

    def _masks(self, x: np.ndarray) -> np.ndarray:
        if self._failed:
            raise EngineError(
                "OpenVINO: a call failed before and has left its graph half changed; open the session again"
            )
        try:
            return self._requested(x) if self._queue is None or len(x) == 1 else self._queued(self._queue, x)
        except Exception:
            self._failed = True
            raise

    def _requested(self, x: np.ndarray) -> np.ndarray:
        # with one thread, `infer` says that all went well where it did not (2026.4); waiting does not
        self._request.start_async([openvino.Tensor(x, shared_memory=True)])
        self._request.wait()
        # the runtime's own buffer, read before the next call and never handed out
        masks: np.ndarray = self._request.get_output_tensor(0).data
        return masks

    def _queued(self, queue: Any, x: np.ndarray) -> np.ndarray:
        rows: list[np.ndarray] = [x[:0]] * len(x)

        def keep(request: Any, index: int) -> None:
            rows[index] = request.get_output_tensor(0).data.copy()

        queue.set_callback(keep)
        try:
            for index in range(len(x)):
                queue.start_async([openvino.Tensor(x[index : index + 1], shared_memory=True)], index)
        finally:
            queue.wait_all()  # also where one cannot be started: the others read the images, which go with this call
        return np.concatenate(rows)

    def close(self) -> None:
        """Give back at once what it holds; it cannot be used then. Raises EngineError while a call runs."""
        with self._alone():
            super().close()
            # what was compiled goes with the last of these
            self._request = self._queue = None

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"runtime": f"openvino {self._version}", "floats": self._floats}


def _sides(port: Any) -> Sides:
    return [side.get_length() if side.is_static else None for side in port.partial_shape]
