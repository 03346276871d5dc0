"""What every engine is to its users: images in, labels out, and a description of what happened between."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import segmenter_trt
from segmenter.config import Preprocess, SegmenterConfig
from segmenter.errors import EngineError, SegmenterError
from segmenter.preprocess import affine
from segmenter_engines.manifest import Manifest


@dataclass(frozen=True)
class Spec:
    """What a session needs to know of its artifact."""

    model: str
    precision: str
    patch_size: int
    size: tuple[int, int] | None  # (H, W) it takes; None for any
    max_batch: int | None  # None for any
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    preprocess: Preprocess

    @classmethod
    def of_config(cls, config: SegmenterConfig) -> "Spec":
        patch, preprocess = config.encoder.patch_size, config.preprocess
        return cls(config.name, "fp32", patch, None, None, config.classes, config.palette, preprocess)

    @classmethod
    def of_manifest(cls, manifest: Manifest) -> "Spec":
        return cls(
            manifest.model,
            manifest.precision,
            manifest.patch_size,
            manifest.fixed_size,
            manifest.batch[2],
            manifest.classes,
            manifest.palette,
            manifest.preprocess,
        )


class Session(ABC):
    """An open engine. `session(images)` gives labels; use it as a context manager, from one thread at a time.

    An engine implements `_masks` (the network up to class masks on the patch grid) and may replace `_labels`. Between
    them the compiled routines of `segmenter_trt` normalise the images and turn masks into labels without ever holding
    logits at image resolution.
    """

    engine: str  # name in `ENGINES`

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
            labels = self._labels(self._normalize(batch), batch.shape[1:3])
        return labels[0] if images.ndim == 3 else labels

    def logits(self, images: np.ndarray) -> np.ndarray:
        """Full-resolution logits of images: uint8 RGB [B, H, W, 3] -> float32 [B, K, H, W]; [H, W, 3] -> [K, H, W]."""
        logits = self.network(torch.from_numpy(self._normalize(self._checked(images)))).numpy()
        return logits[0] if images.ndim == 3 else logits

    def network(self, x: Tensor) -> Tensor:
        """Normalised float32 [B, 3, H, W] -> logits [B, K, H, W], on the CPU; what `segmenter.window.segment` calls."""
        with self._named():
            masks = torch.from_numpy(self._masks(np.ascontiguousarray(x.numpy())))
        (H, W), padded = x.shape[-2:], self._padded(x.shape[-2], x.shape[-1])
        return F.interpolate(masks, padded, mode="bilinear", align_corners=False)[..., :H, :W]

    def masks(self, x: np.ndarray) -> np.ndarray:
        """The network alone: normalised float32 [B, 3, H, W] -> class masks float32 [B, K, h, w] on the patch grid."""
        with self._named():
            return np.array(self._masks(x), order="C")  # the caller's own: engines may write the next over theirs

    def describe(self) -> dict[str, Any]:
        """Facts for people and reports: engine, precision, threads, sizes, where labels are made."""
        return {
            "engine": self.engine,
            "precision": self.spec.precision,
            "model": self.spec.model,
            "size": self.spec.size,
            "max_batch": self.spec.max_batch,
            "threads": self.threads,
            "device": "cpu",
            "labels_by": "segmenter_trt.upsample_argmax",
        }

    def close(self) -> None:  # noqa: B027 - most engines have nothing to give back
        """Give back what the engine holds; the session cannot be used afterwards."""

    def __enter__(self) -> "Session":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @abstractmethod
    def _masks(self, x: np.ndarray) -> np.ndarray:
        """Normalised float32 [B, 3, H, W] -> class masks float32 [B, K, h, w] of the padded image, C-contiguous."""

    def _labels(self, x: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        return segmenter_trt.upsample_argmax(self._masks(x), self._padded(*size), size, threads=self.threads)

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Turn what a runtime raises into EngineError naming the engine."""
        try:
            yield
        except SegmenterError:
            raise
        except Exception as error:  # runtimes share no narrower base
            told = " ".join(str(error).split())[:300]
            raise EngineError(f"{self.name}, {self.spec.model}: {told or type(error).__name__}") from error

    def _require_numbers(self, finite: bool) -> None:
        """For engines that make labels themselves: an argmax would label NaN as if nothing were wrong."""
        if not finite:
            raise EngineError(
                f"{self.name}, {self.spec.model}: scores that are no numbers; fp16 ends at 65504, so try bf16 or fp32,"
                " and where fp32 does it too the weights are broken"
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

    def _normalize(self, batch: np.ndarray) -> np.ndarray:
        return segmenter_trt.normalize(
            np.ascontiguousarray(batch), self._scale, self._shift, batch.shape[1], batch.shape[2], self.threads
        )

    def _padded(self, H: int, W: int) -> tuple[int, int]:
        P = self.spec.patch_size
        return H + -H % P, W + -W % P

    def _checked(self, images: np.ndarray) -> np.ndarray:
        batch = images[None] if images.ndim == 3 else images
        if images.dtype != np.uint8 or batch.ndim != 4 or batch.shape[3] != 3 or not batch.shape[0]:
            raise EngineError(f"images {images.dtype} {images.shape}: wanted uint8 RGB [H, W, 3] or [B, H, W, 3]")
        size = (batch.shape[1], batch.shape[2])
        if self.spec.size is not None and size != self.spec.size:
            height, width = self.spec.size
            raise EngineError(
                f"image {size[0]}x{size[1]}: this engine takes {height}x{width}; resize it, or export again with"
                f" --height {size[0]} --width {size[1]}"
            )
        if min(size) < 1:
            raise EngineError(f"image {size[0]}x{size[1]} has no pixels")
        if self.spec.max_batch is not None and batch.shape[0] > self.spec.max_batch:
            raise EngineError(f"batch of {batch.shape[0]}: this engine takes at most {self.spec.max_batch}; split it")
        return batch
