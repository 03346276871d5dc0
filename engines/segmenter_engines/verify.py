"""An engine against PyTorch on real images: the step that keeps lost accuracy from going unseen."""

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from segmenter.cli import run
from segmenter.cores import usable_cores
from segmenter.cpu import cpu_flags
from segmenter.datasets import Sample, SegmentationDataset, Subset, open_dataset
from segmenter.datasets.fitted import Fitted, fit
from segmenter.datasets.option import DATASET
from segmenter.errors import EngineError, Unavailable, VerificationError
from segmenter.evaluation import evaluate_labels, require_same_classes
from segmenter.files import atomic_path
from segmenter.metrics import ConfusionMatrix
from segmenter.option import one_of
from segmenter_engines.invariants import LARGEST_ON_CPU, check_invariants, one_at_a_time
from segmenter_engines.limits import IMAGES, Limit, limit_of, require_drop
from segmenter_engines.manifest import manifest_path, read_manifest, require_checkpoint
from segmenter_engines.sampling import drop_error
from segmenter_engines.sessions import ENGINES, Session, open_engine
from segmenter_engines.signature import require_signature, signature_path
from segmenter_engines.trade import time_trade
from segmenter_engines.verdict import Verdict, record
from segmenter_engines.verified import carry

ENOUGH_PIXELS = 100_000  # of a size of images: fp32's limit is then a hundred of them


@dataclass(frozen=True)
class Judged:
    """A session's labels of every sample, and how good they are."""

    labels: list[np.ndarray]
    matrices: list[ConfusionMatrix]  # one an image
    miou: float  # of all together, over the classes in their truth


def judge(session: Session, samples: SegmentationDataset) -> Judged:
    """Label every sample with a session, at the samples' own size.

    Raises EngineError when it fails, ImageError or DataError naming a sample that cannot be read.
    """
    labels: list[np.ndarray] = []
    matrices: list[ConfusionMatrix] = []

    def keep(sample: Sample, found: np.ndarray, matrix: ConfusionMatrix) -> None:
        labels.append(found)
        matrices.append(matrix)

    whole = evaluate_labels(one_at_a_time(session), samples, progress=False, each=keep)
    return Judged(labels, matrices, whole.miou_in_truth)


def at_size_of(session: Session, samples: SegmentationDataset) -> SegmentationDataset:
    """Samples at the one size an engine takes; as they are for an engine that takes any."""
    return samples if session.spec.usual_size is None else Fitted(samples, session.spec.usual_size)


def verify(
    session: Session,
    reference: Session,
    samples: SegmentationDataset,
    *,
    limit: Limit | None = None,
    rival: Session | None = None,
    expected: Judged | None = None,
) -> Verdict:
    """Compare an engine with the reference on every sample, at the engine's size, and see that its batches are sound.

    reference: the same network in PyTorch (`eager`). limit: that of the engine's precision when None. rival: the
    floating-point engine an 8-bit one is timed against. expected: what `judge` found of the reference at this size,
    where that is known already.
    Raises EngineError when the two were not made for the same classes, or there are no samples.
    """
    _require_equal_classes(session, reference, session.name, reference.name)
    if not len(samples):
        raise EngineError("no images to verify on; pass at least one")
    fitted = at_size_of(session, samples)
    mine, theirs = judge(session, fitted), expected or judge(reference, fitted)
    agree = sum(int((a == b).sum()) for a, b in zip(mine.labels, theirs.labels, strict=True))
    images = [fitted[index].image for index in range(min(len(fitted), session.spec.max_batch or LARGEST_ON_CPU))]
    return Verdict(
        engine=session.name,
        precision=session.name.rsplit("-", 1)[-1],
        images=len(mine.labels),
        miou=mine.miou,
        reference_miou=theirs.miou,
        agreement=agree / sum(labels.size for labels in mine.labels),
        limit=limit or limit_of(session.name),
        drop_error=drop_error(mine.matrices, theirs.matrices),
        invariants=check_invariants(session, images, mine.labels[: len(images)]),
        ends=_agreement_at_ends(session, reference, samples),
        trade=None if rival is None else time_trade(session, rival, images),
        device=session.describe()["device"],
        cpu_flags=tuple(cpu_flags()),
    )


