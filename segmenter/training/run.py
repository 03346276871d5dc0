"""A training run from its options: data, network, a new or a resumed state, the loop, the report."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch

from segmenter.checkpoint import CONFIG_NAME, read_config
from segmenter.datasets import SegmentationDataset, Subset, open_dataset
from segmenter.errors import ConfigError, SegmenterError
from segmenter.evaluation import evaluate_labels, require_labelled, summary
from segmenter.inference import Inference, predictor
from segmenter.metrics import ConfusionMatrix
from segmenter.model import Segmenter
from segmenter.ranks import LostRank, Ranks, joined
from segmenter.training import ops_cpu
from segmenter.training.boards import require_boards
from segmenter.training.interruption import Interrupted, Interruption
from segmenter.training.learner import NotFiniteError
from segmenter.training.log import NoLog, TrainingLog
from segmenter.training.loop import Metrics, Trainer
from segmenter.training.loss import class_weights
from segmenter.training.network import make_network
from segmenter.training.options import TrainOptions
from segmenter.training.repeatable import needed, repeatable
from segmenter.training.shortage import shortage
from segmenter.training.state import METRICS_NAME, RunFolder, TrainingRecord, write_metrics

_WEIGHED_IMAGES = 500  # looked at for class frequencies


def run_training(options: TrainOptions) -> int:
    """Train, or go on training, as the options say; 0 at the end, 128 + the signal's number when stopped by one.

    Raises SegmenterError for whatever a user can set right.
    """
    if options.machine.threads:
        torch.set_num_threads(options.machine.threads)
    interruption = Interruption()
    with (
        interruption.listening(),
        joined(options.machine.device) as ranks,
        repeatable(options.machine.deterministic),
        _explaining(),
    ):
        return _run(options, ranks, interruption)


def _run(options: TrainOptions, ranks: Ranks, interruption: Interruption) -> int:
    data = Subset(open_dataset(options.dataset, options.data, "train"), options.limit)
    val = Subset(open_dataset(options.dataset, options.data, "val"), options.limit)
    own = ranks.share(val)
    device = torch.device(ranks.device)
    ops = ops_cpu if device.type == "cpu" else None
    inference = Inference(window=options.record.eval_window)

    judged_on: dict[str, int | None] = {"images": len(val), "window": options.record.eval_window}

    def judge(model: Segmenter) -> ConfusionMatrix:
        return evaluate_labels(predictor(model, inference), own, progress=False)

    def report(matrix: ConfusionMatrix) -> Metrics:
        require_labelled(matrix, val)
        return {**summary(matrix, val.classes), "judged_on": judged_on}

    folder = RunFolder(options.out)
    with ExitStack() as stack:
        _require_shared(ranks, folder, stack.enter_context(folder.locked()) if ranks.first else 0)
        record = _resumed(options, folder, data)
        if record is not None:
            model = Segmenter(read_config(folder.last / CONFIG_NAME), ops)
            line = f"{model.config.name}, going on from step {record.step} of {folder.last}"
        else:
            model, line = make_network(options.network, data, options.augmentation.crop, options.seed, ops)
        first = record or TrainingRecord(0, 0.0, options.identity(), _facts(data), _weights(options, data))
        _require_one_folder(ranks, first.step, options)
        trainer = Trainer(options, folder, model, data, judge, report, first, ranks, resume=record is not None)
        predictor(model, inference)  # refuses an impossible window now, not at the first evaluation
        metrics = options.out / METRICS_NAME
        if trainer.progress >= 1 and metrics.is_file():
            if ranks.first:
                print(f"this run has ended, see {metrics}; more --steps with --resume always would prolong it")
            return 0
        if record is None and folder.holds_run and ranks.first:
            trainer.read_first()
            val[0]
        require_boards(options)
        ranks.wait()
        # only now, when all options have proved possible and the data can be read, does anything old go
        if ranks.first:
            folder.begin(record)
        with TrainingLog(options, first.step) if ranks.first else NoLog() as log:
            log.note(line)
            if record is None and (warning := _rough(options)):
                log.note(warning)
            try:
                with ranks.exchanging():
                    final = trainer.train(log, interruption)
            except Interrupted:
                log.note(f"stopped at step {trainer.step}, saved in {folder.last}; the same command goes on from there")
                return 128 + (interruption.signal or 0)
            except LostRank:
                # an exchange fails before anything has changed; a GPU would wait for the lost one for ever
                if ranks.first and device.type == "cpu":
                    with suppress(NotFiniteError):  # then there is nothing to keep, and the loss is what to tell of
                        trainer.save()
                raise
            if ranks.first:
                best = _report(folder, final, trainer)
                print(f"mIoU {best['miou'] or 0.0:.4f} at step {best['step']}: {folder.best}")
    return 0


def _require_shared(ranks: Ranks, folder: RunFolder, token: int) -> None:
    """Raises ConfigError where not every process sees the folder that the first has locked; `token` is the first's."""
    (theirs,) = ranks.largest(float(token))
    (blind,) = ranks.largest(float(not (ranks.first or folder.shows(int(theirs)))))
    if blind:
        raise ConfigError(
            f"--out {folder.root}: not every machine sees there what the first one writes; name a folder that all of"
            " them share"
        )


