"""Versions of one graph on the same labelled images: mIoU, and how far their class masks are from the original's."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

import segmenter_trt
from segmenter.cores import usable_cores
from segmenter.datasets import SegmentationDataset
from segmenter.datasets.fitted import Fitted
from segmenter.errors import EngineError
from segmenter.evaluation import require_same_classes
from segmenter.metrics import ConfusionMatrix
from segmenter.preprocess import normalize
from segmenter_engines.cut import cut
from segmenter_engines.manifest import Manifest, require_checkpoint
from segmenter_engines.recipe import graph_input
from segmenter_engines.sessions import open_session
from segmenter_engines.sessions.onnxruntime import session_options
from segmenter_engines.widen import widened


@dataclass(frozen=True)
class Score:
    """What a version of a graph is worth."""

    miou: float
    sqnr_db: float  # of the class masks against the original's: 10 log10 of signal over noise power


class Judge:
    """Runs versions of a graph in ONNX Runtime, 16-bit ones in float32, on a fixed set of labelled images.

    The original is the graph as exported, or the checkpoint in PyTorch where one is given. `reference` is its mIoU.
    Raises ConfigError when the images have other classes, EngineError when the checkpoint is not the graph's, or there
    are no images.
    """

    def __init__(
        self,
        source: Path,
        base: Manifest,
        samples: SegmentationDataset,
        *,
        checkpoint: Path | None = None,
        threads: int | None = None,
    ) -> None:
        require_same_classes(base.classes, samples, source)
        if not len(samples):
            raise EngineError("no images to judge on; pass at least one")
        self.base, self.samples, self.threads = base, Fitted(samples, base.size), threads or usable_cores()
        self._masks: list[np.ndarray] = []
        if checkpoint is None:
            self.reference = self._run(onnx.load(source), range(len(self)), keep=True).miou
        else:
            require_checkpoint(source, base, checkpoint)
            self.reference = self._run_checkpoint(checkpoint)

    def __len__(self) -> int:
        return len(self.samples)

    def __call__(self, model: onnx.ModelProto, images: int = 0) -> Score:
        """What a version is worth, on at most `images` of the images, spread evenly; 0 for all."""
        step = max(len(self) // images, 1) if images else 1
        return self._run(model, range(0, len(self), step)[: images or None], keep=False)

    def _run(self, model: onnx.ModelProto, chosen: Sequence[int], keep: bool) -> Score:
        wide = widened(model)
        cut(wide.graph, ("masks",))
        fp8 = any(tensor.data_type == onnx.TensorProto.FLOAT8E4M3FN for tensor in wide.graph.initializer)
        options = session_options(self.threads, "fp8" if fp8 else "")
        session = onnxruntime.InferenceSession(wide.SerializeToString(), options, providers=["CPUExecutionProvider"])
        feed = session.get_inputs()[0].name
        matrix, signal, noise = self._matrix(), 0.0, 0.0
        for index in chosen:
            sample = self.samples[index]
            (masks,) = session.run(["masks"], {feed: graph_input(sample.image, self.base)})
            masks = masks[:1]  # the rest is the same image again
            if keep:
                self._masks.append(masks)
            matrix.update(self._labels(masks), sample.labels)
            signal += float(np.square(self._masks[index], dtype=np.float64).sum())
            noise += float(np.square(masks - self._masks[index], dtype=np.float64).sum())
        return Score(matrix.miou_in_truth, 10.0 * float(np.log10(signal / noise)) if noise else float("inf"))

    def _run_checkpoint(self, checkpoint: Path) -> float:
        matrix = self._matrix()
        with open_session(checkpoint, "eager", threads=self.threads) as session:
            for index in range(len(self.samples)):
                sample = self.samples[index]
                self._masks.append(session.masks(normalize(sample.image, self.base.preprocess).numpy()))
                matrix.update(self._labels(self._masks[-1]), sample.labels)
        return matrix.miou_in_truth

    def _matrix(self) -> ConfusionMatrix:
        return ConfusionMatrix(len(self.samples.classes), self.samples.ignore)

    def _labels(self, masks: np.ndarray) -> np.ndarray:
        (H, W), P = self.base.size, self.base.patch_size
        labels: np.ndarray = segmenter_trt.upsample_argmax(
            masks, (H + -H % P, W + -W % P), (H, W), threads=self.threads
        )
        return labels[0]