def _agreement_at_ends(session: Session, reference: Session, samples: SegmentationDataset) -> dict[str, float]:
    """Share of pixels labelled as the reference labels them at the smallest and largest size of an engine, by HxW.

    Of two images at the largest; of small ones as many more as it takes for a near tie or two to stay within a limit.
    Empty for an engine that takes one size or any.
    """
    label, found = one_at_a_time(session), {}
    for size in session.spec.ends:
        count = max(2, math.ceil(ENOUGH_PIXELS / (size[0] * size[1])))
        images = [fit(samples[index].image, size) for index in range(min(count, len(samples)))]
        same = [float((label(image) == reference(image)).mean()) for image in images]
        found[f"{size[0]}x{size[1]}"] = sum(same) / len(same)
    return found


def verify_build(
    plan: Path, graph: Path, checkpoint: Path, samples: SegmentationDataset, threads: int | None = None
) -> Verdict:
    """End a build: verify the plan where it can run, else the graph it was built from, whose verdict it then carries.

    graph: the .onnx the plan was built from; checkpoint: that the graph was exported from. Writes the manifests.
    Raises VerificationError when a limit is passed, EngineError when the three do not belong together.
    """
    require_verifiable(graph, checkpoint, samples)
    require_checkpoint(plan, read_manifest(plan, check_hash=False), checkpoint)
    with open_engine(checkpoint, "eager", threads=threads) as reference:
        judged = plan
        try:
            with open_engine(plan, threads=threads) as session:
                verdict = verify(session, reference, samples)
        except Unavailable:
            judged = graph
            with open_as_shipped(graph, None, threads, None) as session:
                verdict = verify(session, reference, samples)
    record(judged, verdict)
    if judged == graph:
        carry(graph, plan)
    if verdict.faults:
        raise VerificationError(
            f"{judged}: failed: {'; '.join(verdict.faults)} ({verdict.agreement:.3%} of pixels as PyTorch, mIoU"
            f" {verdict.miou:.4f} of {verdict.reference_miou:.4f}); {plan} is built all the same, and warns when opened"
        )
    return verdict


def require_verifiable(graph: Path, checkpoint: Path, samples: SegmentationDataset) -> None:
    """See, before a build that takes minutes, that it can be verified at its end.

    Raises EngineError when the graph goes back to another checkpoint, ConfigError when the samples have other classes.
    """
    manifest = read_manifest(graph, check_hash=False)
    require_checkpoint(graph, manifest, checkpoint)
    require_same_classes(manifest.classes, samples, graph)


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
    """`open_engine`, but a graph that plans are built from is run whole, its own labels included.

    Elsewhere labels are made behind the engine, from its masks; a plan ships the labels its graph makes, and rounds all
    on the way there to 16 bits. So does this, also for bf16, of which ONNX Runtime has no kernels.
    """
    if path.suffix == ".onnx" and engine in (None, "onnxruntime"):
        manifest = read_manifest(path, check_hash=False)
        if manifest.precision in ("fp16", "bf16") or manifest.details.get("target") == "tensorrt":
            from segmenter_engines.sessions.onnxruntime import WholeGraphSession

            return WholeGraphSession(path, threads or usable_cores(), precision)
    return open_engine(path, engine, threads=threads, precision=precision)


def floats_of(session: Session) -> str | None:
    """What an engine's floating-point layers compute in; None where its runtime leaves no choice.

    An 8-bit engine's rival is opened in it too: OpenVINO runs the rest of an int8 graph in bf16 where the CPU has it,
    and against fp32 what 16 bits gain alone would count as a gain of 8.
    """
    return session.describe().get("floats")