def _require_one_folder(ranks: Ranks, step: int, options: TrainOptions) -> None:
    """Raises ConfigError where the processes of a run, on several machines, do not see the same state in --out."""
    least, most = ranks.largest(-step, step)
    if -least != most:
        raise ConfigError(
            f"--out {options.out}: machines see other states in it (steps {-least:.0f} to {most:.0f}); name a folder"
            " that all of them share"
        )


def _rough(options: TrainOptions) -> str | None:
    """A warning where the optimiser can tear a trained network apart within a few updates, None elsewhere.

    A trained encoder's gradients reach norms in the hundreds, a hundred times the decoder's, and plain SGD at 1e-3
    follows them all the way. A recipe's rates are those of its row, not to be left.
    """
    rates = options.optimizer
    gentle = rates.optimizer != "sgd" or rates.clip_grad > 0 or rates.backbone_lr is not None
    if options.network.init is None or gentle or options.recipe is not None:
        return None
    return (
        f"warning: SGD at --lr {rates.lr:g} without --clip-grad can undo what {options.network.init} knows; if the loss"
        " jumps, start over with --optimizer adamw --lr 3e-4 --backbone-lr 3e-5 --clip-grad 1 --warmup 5"
    )


@contextmanager
def _explaining() -> Iterator[None]:
    """Turn what is raised for lack of memory, or of what an option needs, into an error that says what to do."""
    try:
        yield
    except (RuntimeError, MemoryError, OSError) as error:
        if (reason := (needed(error) if isinstance(error, RuntimeError) else None) or shortage(error)) is None:
            raise
        raise ConfigError(reason) from error


def _resumed(options: TrainOptions, folder: RunFolder, data: SegmentationDataset) -> TrainingRecord | None:
    """The record to go on from, None for a new run.

    Raises ConfigError when the folder holds a run with other options, or on other data.
    """
    if options.resume == "never" or not folder.holds_run:
        return None
    record = folder.read_record()
    facts = _facts(data)
    if record.data["classes"] != facts["classes"]:
        raise ConfigError(
            f"{folder.root} holds a run on {len(record.data['classes'])} other classes than this dataset's"
            f" {len(data.classes)}; choose another --out, or pass --resume never to start over"
        )
    identity = options.identity()
    # a run from before there was an option had its default
    defaults = TrainOptions(out=options.out).identity()
    there, here = (
        {**defaults, **record.options, "images": record.data["images"]},
        {**identity, "images": facts["images"]},
    )
    different = [key for key in here if there.get(key) != here[key]]
    # which going on cannot change: updates are counted in batches, and a network has its shape
    fixed = [key for key in different if key in {"batch", *asdict(options.network)}]
    if fixed or (different and options.resume == "auto"):
        listed = "; ".join(f"{key} {there.get(key)} there, {here[key]} here" for key in different)
        as_there = f"give {', '.join(_option(key) for key in fixed)} as there"
        way_on = as_there if fixed else "pass --resume always to go on with these options"
        raise ConfigError(
            f"{folder.root} holds a run with other options ({listed}); choose another --out, {way_on},"
            " or pass --resume never to start over"
        )
    weights = _weights(options, data) if different else record.class_weights
    return replace(record, options=identity, data=facts, class_weights=weights)


def _option(key: str) -> str:
    return f"--{key.replace('_', '-')}"


def _facts(data: SegmentationDataset) -> dict[str, Any]:
    return {"images": len(data), "classes": list(data.classes)}


def _weights(options: TrainOptions, data: SegmentationDataset) -> list[float] | None:
    """Class weights from evenly spread training labels, where asked for; of the same samples as training."""
    if not options.optimizer.class_weights:
        return None
    labels = _labels(Subset(data, _WEIGHED_IMAGES), skip_bad=options.machine.on_bad_sample == "skip")
    weights: list[float] = class_weights(labels, len(data.classes)).tolist()
    return weights


def _labels(data: SegmentationDataset, skip_bad: bool) -> Iterator[np.ndarray]:
    for index in range(len(data)):
        try:
            sample = data[index]
        except SegmenterError:
            if not skip_bad:
                raise
            continue  # named when its turn comes in training
        yield sample.labels


def _report(folder: RunFolder, final: Metrics, trainer: Trainer) -> Metrics:
    """Write metrics.json, of the best network; returns its metrics."""
    best = folder.best_metrics() or final
    report = {
        **best,
        "last": {"step": final["step"], "miou": final["miou"]},
        "images_seen": trainer.step * trainer.options.length.batch,
        "training_s": round(trainer.record.elapsed_s, 1),
        "options": trainer.record.options,
    }
    write_metrics(folder.root / METRICS_NAME, report)
    return best
