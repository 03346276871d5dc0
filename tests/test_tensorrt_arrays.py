"""Arrays that are on the device already, given to a plan and taken from it without copies."""

import gc

import numpy as np
import pytest
import torch

from segmenter.errors import EngineError
from segmenter_engines import open_session
from segmenter_engines.sessions.device import LEGACY
from tests.fake_machine import H, W, machine_fixture, plan_fixture, shots  # noqa: F401 - fixtures
from tests.fake_tensorrt import labels_of, normalized, write_plan


class Held:
    """Memory of the device as NumPy can hold it."""

    def __init__(self, memory, values):
        self.memory = memory
        address = (memory.pointer, False)
        self.__array_interface__ = {"shape": values.shape, "typestr": values.dtype.str, "data": address, "version": 3}


class Cupy:
    """An array on the device as CuPy's: DLPack alone, which holds the memory."""

    def __init__(self, cuda, values, where=(1, 0)):
        self.where, self.streams = where, []
        self.shared = np.asarray(Held(cuda.array(values), values))

    def __dlpack_device__(self):
        return self.where

    def __dlpack__(self, stream=None):
        self.streams.append(stream)
        return self.shared.__dlpack__()


class Numba:
    """One that has `__cuda_array_interface__` alone."""

    def __init__(self, cuda, values, **changes):
        self.memory = cuda.array(values)
        self.__cuda_array_interface__ = {
            "shape": values.shape,
            "typestr": values.dtype.str,
            "data": (self.memory.pointer, False),
            "strides": None,
            "version": 3,
        } | changes


@pytest.mark.parametrize("kind", [Cupy, Numba])
@pytest.mark.parametrize("takes", ["normalized", "pixels"])
@pytest.mark.parametrize("own", [True, False])
def test_arrays_on_the_device_go_in_and_come_out_without_copies(machine, tmp_path, kind, takes, own):
    cuda = machine.cuda
    with open_session(write_plan(tmp_path / "m.plan", input=takes, outputs=("labels", "masks")), threads=1) as session:
        with cuda.current():
            stream = None if own else cuda.stream().handle
        copies = cuda.copies
        for seed in range(3):
            pixels = shots(2, seed=seed)
            images = kind(cuda, pixels if takes == "pixels" else normalized(pixels))
            labels = session.run_device(images, stream)
            assert session._runner.stream.handle != stream
            if kind is Cupy:
                assert images.streams == [stream or session._runner.stream.handle]
            assert labels.shape == (2, H, W)
            assert labels.dtype == np.uint8
            taken = np.from_dlpack(labels)
            assert taken.ctypes.data == labels.__cuda_array_interface__["data"][0]
            cuda._drain(LEGACY, cuda.queues[LEGACY].put)  # a consumer on the default stream
            assert np.array_equal(taken, labels_of(pixels, 5))
            assert np.array_equal(session(pixels), labels_of(pixels, 5))  # shares the scratch memory
            assert np.array_equal(torch.from_dlpack(labels).numpy(), taken)
        assert cuda.copies - copies == 3 * 3 + 2 * 3  # of the calls from the host: up, two down, and a graph's three
        assert np.array_equal(labels.numpy(), taken)
    # labels outlive their session
    assert np.array_equal(taken, labels_of(pixels, 5))


def test_labels_let_go_give_their_memory_back(machine, plan):
    with open_session(plan, threads=1) as session:
        before = len(machine.cuda.live)
        labels = session.run_device(Cupy(machine.cuda, normalized(shots(1))))
        array = np.from_dlpack(labels)
        capsule = labels.__dlpack__()
        del labels
        session.run_device(Cupy(machine.cuda, normalized(shots(1))))
        session(shots(1))
        session._runner._borrowed.clear()
        assert array.ctypes.data in machine.cuda.live
        del array
        assert len(machine.cuda.live) > before
        del capsule  # that nobody took


def test_images_are_held_until_they_have_been_read(machine, plan):
    with open_session(plan, threads=1) as session:
        labels = session.run_device(Cupy(machine.cuda, normalized(shots(1))))
        gc.collect()
        assert np.array_equal(labels.numpy(), labels_of(shots(1), 5))


def test_work_on_several_streams_takes_turns(machine, plan):
    cuda, results = machine.cuda, []
    with open_session(plan, threads=1) as session:
        with cuda.current():
            others = [cuda.stream().handle for _ in range(2)]
        for turn in range(6):
            pixels = shots(1, seed=turn)
            images = Cupy(cuda, normalized(pixels))
            results.append((session.run_device(images, [*others, None][turn % 3]), labels_of(pixels, 5)))
            del images
        assert np.array_equal(session(shots(2)), labels_of(shots(2), 5))
        last = session.run_device(Cupy(cuda, normalized(shots(1))), others[0])
    results.append((last, labels_of(shots(1), 5)))
    assert all(np.array_equal(labels.numpy(), expected) for labels, expected in results)


