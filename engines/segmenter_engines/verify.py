"""An engine against PyTorch on real images: the step that keeps lost accuracy from going unseen."""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from segmenter.cli import run
from segmenter.cores import usable_cores
from segmenter.cpu import cpu_flags
from segmenter.datasets import SegmentationDataset, Subset, open_dataset
from segmenter.datasets.fitted import Fitted
from segmenter.errors import EngineError, VerificationError
from segmenter.evaluate import evaluate_labels, require_same_classes
from segmenter.files import atomic_path
from segmenter_engines.manifest import manifest_path, read_manifest, require_checkpoint
from segmenter_engines.sessions import Session, open_session


@dataclass(frozen=True)
class Limit:
    """How far an engine may be from PyTorch in fp32."""

    miou_drop: float  # mIoU lost, 0 to 1
    disagreement: float  # share of pixels labelled otherwise
    rows: float  # share of an image's pixels labelled otherwise in a batch than alone


# The one place that holds them. Other kernels at another batch size round otherwise, and 8 bits turn a last bit into a
# step of 1 / 255; a batch that is really wrong differs in tens of per cent.
LIMITS = {
    "fp32": Limit(miou_drop=0.001, disagreement=0.001, rows=0.001),
    "fp16": Limit(miou_drop=0.001, disagreement=0.01, rows=0.001),
    "bf16": Limit(miou_drop=0.002, disagreement=0.02, rows=0.005),
    "int8": Limit(miou_drop=0.01, disagreement=0.1, rows=0.01),
    "fp8": Limit(miou_drop=0.01, disagreement=0.1, rows=0.01),
}


@dataclass(frozen=True)
class Verdict:
    """What `verify` found."""

    engine: str
    precision: str
    images: int
    miou: float
    reference_miou: float
    agreement: float  # share of all pixels labelled as PyTorch labels them
    row_disagreement: float | None  # of the worst row of a batch with its image alone; None where not comparable
    limit: Limit
    cpu_flags: tuple[str, ...] = ()  # where it was found: products of 8 bits are not the same on every CPU

    @property
    def miou_drop(self) -> float:
        return self.reference_miou - self.miou

    @property
    def faults(self) -> list[str]:
        """What is past its limit, in words; empty when the engine passes."""
        found = []
        # written so that a NaN fails
        if not self.miou_drop <= self.limit.miou_drop:
            found.append(f"mIoU dropped by {self.miou_drop:.4f}, limit {self.limit.miou_drop}")
        if not 1.0 - self.agreement <= self.limit.disagreement:
            found.append(f"{1 - self.agreement:.2%} of pixels disagree, limit {self.limit.disagreement:.2%}")
        if self.row_disagreement is not None and not self.row_disagreement <= self.limit.rows:
            found.append(f"a row of a batch differs from its image alone in {self.row_disagreement:.2%} of pixels")
        return found

    def line(self) -> str:
        """The verdict in one line."""
        outcome = "passed" if not self.faults else "FAILED: " + "; ".join(self.faults)
        return (
            f"{self.engine}: mIoU {self.miou:.4f} (PyTorch {self.reference_miou:.4f}),"
            f" {self.agreement:.3%} of pixels agree, {outcome}"
        )

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"miou_drop": self.miou_drop, "passed": not self.faults, "faults": self.faults}


def verify(
    session: Session, reference: Session, samples: SegmentationDataset, *, limit: Limit | None = None
) -> Verdict:
    """Compare an engine with the reference on every sample, at the engine's size.

    reference: the same network in PyTorch (`eager`). limit: that of the engine's precision when None.
    Raises EngineError when the two were not made for the same classes, or there are no samples.
    """
    _require_equal_classes(session, reference, session.name, reference.name)
    if not len(samples):
        raise EngineError("no images to verify on; pass at least one")
    if session.spec.usual_size is not None:
        samples = Fitted(samples, session.spec.usual_size)
    seen: list[tuple[np.ndarray, np.ndarray]] = []

    def remember(predict: Callable[[np.ndarray], np.ndarray], image: np.ndarray) -> np.ndarray:
        labels = predict(image)
        seen.append((image, labels))
        return labels

    matrix = evaluate_labels(lambda image: remember(session, image), samples, progress=False)
    mine, seen = seen, []
    reference_matrix = evaluate_labels(lambda image: remember(reference, image), samples, progress=False)
    agree = sum(int((a == b).sum()) for (_, a), (_, b) in zip(mine, seen, strict=True))
    pixels = sum(labels.size for _, labels in mine)
    precision = session.name.rsplit("-", 1)[-1]
    return Verdict(
        engine=session.name,
        precision=precision,
        images=len(mine),
        miou=matrix.miou,
        reference_miou=reference_matrix.miou,
        agreement=agree / pixels,
        row_disagreement=_row_disagreement(session, mine[:3]),
        limit=limit or LIMITS[precision],
        cpu_flags=tuple(cpu_flags()),
    )


