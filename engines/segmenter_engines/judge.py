"""Versions of one graph on the same labelled images: mIoU, and how far their class masks are from the original's."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

import segmenter_trt
from segmenter.config import whole_patches
from segmenter.cores import usable_cores
from segmenter.datasets import Sample, SegmentationDataset, Subset
from segmenter.datasets.fitted import Fitted
from segmenter.datasets.sample import spread
from segmenter.errors import EngineError
from segmenter.evaluation import require_same_classes
from segmenter.metrics import ConfusionMatrix, sqnr_db
from segmenter.preprocess import normalize
from segmenter_engines.cut import cut
from segmenter_engines.manifest import Manifest, require_checkpoint
from segmenter_engines.recipe import graph_input
from segmenter_engines.sampling import drop_error
from segmenter_engines.sessions import open_session
from segmenter_engines.sessions.onnxruntime import session_options
from segmenter_engines.widen import widened


@dataclass(frozen=True)
class Score:
    """What a version of a graph is worth."""

    miou: float
    sqnr_db: float  # of the class masks against the original's: 10 log10 of signal over noise power
    drop_error: float | None = None  # standard error of what it loses of the original's mIoU; None for one image


def judge_samples(samples: SegmentationDataset, split: str, count: int, taken: Collection[int]) -> Subset:
    """What versions are judged on: at most `count` samples of a split, 0 for all, of those calibration has not `taken`.

    Raises EngineError where it has taken all.
    """
    chosen = Subset(samples, count, without=taken)
    if taken and not len(chosen):
        raise EngineError(
            f"--judge-split {split}: calibration takes all of its {len(samples)} images; lower --images to leave some,"
            " or judge on another split"
        )
    return chosen


class Judge:
    """Runs versions of a graph in ONNX Runtime, 16-bit ones in float32, on a fixed set of labelled images.

    The original is the graph as exported, or the checkpoint in PyTorch where one is given. `reference` is its mIoU.
    split: of the dataset that the images are from, for records.
    Raises ConfigError when the images have other classes, EngineError when the checkpoint is not the graph's, or there
    are no images.
    """

    def __init__(
        self,
        source: Path,
        base: Manifest,
        samples: SegmentationDataset,
        *,
        split: str | None = None,
        checkpoint: Path | None = None,
        threads: int | None = None,
    ) -> None:
        require_same_classes(base.classes, samples, source)
        if not len(samples):
            raise EngineError("no images to judge on; pass at least one")
        self.base, self.samples, self.threads = base, Fitted(samples, base.size), threads or usable_cores()
        self.split = split
        self._masks: list[np.ndarray] = []
        self._matrices: list[ConfusionMatrix] = []
        if checkpoint is None:
            self.reference = self._run(onnx.load(source), range(len(self)), keep=True).miou
        else:
            require_checkpoint(source, base, checkpoint)
            self._run_checkpoint(checkpoint)
            self.reference = self._whole(self._matrices).miou_in_truth

    def __len__(self) -> int:
        return len(self.samples)

    def __call__(self, model: onnx.ModelProto, images: int = 0) -> Score:
        """What a version is worth, on at most `images` of the images, spread evenly; 0 for all."""
        return self._run(model, spread(len(self), images), keep=False)

    def _run(self, model: onnx.ModelProto, chosen: Sequence[int], keep: bool) -> Score:
        wide = widened(model)
        cut(wide.graph, ("masks",))
        fp8 = any(tensor.data_type == onnx.TensorProto.FLOAT8E4M3FN for tensor in wide.graph.initializer)
        options = session_options(self.threads, "fp8" if fp8 else "")
        session = onnxruntime.InferenceSession(wide.SerializeToString(), options, providers=["CPUExecutionProvider"])
        feed = session.get_inputs()[0].name
        matrices: list[ConfusionMatrix] = []
        signal, noise = 0.0, 0.0
        for index in chosen:
            sample = self.samples[index]
            (masks,) = session.run(["masks"], {feed: graph_input(sample.image, self.base)})
            masks = masks[:1]  # the rest is the same image again
            matrices.append(self._matrix(masks, sample))
            if keep:
                self._masks.append(masks)
                self._matrices.append(matrices[-1])
            signal += float(np.square(self._masks[index], dtype=np.float64).sum())
            noise += float(np.square(masks - self._masks[index], dtype=np.float64).sum())
        return Score(
            self._whole(matrices).miou_in_truth,
            sqnr_db(signal, noise),
            drop_error(matrices, [self._matrices[index] for index in chosen]),
        )

    def _run_checkpoint(self, checkpoint: Path) -> None:
        with open_session(checkpoint, "eager", threads=self.threads) as session:
            for index in range(len(self.samples)):
                sample = self.samples[index]
                self._masks.append(session.masks(normalize(sample.image, self.base.preprocess).numpy()))
                self._matrices.append(self._matrix(self._masks[-1], sample))

    def _matrix(self, masks: np.ndarray, sample: Sample) -> ConfusionMatrix:
        matrix = ConfusionMatrix(len(self.samples.classes), self.samples.ignore)
        matrix.update(self._labels(masks), sample.labels)
        return matrix

    def _whole(self, matrices: Sequence[ConfusionMatrix]) -> ConfusionMatrix:
        whole = ConfusionMatrix(len(self.samples.classes), self.samples.ignore)
        for matrix in matrices:
            whole.matrix += matrix.matrix
        return whole

    def _labels(self, masks: np.ndarray) -> np.ndarray:
        padded = whole_patches(self.base.size, self.base.patch_size)
        labels: np.ndarray = segmenter_trt.upsample_argmax(masks, padded, self.base.size, threads=self.threads)
        return labels[0]