def test_a_consumer_that_overlooks_the_stream_still_finds_labels(machine, plan):
    cuda = machine.cuda
    with open_session(plan, threads=1) as session:
        labels = session.run_device(Cupy(cuda, normalized(shots(1))))
        pointer = labels.__cuda_array_interface__["data"][0]
        cuda._drain(LEGACY, cuda.queues[LEGACY].put)
        assert np.array_equal(cuda.bytes_at(pointer, H * W).reshape(1, H, W), labels_of(shots(1), 5))


def test_consumers_streams_wait_for_the_labels_and_makers_are_waited_for(machine, plan):
    cuda = machine.cuda
    with open_session(plan, threads=1) as session:
        with cuda.current():
            makers, consumers = cuda.stream(), cuda.stream()
        images = Numba(cuda, np.zeros((1, 3, H, W), np.float32), stream=makers.handle)
        values = normalized(shots(1))
        target = cuda.bytes_at(images.memory.pointer, values.nbytes)
        cuda.put(makers.handle, lambda: target.__setitem__(slice(None), values.reshape(-1).view(np.uint8)))
        labels = session.run_device(images)
        capsule = labels.__dlpack__(stream=consumers.handle)
        assert cuda.queues[makers.handle].done == 0
        with cuda.current():
            cuda.synchronize(consumers)
        address = labels.__cuda_array_interface__["data"][0]
        assert np.array_equal(cuda.bytes_at(address, H * W).reshape(1, H, W), labels_of(shots(1), 5))
        assert labels.__cuda_array_interface__["stream"] == session._runner.stream.handle
        del capsule
        put = [queue.put for queue in cuda.queues.values()]
        labels.__dlpack__(stream=-1)
        assert put == [queue.put for queue in cuda.queues.values()]
        with pytest.raises(BufferError, match="shared where they are"):
            labels.__dlpack__(copy=True)
        with pytest.raises(BufferError, match="shared where they are"):
            labels.__dlpack__(dl_device=(2, 1))


def test_arrays_that_do_not_fit_are_named(machine, plan):
    cuda, good = machine.cuda, normalized(shots(1))
    cases = [
        (good, "ndarray are not in CUDA memory", {"dlpack_type": 2}),
        (Cupy(cuda, good, (1, 3)), "Cupy are on device 3: this session is on device 0"),
        (Cupy(cuda, good.astype(np.float64)), r"images float64 .*: this plan takes float32 \[B, 3, H, W\]"),
        (Cupy(cuda, shots(1)), r"images uint8 \(1, 40, 56, 3\): this plan takes float32 \[B, 3, H, W\]"),
        (Cupy(cuda, good[0]), r"images float32 \(3, 40, 56\): this plan takes"),
        (Cupy(cuda, np.zeros((1, 3, H, W + 1), np.float32)), "image 40x57: this engine takes 40x56"),
        (Cupy(cuda, np.zeros((5, 3, H, W), np.float32)), "batch of 5: this engine takes at most 4"),
        (Numba(cuda, good, strides=(4, 4, 12, 12 * W)), "do not lie in C order without gaps"),
        (Numba(cuda, good, mask=object()), "have a mask"),
        (Numba(cuda, good, data=(good.ctypes.data, False)), "Numba are on the host: this session is on device 0"),
        ([1, 2], "images list: wanted an array on the device, with __dlpack__ or __cuda_array_interface__"),
    ]
    shifted = Numba(cuda, np.zeros((2, 3, H, W), np.float32), shape=good.shape)
    shifted.__cuda_array_interface__["data"] = (shifted.memory.pointer + 4, False)
    cases.append((shifted, "do not start at a multiple of 256 bytes"))
    with open_session(plan, threads=1) as session:
        for images, message, *changes in cases:
            cuda.dlpack_type = changes[0]["dlpack_type"] if changes else 1
            with pytest.raises(EngineError, match=message):
                session.run_device(images)
        with pytest.raises(EngineError, match="stream str: wanted a handle"):
            session.run_device(Cupy(cuda, good), "mine")
        one = Numba(cuda, good, strides=(0, 4 * H * W, 4 * W, 4))  # the stride of a single image says nothing
        assert np.array_equal(session.run_device(one).numpy(), labels_of(shots(1), 5))
    del cases, shifted, images, one


def test_a_plan_without_labels_gives_none_on_the_device(machine, tmp_path):
    with (
        open_session(write_plan(tmp_path / "m.plan", outputs=("masks",)), threads=1) as session,
        pytest.raises(EngineError, match="gives masks only; build it with labels among its --outputs"),
    ):
        session.run_device(Cupy(machine.cuda, normalized(shots(1))))


def test_an_enqueue_that_fails_on_the_device_is_named(machine, plan):
    with open_session(plan, threads=1) as session:
        machine.trt["tensorrt-rtx"].enqueue_fails = True
        with pytest.raises(EngineError, match="TensorRT-RTX: execution failed: enqueueV3: no room for it"):
            session.run_device(Cupy(machine.cuda, normalized(shots(1))))