def _require_equal_classes(session: Session, reference: Session, artifact: object, checkpoint: object) -> None:
    """Raises EngineError, naming both, when they were not made for the same classes."""
    mine, theirs = session.classes, reference.classes
    if mine == theirs:
        return
    other = next((pair for pair in zip(mine, theirs, strict=False) if pair[0] != pair[1]), None)
    told = f"{len(mine)} classes and {len(theirs)}" if other is None else f"one has {other[0]!r} for {other[1]!r}"
    raise EngineError(
        f"{artifact} and {checkpoint}: have other classes ({told}); verify against the checkpoint it was made of"
    )


def open_as_shipped(path: Path, engine: str | None, threads: int | None, precision: str | None) -> Session:
    """`open_session`, but a graph that plans are built from is run whole, its own labels included.

    Elsewhere labels are made behind the engine, from its masks; a plan ships the labels its graph makes, in 16 bits.
    """
    if path.suffix == ".onnx" and engine in (None, "onnxruntime"):
        manifest = read_manifest(path, check_hash=False)
        if manifest.precision in ("fp16", "bf16") or manifest.details.get("target") == "tensorrt":
            from segmenter_engines.sessions.onnxruntime import WholeGraphSession

            return WholeGraphSession(path, threads or usable_cores(), precision)
    return open_session(path, engine, threads=threads, precision=precision)


def _row_disagreement(session: Session, alone: Sequence[tuple[np.ndarray, np.ndarray]]) -> float | None:
    """Largest share of pixels a row of a batch labels otherwise than the session labels that image alone."""
    if len(alone) < 2 or (session.spec.max_batch or len(alone)) < len(alone):
        return None
    if len({image.shape for image, _ in alone}) > 1:
        return None
    together = session(np.stack([image for image, _ in alone]))
    return max(float((row != labels).mean()) for row, (_, labels) in zip(together, alone, strict=True))


def record(artifact: Path, verdict: Verdict) -> None:
    """Add the verdict to the artifact's manifest, beside those of other engines."""
    manifest = read_manifest(artifact)
    verification = {**(manifest.verification or {}), verdict.engine: verdict.to_dict()}
    replace(manifest, verification=verification).write(artifact)


@dataclass(frozen=True)
class Options:
    """Compare an engine with PyTorch on labelled images; exits with 2 past the limit of its precision."""

    artifact: Annotated[Path, tyro.conf.Positional]
    """The .onnx or .plan to verify."""
    checkpoint: Path
    """The checkpoint it was made from."""
    dataset: str
    """Dataset of the images: shapes, folder, camvid, ade20k."""
    data: Path | None = None
    """Root folder of the dataset."""
    split: str = "val"
    """Split the images come from."""
    images: int = 16
    """Number of images, spread evenly over the split; 0 for all."""
    engine: str | None = None
    """Runtime to open it with; the first that fits when left out."""
    precision: str | None = None
    """Precision of the floating-point layers, for engines that offer a choice."""
    max_drop: float | None = None
    """mIoU that may be lost (0 to 1), instead of the precision's limit."""
    threads: int | None = None
    """CPU threads."""
    out: Path | None = None
    """JSON file to write the verdict to; it also goes into the manifest."""


def verify_artifact(options: Options) -> int:
    if options.out is not None and options.out.resolve() in {
        path.resolve() for path in (options.artifact, manifest_path(options.artifact))
    }:
        raise EngineError(f"--out {options.out}: is what is verified, and would be lost; pass another name")
    chosen = Subset(open_dataset(options.dataset, options.data, options.split), options.images)
    with (
        open_as_shipped(options.artifact, options.engine, options.threads, options.precision) as session,
        open_session(options.checkpoint, "eager", threads=options.threads) as reference,
    ):
        require_same_classes(session.classes, chosen, options.artifact)
        _require_equal_classes(session, reference, options.artifact, options.checkpoint)
        require_checkpoint(options.artifact, read_manifest(options.artifact, check_hash=False), options.checkpoint)
        limit = LIMITS[session.name.rsplit("-", 1)[-1]]
        if options.max_drop is not None:
            limit = replace(limit, miou_drop=options.max_drop)
        verdict = verify(session, reference, chosen, limit=limit)
    record(options.artifact, verdict)
    if options.out is not None:
        with atomic_path(options.out) as temporary:
            temporary.write_text(json.dumps(verdict.to_dict(), indent=1) + "\n")
    print(f"{options.artifact}, {verdict.images} images: {verdict.line()}")
    if verdict.faults:
        raise VerificationError(f"{options.artifact}: failed: {'; '.join(verdict.faults)}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    return run(verify_artifact, Options, argv)


if __name__ == "__main__":
    sys.exit(main())
