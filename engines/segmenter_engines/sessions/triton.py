"""Our Triton kernels: uint8 images in, labels out, all between them one CUDA graph a shape."""

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import triton
from torch import Tensor

import segmenter_kernels
from segmenter import load_model
from segmenter.errors import EngineError, Unavailable
from segmenter.ops import label_dtype
from segmenter.preprocess import normalize
from segmenter.window import anchors, segment
from segmenter_engines.sessions.cuda_graph import GraphLane, Graphs
from segmenter_engines.sessions.eight_bits import KINDS, quantize_blocks
from segmenter_engines.sessions.overlap import overlapped
from segmenter_engines.sessions.session import Session
from segmenter_engines.sessions.spec import Spec
from segmenter_engines.sessions.torch_threads import lowered
from segmenter_kernels import tiles
from segmenter_kernels.checks import INTERPRETED
from segmenter_kernels.quantize import float8_supported

COPIERS = 4
PRECISIONS = {"fp16": torch.float16, "bf16": torch.bfloat16, "int8": torch.float16, "fp8": torch.float16}


class TritonSession(Session):
    """A checkpoint on the current CUDA device, in fp16 (the default), bf16, or fp16 with its blocks in int8 or fp8.

    It stays on that device, whichever is current in the thread that calls.

    Triton's interpreter (TRITON_INTERPRET=1) runs it on the CPU, slowly and without graphs, for tests: by itself it
    cannot round to int8 and is wrong in bf16, which the project's tests mend.
    """

    engine = "triton"

    def __init__(self, path: Path, threads: int, precision: str | None = None) -> None:
        precision = precision or "fp16"
        if precision not in PRECISIONS:
            raise EngineError(f"precision {precision!r}: triton knows {', '.join(PRECISIONS)}; pass one of them")
        self._device, self._dtype = _device(precision), PRECISIONS[precision]
        model = load_model(path, ops=segmenter_kernels)
        model.fold_layer_scale()
        if precision in KINDS:
            quantize_blocks(model, KINDS[precision], self._device, self._dtype)
        self._model: Any = model.to(self._device, self._dtype).requires_grad_(False)
        super().__init__(replace(Spec.of_config(model.config), precision=precision), threads)
        self._run: Any = _graphs(self._forward)

    @torch.inference_mode()
    def __call__(self, images: np.ndarray) -> np.ndarray:
        labels = self._through(self._run, self._checked(images))
        return labels[0] if images.ndim == 3 else labels

    def stream(self, images: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Labels of images or batches, in their order, while later ones are being uploaded and computed.

        An error, of `images` or of the engine, comes after the labels of what came before it, and ends the stream.
        Without graphs, as in Triton's interpreter, they are calls.
        """
        self._require_open()
        if not isinstance(self._run, Graphs):
            for image in images:
                yield self(image)
            return
        lanes = self._run.lanes()
        try:
            yield from overlapped(images, lanes, self._submit, self._arrived)
        finally:
            for lane in lanes:
                lane.free()

    @torch.inference_mode()
    def sliding_window(self, image: np.ndarray, *, window: int, stride: int = 0, batch: int = 1) -> np.ndarray:
        """Labels of one image of any size, through square windows: uint8 RGB [H, W, 3] -> [H, W], as those of a call.

        The image goes to the device once and its labels alone come back: windows are cut there, and their logits
        averaged. An image smaller than the window is enlarged, and its logits resized, on the host.
        window: side in pixels; stride: pixels from one to the next, 0 for the window's side; batch: windows in one call
        of the network. Raises EngineError as a call does, and for windows that leave gaps.
        """
        stride, images = stride or window, self._checked(image)
        if image.ndim != 3 or not 0 < stride <= window or batch < 1:
            raise EngineError(
                f"image {image.shape}, window {window}, stride {stride}, batch {batch}: wanted one image [H, W, 3], a"
                " stride from 1 to the window, and windows in batches of 1 or more"
            )
        size = image.shape[0], image.shape[1]
        if min(size) < window:
            view = normalize(image, self.spec.preprocess)
            probabilities = segment(self.network, [(view, False)], size, window, stride, batch)
            self._require_numbers(bool(probabilities.isfinite().all()))
            return probabilities.argmax(0).to(label_dtype(len(self.classes))).numpy()
        # no graph: of pictures of many sizes hardly any would be launched twice
        return self._through(partial(self._windows, window=window, stride=stride, batch=batch), images)

    def _through(self, run: Any, images: np.ndarray) -> np.ndarray:
        with self._copying(), self._named():
            return self._finite(*run(torch.from_numpy(np.ascontiguousarray(images))))

    @contextmanager
    def _named(self) -> Iterator[None]:
        with super()._named(), self._current():
            yield

    def _current(self) -> AbstractContextManager[Any]:
        """Kernels and memory are of the current device, and a thread has one of its own."""
        return nullcontext() if self._device.type == "cpu" else torch.cuda.device(self._device)

    def _copying(self) -> AbstractContextManager[None]:
        """Few threads copy pixels and labels: more are no quicker than the bus, and spin between calls."""
        return lowered(min(self.threads, COPIERS))

    @torch.inference_mode()
    def _submit(self, lane: GraphLane, image: np.ndarray) -> None:
        images = self._checked(image)
        with self._copying(), self._named():
            lane.submit(torch.from_numpy(np.ascontiguousarray(images)))

    @torch.inference_mode()
    def _arrived(self, lane: GraphLane, image: np.ndarray) -> np.ndarray:
        with self._copying(), self._named():
            labels = self._finite(*lane.collect())
        return labels[0] if image.ndim == 3 else labels

    def _finite(self, labels: Tensor, finite: Tensor) -> np.ndarray:
        self._require_numbers(bool(finite))
        return labels.numpy()

    @torch.inference_mode()
    def _masks(self, x: np.ndarray) -> np.ndarray:
        masks: Tensor = self._model.masks(torch.from_numpy(x).to(self._device, self._dtype))
        return masks.float().contiguous().cpu().numpy()

    def _forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 [B, H, W, 3] on the device -> labels [B, H, W], and whether every score is a number."""
        masks, size = self._scores(images), (images.shape[1], images.shape[2])
        return self._label(masks, self._padded(*size), size), masks.isfinite().all()

    def _windows(self, images: Tensor, window: int, stride: int, batch: int) -> tuple[Tensor, Tensor]:
        """uint8 [1, H, W, 3] -> labels [H, W], and whether every score is a number, both on the host."""
        H, W = images.shape[1:3]
        images = images.to(self._device)
        starts = [(y, x) for y in anchors(H, window, stride) for x in anchors(W, window, stride)]
        cut = [images[0, y : y + window, x : x + window] for y, x in starts]
        masks = torch.cat([self._scores(torch.stack(cut[at : at + batch])) for at in range(0, len(cut), batch)])
        padded = self._padded(window, window)
        labels = segmenter_kernels.merge_windows(masks, (H, W), window, stride, padded)
        return labels.cpu(), masks.isfinite().all().cpu()

    def _scores(self, images: Tensor) -> Tensor:
        """uint8 [B, H, W, 3] on the device -> class masks [B, K, h, w] of the padded images."""
        encoder, (H, W) = self._model.encoder, images.shape[1:3]
        padded, P, preprocess = self._padded(H, W), self.spec.patch_size, self.spec.preprocess
        grid, proj = (padded[0] // P, padded[1] // P), encoder.patch_embed.proj
        assert proj.bias is not None
        x = segmenter_kernels.patch_embed(
            images, proj.weight, proj.bias, *encoder.embedding(grid), mean=preprocess.mean, std=preprocess.std
        )
        return self._model.masks_of(x, grid)

    def _label(self, masks: Tensor, padded: tuple[int, int], size: tuple[int, int]) -> Any:
        return segmenter_kernels.upsample_argmax(masks, padded, size)

    def describe(self) -> dict[str, Any]:
        return super().describe() | {
            "device": "interpreter" if INTERPRETED else torch.cuda.get_device_name(self._device),
            "labels_by": "segmenter_kernels.upsample_argmax",
        }

    def close(self) -> None:
        super().close()
        if isinstance(self._run, Graphs):
            self._run.close()
        # each holds the other, and memory of the device
        self._model = self._run = None


def _graphs(function: Callable[..., tuple[Tensor, ...]]) -> Any:
    """The function as a CUDA graph a shape, where there are graphs."""
    return function if INTERPRETED else Graphs(function)


def _device(precision: str) -> torch.device:
    """Where kernels run. Raises Unavailable where they cannot."""
    if INTERPRETED:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise Unavailable("engine triton: no CUDA device here; use onnxruntime or openvino, or a machine with a GPU")
    device = torch.device("cuda", torch.cuda.current_device())
    try:
        architecture = tiles.architecture_of(device)
        if precision == "fp8":
            float8_supported(precision, device)
    except ValueError as error:
        raise Unavailable(f"engine triton: {error}") from error
    if not tiles.fenced(architecture):
        warnings.warn(
            f"engine triton: Triton {triton.__version__} leaves out fences that Hopper's memory model asks for"
            " (triton-lang/triton#9610). Labels were right in every test on an H100; Triton 3.7.1 and later have them",
            RuntimeWarning,
            stacklevel=4,
        )
    return device
