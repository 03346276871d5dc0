"""segmenter_trt on memory of a GPU, and sessions that are busy: through a stand-in for TensorRT."""

import ctypes
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.trt_backend import H, W, write_plan

segmenter_trt = pytest.importorskip("segmenter_trt", reason="segmenter_trt is not compiled; run pip install .")

CUDA = 2  # as DLPack numbers devices


@pytest.fixture
def session(backend_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("SEGMENTER_TRT_BACKENDS", str(backend_folder))
    return segmenter_trt.Session(segmenter_trt.Engine(write_plan(backend_folder)))


@pytest.fixture
def images() -> np.ndarray:
    images = np.random.default_rng(0).integers(0, 256, (2, H, W, 3), dtype=np.uint8)
    images[0, 0, 0, 1] = 0  # no delay
    return images


class CudaArray:
    """Memory of the host that says it lies on a GPU."""

    def __init__(self, array: np.ndarray, **changes: Any) -> None:
        self.array = array
        facts = {"shape": array.shape, "typestr": array.dtype.str, "data": (array.ctypes.data, False), "version": 3}
        self.__cuda_array_interface__ = facts | {"strides": None} | changes


class CudaTensor:
    """A CPU tensor whose DLPack capsule says it lies on a GPU."""

    def __init__(self, tensor: torch.Tensor, index: int = 0, *, versioned: bool = True) -> None:
        self.tensor, self.index, self.versioned, self.streams = tensor, index, versioned, list[Any]()

    def __dlpack_device__(self) -> tuple[int, int]:
        return CUDA, self.index

    def __dlpack__(self, *, stream: Any = None, **options: Any) -> Any:
        self.streams.append(stream)
        if not self.versioned:
            if options:
                raise TypeError("__dlpack__() got an unexpected keyword argument")
            options = {"max_version": None}
        capsule = self.tensor.__dlpack__(**options)
        name = b"dltensor_versioned" if self.versioned else b"dltensor"
        pointer = ctypes.pythonapi.PyCapsule_GetPointer
        pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
        # version, context, deleter and flags come before the tensor of a versioned one; its device after the address
        device = pointer(capsule, name) + (32 if self.versioned else 0) + 8
        ctypes.c_int32.from_address(device).value = CUDA
        ctypes.c_int32.from_address(device + 4).value = self.index
        return capsule


@pytest.mark.parametrize("wrap", [CudaArray, lambda array: CudaTensor(torch.from_numpy(array))])
def test_labels_are_enqueued_on_the_callers_stream(session: Any, images: np.ndarray, wrap: Any) -> None:
    for batch in (images, images[0]):
        labels = np.zeros(batch.shape[:-1], np.uint8)
        out = wrap(labels)
        assert session.run_async(wrap(batch), out, stream=0xABCD) is out
        assert labels.flat[0] == 0xCD
        np.testing.assert_array_equal(labels.flat[1:], batch[..., 0].flat[1:])


class TorchStream:
    cuda_stream = 7


class CuPyStream:
    ptr = 7


class PyCudaStream:
    handle = 7


class NvidiaStream:
    ptr = 9  # not asked for where the protocol is there

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, 7


@pytest.mark.parametrize("stream", [7, TorchStream(), CuPyStream(), PyCudaStream(), NvidiaStream()])
def test_streams_of_every_library(session: Any, images: np.ndarray, stream: Any) -> None:
    labels = np.zeros((2, H, W), np.uint8)
    session.run_async(CudaArray(images), CudaArray(labels), stream=stream)
    assert labels.flat[0] == 7


@pytest.mark.parametrize("stream", ["7", -1, 1 << 64, 7.5, object()])
def test_what_is_no_stream_is_refused(session: Any, images: np.ndarray, stream: Any) -> None:
    with pytest.raises(segmenter_trt.InputError, match=r"stream .*: wanted a stream of PyTorch, CuPy or PyCUDA"):
        session.run_async(CudaArray(images), CudaArray(np.zeros((2, H, W), np.uint8)), stream=stream)


@pytest.mark.parametrize("versioned", [True, False])
def test_the_exporter_is_told_the_stream(session: Any, images: np.ndarray, versioned: bool) -> None:
    given = CudaTensor(torch.from_numpy(images), versioned=versioned)
    out = CudaTensor(torch.zeros((2, H, W), dtype=torch.uint8), versioned=versioned)
    session.run_async(given, out, stream=5)
    session.run_async(given, out)
    assert given.streams[0] == 5
    assert given.streams[-1] == 1  # how DLPack calls the default stream: 0 is no stream there
    np.testing.assert_array_equal(out.tensor.numpy().flat[1:], images[..., 0].flat[1:])


def test_arrays_of_another_stream_are_refused(session: Any, images: np.ndarray) -> None:
    out = CudaArray(np.zeros((2, H, W), np.uint8))
    with pytest.raises(segmenter_trt.InputError, match="made on stream 9, and labels are asked for on 5"):
        session.run_async(CudaArray(images, stream=9), out, stream=5)
    session.run_async(CudaArray(images, stream=5), out, stream=5)
    session.run_async(CudaArray(images, stream=1), out)
    session.run_async(CudaArray(images, stream=None), out, stream=5)


LABELS = np.zeros((2, H, W), np.uint8)
IMAGES = np.zeros((2, H, W, 3), np.uint8)
BAD = [
    pytest.param(IMAGES, LABELS, "images: this ndarray does not lie on a GPU", id="host images"),
    pytest.param(torch.from_numpy(IMAGES), LABELS, "images: this Tensor does not lie on a GPU", id="host tensor"),
    pytest.param(CudaArray(IMAGES), LABELS, "out: this ndarray does not lie on a GPU", id="host labels"),
    pytest.param(CudaArray(IMAGES, typestr="<f4"), None, "images float32 .*wanted uint8 RGB", id="float32"),
    pytest.param(CudaArray(IMAGES, typestr="<fx"), None, "typestr that is none", id="no type"),
    pytest.param(CudaArray(IMAGES, typestr="|u0"), None, "wanted uint8 RGB", id="type of no bytes"),
    pytest.param(CudaArray(IMAGES, shape=(1 << 62, 1 << 62, 8, 3)), None, "wanted", id="no such size"),
    pytest.param(CudaArray(IMAGES, data="here"), None, "does not describe its memory", id="no address"),
    pytest.param(CudaArray(IMAGES, strides=(1, 2, 3, 4)), None, "wanted contiguous memory", id="strided"),
    pytest.param(CudaArray(IMAGES, strides=(H * W * 3, W * 3, 3, 1)), None, None, id="strides of contiguous memory"),
    pytest.param(CudaArray(IMAGES), CudaArray(LABELS[0]), r"wanted uint8 \[2, 4, 6\]", id="shape of labels"),
    pytest.param(CudaArray(IMAGES), CudaArray(LABELS, data=(LABELS.ctypes.data, True)), "read-only", id="read-only"),
    pytest.param(CudaArray(IMAGES[:, :2]), CudaArray(LABELS[:, :2]), "image 2x6: this engine takes 4x6", id="size"),
    pytest.param(
        CudaTensor(torch.from_numpy(IMAGES), 1), None, "lies on GPU 1, and this engine runs on GPU 0", id="GPU"
    ),
]


@pytest.mark.parametrize(("given", "out", "message"), BAD)
def test_bad_device_memory_is_refused(session: Any, given: Any, out: Any, message: str | None) -> None:
    out = CudaArray(LABELS) if out is None else out
    if message is None:
        session.run_async(given, out)
        return
    with pytest.raises(segmenter_trt.InputError, match=message):
        session.run_async(given, out)


def test_device_memory_is_not_read_by_run(session: Any, images: np.ndarray) -> None:
    for given in (CudaArray(images), CudaTensor(torch.from_numpy(images))):
        with pytest.raises(segmenter_trt.InputError, match=r"lies on a .*wanted CPU memory.*use run_async"):
            session.run(given)


def test_an_engine_on_the_cpu_has_no_device_memory(engine_folder: Path) -> None:
    pytest.importorskip("openvino", reason="openvino is not installed")
    session = segmenter_trt.Session(segmenter_trt.Engine(engine_folder / "model.fp32.onnx", threads=1))
    _, height, _ = session.describe()["height"]
    _, width, _ = session.describe()["width"]
    image, labels = np.zeros((height, width, 3), np.uint8), np.zeros((height, width), np.uint8)
    with pytest.raises(segmenter_trt.Unavailable):
        session.run_async(CudaArray(image), CudaArray(labels))


def test_labels_only_engines_give_no_masks(session: Any, images: np.ndarray) -> None:
    for call in (session.masks, session.logits):
        with pytest.raises(segmenter_trt.InputError, match="gives no masks"):
            call(images)


def test_freeing_a_session_leaves_the_interpreter_to_others(
    backend_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEGMENTER_TRT_BACKENDS", str(backend_folder))
    sessions = [segmenter_trt.Session(segmenter_trt.Engine(write_plan(backend_folder)))]
    slow = np.zeros((H, W, 3), np.uint8)
    slow[0, 0, 1] = 50  # half a second
    sessions[0].run(slow)
    freeing = threading.Thread(target=sessions.clear)
    freeing.start()
    turns = 0
    while freeing.is_alive():
        time.sleep(0.01)
        turns += 1
    assert turns > 5


@pytest.fixture
def busy(session: Any) -> Iterator[threading.Thread]:
    """A thread whose call of the session takes a second."""
    slow = np.zeros((H, W, 3), np.uint8)
    slow[0, 0, 1] = 100
    thread = threading.Thread(target=session.run, args=(slow,))
    thread.start()
    time.sleep(0.2)
    yield thread
    thread.join()


def test_a_session_in_use_refuses_a_second_call(session: Any, images: np.ndarray, busy: threading.Thread) -> None:
    labels = CudaArray(np.zeros((2, H, W), np.uint8))
    for call in (session.run, lambda x: session.run_async(CudaArray(x), labels)):
        with pytest.raises(segmenter_trt.RunError, match="in use by another call"):
            call(images)
    assert busy.is_alive()  # the calls above did not wait: the interpreter was free
    busy.join()
    np.testing.assert_array_equal(session.run(images), images[..., 0])