@dataclass(frozen=True)
class Options:
    """Compare an engine with PyTorch on labelled images; exits with 2 past the limit of its precision.

    Both get each image resized to the engine's size, whatever its sides: where it has others, mIoU is not that of
    `evaluate`.
    """

    artifact: Annotated[Path, tyro.conf.Positional]
    """The .onnx or .plan to verify."""
    checkpoint: Path
    """The checkpoint it was made from."""
    dataset: Annotated[str, DATASET]
    """Dataset of the images."""
    data: Path | None = None
    """The dataset's folder; shapes needs none."""
    split: str = "val"
    """Split the images come from."""
    images: int = IMAGES
    """Number of images, spread evenly over the split; 0 for all. Of few, a drop of mIoU is chance."""
    engine: Annotated[str | None, one_of(ENGINES)] = None
    """Runtime to open it with; the first that fits when left out."""
    precision: str | None = None
    """Precision of the floating-point layers, for engines that offer a choice: fp32 or bf16 for openvino."""
    rival: Path | None = None
    """The floating-point .onnx or .plan an 8-bit one was made from: times both, and says where it gains below 5 %.
    Its floating-point layers compute as the 8-bit one's do: in OpenVINO in bf16 where the CPU has it."""
    max_drop: float | None = None
    """mIoU that may be lost (0 to 1), instead of the precision's limit."""
    threads: int | None = None
    """CPU threads; every core this process may use when left out."""
    out: Path | None = None
    """JSON file to write the verdict to; it also goes into the manifest, which has to be signed again then."""
    require_signature: Path | None = None
    """Public Ed25519 key (PEM): only an artifact that is signed with its private half is opened."""


def verify_artifact(options: Options) -> int:
    if options.out is not None and options.out.resolve() in {
        path.resolve() for path in (options.artifact, manifest_path(options.artifact))
    }:
        raise EngineError(f"--out {options.out}: is what is verified, and would be lost; pass another name")
    if options.max_drop is not None:
        require_drop(options.max_drop)
    if options.require_signature is not None:
        require_signature(options.artifact, options.require_signature)
    chosen = Subset(open_dataset(options.dataset, options.data, options.split), options.images)
    with (
        open_as_shipped(options.artifact, options.engine, options.threads, options.precision) as session,
        open_engine(options.checkpoint, "eager", threads=options.threads) as reference,
    ):
        require_same_classes(session.classes, chosen, options.artifact)
        _require_equal_classes(session, reference, options.artifact, options.checkpoint)
        require_checkpoint(options.artifact, read_manifest(options.artifact, check_hash=False), options.checkpoint)
        limit = limit_of(session.name)
        if options.max_drop is not None:
            limit = replace(limit, miou_drop=options.max_drop)
        if options.rival is None:
            verdict = verify(session, reference, chosen, limit=limit)
        else:
            # shipped alike too, or its labels would be made faster
            with open_as_shipped(options.rival, session.engine, options.threads, floats_of(session)) as rival:
                _require_equal_classes(rival, reference, options.rival, options.checkpoint)
                verdict = verify(session, reference, chosen, limit=limit, rival=rival)
    record(options.artifact, verdict)
    if options.out is not None:
        with atomic_path(options.out) as temporary:
            temporary.write_text(json.dumps(verdict.to_dict(), indent=1) + "\n")
    print(f"{options.artifact}, {verdict.images} images: {verdict.line()}")
    if signature_path(options.artifact).exists():
        print(
            f"{signature_path(options.artifact)}: no longer fits the manifest, which the verdict is in; sign it again"
        )
    if verdict.faults:
        raise VerificationError(f"{options.artifact}: failed: {'; '.join(verdict.faults)}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    return run(verify_artifact, Options, argv)


if __name__ == "__main__":
    sys.exit(main())
