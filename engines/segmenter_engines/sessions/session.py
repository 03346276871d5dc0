"""What every engine is to its users: images in, labels out, and a description of what happened between."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from segmenter.config import whole_patches
from segmenter.errors import EngineError, SegmenterError, Unavailable
from segmenter.preprocess import affine
from segmenter_engines.graph import is_range
from segmenter_engines.manifest import PIXELS
from segmenter_engines.manifest_fields import MAX_SIDE
from segmenter_engines.sessions.spec import Spec

Mode = Literal["latency", "throughput"]


class Session(ABC):
    """An open engine. `session(images)` gives labels; use it as a context manager, from one thread at a time.

    An engine implements `_masks` (the network up to class masks on the patch grid) and may replace `_labels`. Between
    them the compiled routines of `segmenter_trt` normalise the images and turn masks into labels without ever holding
    logits at image resolution.
    """

    engine: str  # name in `ENGINES`
    modes: tuple[Mode, ...] = ("latency",)  # it can be opened in; throughput runs images of a batch beside each other
    mode: Mode = "latency"
    _closed = False

    def __init__(self, spec: Spec, threads: int) -> None:
        self.spec, self.threads = spec, threads
        self._scale, self._shift = affine(spec.preprocess)

    @property
    def name(self) -> str:
        """Engine and precision, such as `openvino-int8`."""
        return f"{self.engine}-{self.spec.precision}"

    @property
    def classes(self) -> tuple[str, ...]:
        return self.spec.classes

    @property
    def palette(self) -> tuple[tuple[int, int, int], ...]:
        return self.spec.palette

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Labels of images: uint8 RGB [B, H, W, 3] -> uint8 [B, H, W] (int16 when K > 256); [H, W, 3] -> [H, W].

        Raises EngineError for another dtype, shape, size or batch than the engine takes, and when it fails: scores that
        are no numbers, as of a network that overflows in 16 bits, or whatever its runtime complains of.
        """
        batch = self._checked(images)
        with self._named():
            labels = self._labels(self._feed(batch), batch.shape[1:3])
        return labels[0] if images.ndim == 3 else labels

    def logits(self, images: np.ndarray) -> np.ndarray:
        """Full-resolution logits of images: uint8 RGB [B, H, W, 3] -> float32 [B, K, H, W]; [H, W, 3] -> [K, H, W]."""
        batch = self._checked(images)
        with self._named():
            logits = self._upsampled(self._promised_masks(self._feed(batch)), batch.shape[1:3]).numpy()
        return logits[0] if images.ndim == 3 else logits

    def confidence(self, images: np.ndarray) -> np.ndarray:
        """How sure the network is of each label: uint8 RGB [B, H, W, 3] -> float32 [B, H, W]; [H, W, 3] -> [H, W].

        The softmax probability of the winning class, made from the class masks, whether or not the graph has such an
        output of its own. Raises EngineError as a call does.
        """
        batch = self._checked(images)
        with self._named():
            confidence = self._confidence(self._feed(batch), batch.shape[1:3])
        return confidence[0] if images.ndim == 3 else confidence

    def network(self, x: Tensor) -> Tensor:
        """Normalised float32 [B, 3, H, W] -> logits [B, K, H, W], on the CPU; what `segmenter.window.segment` calls.

        Raises EngineError for a graph that takes pixels.
        """
        return self._upsampled(self.masks(np.ascontiguousarray(x.numpy())), (x.shape[-2], x.shape[-1]))

    def masks(self, x: np.ndarray) -> np.ndarray:
        """The network alone: its input -> class masks float32 [B, K, h, w] on the patch grid.

        x: normalised float32 [B, 3, H, W], or uint8 [B, H, W, 3] for a graph that takes pixels. Raises EngineError for
        the other one.
        """
        wanted = np.uint8 if self.spec.input == PIXELS else np.float32
        if x.dtype != wanted:
            raise EngineError(
                f"{self.name}, {self.spec.model}: its network takes {self.spec.input}, {np.dtype(wanted)}, and got"
                f" {x.dtype}; pass those, or export again with another --input"
            )
        with self._named():
            # the caller's own: engines may write the next over theirs
            return np.array(self._promised_masks(x), order="C")

    def stream(self, images: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Labels of one image or batch after another, see `TensorRTSession` and `TritonSession`.

        Raises Unavailable where it is neither a plan nor the `triton` engine.
        """
        raise self._without_device("stream", "plans and the engine triton")

    def run_device(self, images: Any, stream: Any = None) -> Any:
        """Labels of images on the device, see `TensorRTSession`. Raises Unavailable where it is no plan."""
        raise self._without_device("run_device", "plans")

    def describe(self) -> dict[str, Any]:
        """Facts for people and reports: engine, precision, threads, sizes, where labels are made."""
        return {
            "engine": self.engine,
            "precision": self.spec.precision,
            "model": self.spec.model,
            "input": self.spec.input,
            "size": self.spec.size,
            "height": self.spec.height,
            "width": self.spec.width,
            "max_batch": self.spec.max_batch,
            "mode": self.mode,
            "threads": self.threads,
            "device": "cpu",
            "labels_by": "segmenter_trt.upsample_argmax",
        }

    def close(self) -> None:
        """Give back at once what it holds, the network, threads, device memory; it cannot be used then."""
        self._closed = True

    def __enter__(self) -> "Session":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @abstractmethod
    def _masks(self, x: np.ndarray) -> np.ndarray:
        """The network's input -> class masks float32 [B, K, h, w] of the padded image, C-contiguous."""

    def _promised_masks(self, x: np.ndarray) -> np.ndarray:
        """`_masks`, of the classes and the patch grid that what reads them goes by. Raises EngineError for others."""
        masks, P = self._masks(x), self.spec.patch_size
        H, W = x.shape[1:3] if self.spec.input == PIXELS else x.shape[2:4]
        wanted = (len(x), len(self.classes), -(-H // P), -(-W // P))
        if masks.shape != wanted:
            raise EngineError(
                f"{self.name}, {self.spec.model}: its masks of {len(x)} images of {H}x{W} are {list(masks.shape)}, its"
                f" manifest promises {list(wanted)}; make both again"
            )
        return masks

    def _labels(self, x: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        # here and below, because engines that do both on a GPU need no compiled routines
        from segmenter_trt import upsample_argmax

        return upsample_argmax(self._promised_masks(x), self._padded(*size), size, threads=self.threads)

    def _confidence(self, x: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        masks = torch.from_numpy(self._promised_masks(x))
        self._require_numbers(bool(masks.isfinite().all()))
        confidence = torch.empty(len(masks), *size)
        P, (h, _) = self.spec.patch_size, masks.shape[-2:]
        # a band of patches at a time, and one above and below for its edges: logits of an image are large
        for row in range(-(-size[0] // P)):
            top, above = row * P, min(row, 1)
            band = self._upsampled(masks[..., row - above : min(row + 2, h), :], (P * 3, size[1]))
            inner = band[..., above * P : above * P + min(P, size[0] - top), :]
            confidence[:, top : top + P] = inner.softmax(dim=1).amax(dim=1)
        return confidence.numpy()

    def _upsampled(self, masks: np.ndarray | Tensor, size: tuple[int, ...]) -> Tensor:
        """Class masks [B, K, h, w] -> logits [B, K, H, W] at most `size` (H, W) large."""
        masks, P = torch.as_tensor(masks), self.spec.patch_size
        padded = masks.shape[-2] * P, masks.shape[-1] * P
        return F.interpolate(masks, padded, mode="bilinear", align_corners=False)[..., : size[0], : size[1]]

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Turn what a runtime raises into EngineError naming the engine, which a closed session raises too."""
        self._require_open()
        try:
            yield
        except SegmenterError:
            raise
        except Exception as error:  # runtimes share no narrower base
            told = " ".join(str(error).split())[:300]
            raise EngineError(f"{self.name}, {self.spec.model}: {told or type(error).__name__}") from error

    def _require_numbers(self, finite: bool) -> None:
        """An argmax would label NaN as if nothing were wrong, where not `segmenter_trt` makes the labels."""
        if not finite:
            raise EngineError(
                f"{self.name}, {self.spec.model}: scores that are no numbers; fp16 ends at 65504, so try bf16 or fp32,"
                " and where fp32 does it too the weights are broken"
            )

    def _require_open(self) -> None:
        if self._closed:
            raise EngineError(f"{self.name}, {self.spec.model}: this session is closed; open it again")

    def _without_device(self, method: str, engines: str) -> Unavailable:
        return Unavailable(
            f"{self.name}, {self.spec.model}: {method} is for {engines} on a GPU; call session(images), or open a"
            " .plan, which `segmenter build` makes"
        )

    def _refuse(self, precision: str | None) -> None:
        """For engines whose artifact settles the precision.

        Raises EngineError when one is asked for.
        """
        if precision is not None:
            raise EngineError(
                f"precision {precision!r}: {self.engine} computes in what its artifact holds, {self.spec.precision};"
                " leave it out, or export another precision"
            )

    def _splitting(self, mode: Mode) -> Mode:
        """`mode`, for engines that know both. Raises EngineError where a batch cannot be split into its images."""
        if mode == "throughput" and self.spec.batch is not None and self.spec.batch[0] > 1:
            raise EngineError(
                f"mode throughput: runs images one by one, and {self.spec.model} takes at least {self.spec.batch[0]} at"
                f" once; export again with --batch 1 1 {self.spec.batch[2]}"
            )
        return mode

    def _feed(self, batch: np.ndarray) -> np.ndarray:
        """What the network is given of uint8 images [B, H, W, 3]."""
        return np.ascontiguousarray(batch) if self.spec.input == PIXELS else self._normalize(batch)

    def _normalize(self, batch: np.ndarray) -> np.ndarray:
        from segmenter_trt import normalize

        return normalize(
            np.ascontiguousarray(batch), self._scale, self._shift, batch.shape[1], batch.shape[2], self.threads
        )

    def _padded(self, H: int, W: int) -> tuple[int, int]:
        return whole_patches((H, W), self.spec.patch_size)

    def _checked(self, images: np.ndarray) -> np.ndarray:
        self._require_open()
        wanted = "wanted uint8 RGB [H, W, 3] or [B, H, W, 3]"
        if not isinstance(images, np.ndarray):
            raise EngineError(f"images are of type {type(images).__name__}: {wanted} of NumPy; pass np.asarray(image)")
        batch = images[None] if images.ndim == 3 else images
        if images.dtype != np.uint8 or batch.ndim != 4 or batch.shape[3] != 3:
            raise EngineError(f"images {images.dtype} {images.shape}: {wanted}")
        if not batch.shape[0]:
            raise EngineError(f"images {images.dtype} {images.shape}: an empty batch; pass at least one image")
        size = (batch.shape[1], batch.shape[2])
        if min(size) < 1:
            raise EngineError(f"image {size[0]}x{size[1]} has no pixels")
        self._require_size(size)
        self._require_batch(batch.shape[0])
        return batch

    def _require_size(self, size: tuple[int, int]) -> None:
        spans = self.spec.height, self.spec.width
        if all(span is None or span[0] <= side <= span[2] for side, span in zip(size, spans, strict=True)):
            return
        takes, flags = [], []
        for name, side, span in zip(("height", "width"), size, spans, strict=True):
            assert span is not None  # an artifact says both or neither
            least, usual, most = span
            takes.append(f"{least} to {most}" if is_range(span) else f"{usual}")
            wider = f"{min(least, side)} {usual} {max(most, side)}" if is_range(span) else f"{side}"
            flags.append(f"--{name} {wider}")
        between = " by " if any(" " in side for side in takes) else "x"
        # less than a patch, and more than a manifest holds, is what no export takes
        exported = self.spec.patch_size <= min(size) and max(size) <= MAX_SIDE
        again = "" if not exported else f", or export again with {' '.join(flags)}"
        raise EngineError(f"image {size[0]}x{size[1]}: this engine takes {between.join(takes)}; resize it{again}")

    def _require_batch(self, count: int) -> None:
        if self.spec.batch is None:
            return
        least, _, most = self.spec.batch
        if count > most:
            raise EngineError(f"batch of {count}: this engine takes at most {most}; split it")
        if count < least:
            raise EngineError(f"batch of {count}: this engine takes at least {least}; repeat an image to fill it")
