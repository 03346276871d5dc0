"""The memory segmenter_trt's sessions read and write in place: NumPy's, buffers' and tensors'; all else is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from segmenter_engines.folder import FP32
from tests.small_engines import H, W, pictures

segmenter_trt = pytest.importorskip("segmenter_trt", reason="segmenter_trt is not compiled; run pip install .")
pytest.importorskip("openvino", reason="openvino is not installed")


@pytest.fixture(scope="module")
def session(engine_folder: Path) -> Any:
    return segmenter_trt.Session(segmenter_trt.Engine(engine_folder / FP32, threads=1))


class OnlyDLPack:
    """What a tensor library without NumPy's protocols gives."""

    def __init__(self, tensor: torch.Tensor, device: tuple[int, int] = (1, 0)) -> None:
        self.tensor, self.device = tensor, device

    def __dlpack__(self, **options: Any) -> Any:
        return self.tensor.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device


class OldDLPack(OnlyDLPack):
    """The same before version 1 of the protocol."""

    def __dlpack__(self, stream: Any = None) -> Any:
        return self.tensor.__dlpack__(stream=stream)


def read_only(images: np.ndarray) -> np.ndarray:
    images = images.copy()
    images.flags.writeable = False
    return images


@pytest.mark.parametrize(
    "given",
    [
        read_only,
        lambda images: memoryview(images.tobytes()).cast("B", images.shape),
        torch.from_numpy,
        lambda images: OnlyDLPack(torch.from_numpy(images)),
        lambda images: OldDLPack(torch.from_numpy(images)),
        lambda images: OnlyDLPack(torch.from_numpy(np.concatenate((images, images)))[2:]),  # an offset into memory
    ],
    ids=["read-only", "buffer", "torch", "DLPack", "unversioned DLPack", "part of a tensor"],
)
def test_images_are_read_where_they_lie(session: Any, given: Any) -> None:
    images = pictures(2)
    np.testing.assert_array_equal(session.run(given(images)), session.run(images))


@pytest.mark.parametrize(
    "memory",
    [
        lambda: np.full((2, H, W), 99, np.uint8),
        lambda: torch.full((2, H, W), 99, dtype=torch.uint8),
        lambda: OnlyDLPack(torch.full((2, H, W), 99, dtype=torch.uint8)),
        lambda: memoryview(bytearray(2 * H * W)).cast("B", (2, H, W)),
    ],
    ids=["numpy", "torch", "DLPack", "buffer"],
)
def test_labels_are_written_where_the_caller_wants_them(session: Any, memory: Any) -> None:
    out = memory()
    assert session.run(pictures(2), out=out) is out
    written = out.tensor if isinstance(out, OnlyDLPack) else out
    np.testing.assert_array_equal(np.asarray(written), session.run(pictures(2)))


IMAGES = np.zeros((2, H, W, 3), np.uint8)
BAD_IMAGES = [
    pytest.param(IMAGES.astype(np.float32), "float32 .*wanted uint8 RGB", id="float32"),
    pytest.param(IMAGES.astype(">u2"), "wanted uint8 RGB", id="16 bits"),
    pytest.param(np.asfortranarray(IMAGES), "wanted contiguous memory", id="Fortran order"),
    pytest.param(IMAGES[:, :, ::-1], "wanted contiguous memory", id="mirrored"),
    pytest.param(torch.from_numpy(IMAGES).transpose(1, 2), "wanted contiguous memory", id="strided tensor"),
    pytest.param(IMAGES[..., :2], r"\[2, 56, 72, 2\]: wanted uint8 RGB", id="two channels"),
    pytest.param(IMAGES[0, 0], r"\[72, 3\]: wanted uint8 RGB", id="a row"),
    pytest.param(np.zeros((H + 1, W, 3), np.uint8), "image 57x72: this engine takes 56x72", id="another size"),
    pytest.param(IMAGES[:0], "batch of 0", id="no image"),
    pytest.param(np.zeros((1, 0, W, 3), np.uint8), "image 0x72", id="no pixel"),
    pytest.param(np.zeros((1 << 14, 1 << 13, 3), np.uint8), "image 16384x8192", id="huge"),
    pytest.param(IMAGES.tolist(), "this list is no array", id="list"),
    pytest.param(None, "this NoneType is no array", id="None"),
    pytest.param(b"abc", r"uint8 \[3\]: wanted", id="bytes"),
    pytest.param(torch.zeros(2, H, W, 3), "float32 .*wanted uint8 RGB", id="float tensor"),
    pytest.param(torch.zeros(2, H, W, 3, requires_grad=True), "does not give its memory", id="with a gradient"),
    pytest.param(OnlyDLPack(torch.zeros(1), (2, 0)), "lies on a device; wanted CPU memory", id="on a GPU"),
]


@pytest.mark.parametrize(("images", "message"), BAD_IMAGES)
def test_bad_images_are_refused(session: Any, images: Any, message: str) -> None:
    for call in (session.run, session.logits):
        with pytest.raises(segmenter_trt.InputError, match=message) as refused:
            call(images)
        assert "\n" not in str(refused.value)
        assert isinstance(refused.value, ValueError)
    np.testing.assert_array_equal(session.run(IMAGES)[0], session.run(IMAGES[0]))  # the session is as good as before


LABELS = np.zeros((2, H, W), np.uint8)
BAD_LABELS = [
    pytest.param(LABELS.astype(np.int16), r"out int16 .*wanted uint8 \[2, 56, 72\]", id="int16"),
    pytest.param(LABELS[0], r"out uint8 \[56, 72\]: wanted uint8 \[2, 56, 72\]", id="one"),
    pytest.param(read_only(LABELS), "is read-only", id="read-only"),
    pytest.param(b"abc", "wanted uint8", id="bytes"),
    pytest.param(np.zeros((2, H, 2 * W), np.uint8)[..., ::2], "wanted contiguous memory", id="strided"),
    pytest.param([], "this list is no array", id="list"),
    pytest.param(IMAGES.reshape(-1)[: LABELS.size].reshape(LABELS.shape), "shares memory with images", id="the images"),
]


@pytest.mark.parametrize(("out", "message"), BAD_LABELS)
def test_bad_memory_for_labels_is_refused(session: Any, out: Any, message: str) -> None:
    with pytest.raises(segmenter_trt.InputError, match=message):
        session.run(IMAGES, out=out)
