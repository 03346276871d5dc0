"""The training loop: updates, checkpoints, evaluations, each resumable.

A run that was stopped repeats one that was not to the last bit that its device does, by one process or two. Of more,
the order in which their gradients are summed changes with PyTorch's buckets, made anew after the first update: they
repeat it but for rounding.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from segmenter.datasets import SegmentationDataset
from segmenter.errors import DataError, ImageError
from segmenter.metrics import ConfusionMatrix
from segmenter.model import Segmenter
from segmenter.option import require
from segmenter.ranks import Ranks
from segmenter.training.augment import augmentation_of
from segmenter.training.bad_batch import came_apart
from segmenter.training.data import Augmented, Batch, Order, batches, spare_workers
from segmenter.training.interruption import Interrupted, Interruption
from segmenter.training.learner import Learner, NotFiniteError
from segmenter.training.log import NoLog, TrainingLog
from segmenter.training.loss import finite_weights, require_stride
from segmenter.training.options import TrainOptions
from segmenter.training.schedule import Schedule
from segmenter.training.share import Share
from segmenter.training.state import RunFolder, TrainingRecord

Metrics = dict[str, Any]
_EVALUATIONS = 5  # a run, unless told otherwise
_SAVING_SHARE = 0.05  # of the time, at most, for checkpoints at the ends of epochs


class Trainer:
    """A run in its folder: `train` until the schedule ends or a signal comes.

    judge: the network's confusion matrix over this process's share of the validation images. report: metrics of that of
    all of them; `best` is chosen by their `miou`, among those of one `judged_on`. record: where the run begins. resume:
    read weights and optimiser state from the folder. All processes of a run do the same; the first alone writes.
    """

    def __init__(
        self,
        options: TrainOptions,
        folder: RunFolder,
        model: Segmenter,
        data: SegmentationDataset,
        judge: Callable[[Segmenter], ConfusionMatrix],
        report: Callable[[ConfusionMatrix], Metrics],
        record: TrainingRecord,
        ranks: Ranks,
        resume: bool,
    ) -> None:
        require_stride(options.optimizer.loss_stride, model.config.encoder.patch_size)
        self.options, self.folder, self.judge, self.report, self.ranks = options, folder, judge, report, ranks
        self.record, self.step = record, record.step
        self.schedule = make_schedule(options, len(data))
        self.device = torch.device(ranks.device)
        self.parts = ranks.count * options.machine.accumulate
        what = f"{ranks.count} processes and --accumulate {options.machine.accumulate} want"
        require(options.length.batch >= self.parts, "--batch", options.length.batch, f"{self.parts} or more, as {what}")
        weights = None if record.class_weights is None else torch.tensor(record.class_weights, device=self.device)
        self.learner = Learner(model, options, self.device, ranks, weights)
        if resume:
            folder.load(model, self.learner.optimizer, self.learner.average)
            if record.scaler:
                self.learner.scaler.load_state_dict(record.scaler)
        crop = options.augmentation.crop_for(model.config.encoder.image_size)
        self.samples = Augmented(
            *(data, crop, augmentation_of(options.augmentation), model.config.preprocess, options.seed),
            skip_bad=options.machine.on_bad_sample == "skip",
            raw=options.machine.augment_on == "device",
        )
        self.began = time.monotonic() - record.elapsed_s
        self.elapsed_s = record.elapsed_s  # of the run so far, earlier parts included: by the first process's clock
        self.saved_at, self.saving_s = time.monotonic(), 0.0
        self.evaluated = 0, 0.0  # update and seconds of the last evaluation
        self.metrics: Metrics = {}  # of the last evaluation of this part of the run

    @property
    def progress(self) -> float:
        """Share of the run behind us, 0 to 1."""
        return self.schedule.progress(self.step, self.elapsed_s)

    def read_first(self) -> None:
        """Read the next update's images, so that unusable data show before anything is written or deleted.

        Raises ImageError or DataError for a bad file.
        """
        next(batches(self.samples, self._order(self.step, self.step + 1), workers=0))

    def train(self, log: TrainingLog | NoLog, interruption: Interruption) -> Metrics:
        """Train to the end of the schedule; returns the metrics of the final network.

        Raises Interrupted after a signal, the state saved; ConfigError when the loss is no longer a number, its batch
        saved; CheckpointError when a state cannot be written.
        """
        step, seconds = self.ranks.largest(*log.evaluated)
        self.evaluated = int(step), seconds
        if self.progress < 1:
            if self._evaluation_due(self.progress):
                # a kill or a signal came after this state was saved and before it was judged
                self._evaluate_on_the_way(log, interruption)
            try:
                try:
                    self._updates(log, interruption)
                except (ImageError, DataError):
                    # a file that went, or broke, costs nothing of what was learnt before it
                    self.save()
                    raise
                self.save()
            except NotFiniteError as error:
                order = self._order(error.step, error.step + 1)
                raise came_apart(self.samples, order, self.folder, self.options, self.ranks) from error
        # the time may have ended with an evaluation
        return self.metrics if self.metrics.get("step") == self.step else self.evaluate(log, interruption)

    def save(self) -> None:
        """Make the present state `last`.

        Raises NotFiniteError where it is not worth it: a weight is no number.
        """
        self.learner.require_finite()
        if not finite_weights(self.learner.model):
            raise NotFiniteError(self.step - 1)
        begin = time.monotonic()
        scaler = self.learner.scaler.state_dict()
        self.record = replace(self.record, step=self.step, elapsed_s=self.elapsed_s, scaler=scaler)
        if self.ranks.first:
            learning = None if self.learner.average is None else self.learner.model
            self.folder.save(self.learner.judged, self.learner.optimizer, self.record, learning)
        self.saved_at = time.monotonic()
        self.saving_s = self.saved_at - begin

    def evaluate(self, log: TrainingLog | NoLog, interruption: Interruption) -> Metrics:
        """Judge the network, and keep it as `best` if it is."""
        self._agree(interruption)
        self.evaluated = self.step, self.elapsed_s
        try:
            with interruption.allowed():
                matrix = self.judge(self.learner.judged)
        except Interrupted:
            matrix = None  # the others have to hear of it first
        if self._agree(interruption) or matrix is None:
            raise Interrupted
        self.ranks.sum_counts(matrix.matrix)
        self.metrics = metrics = {"step": self.step, **self.report(matrix)}
        if self.ranks.first:
            best = self.folder.best_metrics()
            if best is None or _otherwise_judged(best, metrics) or (metrics["miou"] or 0.0) > (best["miou"] or 0.0):
                self.folder.save_best(self.learner.judged, metrics)
        miou, accuracy = _text(metrics["miou"]), _text(metrics["pixel_accuracy"])
        log.note(f"step {self.step}: mIoU {miou}, pixel accuracy {accuracy}")
        measures = {key: metrics[key] for key in ("step", "miou", "pixel_accuracy", "mean_accuracy")}
        log.record({**measures, "elapsed_s": self.evaluated[1]})
        return metrics

    def _evaluate_on_the_way(self, log: TrainingLog | NoLog, interruption: Interruption) -> None:
        """Judge the network as it was saved; the time that takes, also where a signal ends it, is the run's."""
        try:
            self.evaluate(log, interruption)
        finally:
            self.record = replace(self.record, elapsed_s=self.elapsed_s)
            if self.ranks.first:
                self.folder.save_record(self.record)

    def _order(self, first: int, steps: int | None) -> Order:
        return Order(len(self.samples.dataset), self.options.length.batch, self.options.seed, first, steps)

    def _batches(self, note: Callable[[str], None] | None) -> Iterator[list[Batch]]:
        """This process's parts of every batch to come."""
        accumulate, workers = self.options.machine.accumulate, self.options.machine.workers
        share = Share(self._order(self.step, self.schedule.steps), self.ranks.rank * accumulate, accumulate, self.parts)
        workers = spare_workers() if workers is None else workers
        parts = batches(self.samples, share, workers, self.device, note)
        while batch := list(islice(parts, accumulate)):
            yield batch

    def _updates(self, log: TrainingLog | NoLog, interruption: Interruption) -> None:
        """Update to the end of the schedule, with evaluations and states on the way."""
        began, seconds = time.monotonic(), None
        # of skipped files each process names its own
        for parts in self._batches(log.note if self.ranks.first else None):
            if self.progress >= 1:
                break
            settings = self.options.optimizer
            self.learner.freeze(settings.freeze_encoder_blocks if self.progress < settings.freeze_for else 0)
            lr = self.schedule.lr_at(self.step, self.elapsed_s)
            loss = self.learner.update(parts, self.step, lr)
            self.step += 1
            now = time.monotonic() - began
            seconds = now if seconds is None else 0.9 * seconds + 0.1 * now
            signalled = self._agree(interruption)
            self._show(log, loss, lr, self.options.length.batch / max(seconds, 1e-9))
            if signalled:
                self.save()
                raise Interrupted
            if self.progress < 1 and self._evaluation_due(self.progress):
                self.save()
                self._evaluate_on_the_way(log, interruption)
            elif self.progress < 1 and self.ranks.first and self._save_due():
                self.save()
            began = time.monotonic()

    def _agree(self, interruption: Interruption) -> bool:
        """Set all processes' clocks by the first's; whether any of them was sent a signal, which then all were."""
        elapsed_s = time.monotonic() - self.began if self.ranks.first else 0.0
        self.elapsed_s, signalled = self.ranks.largest(elapsed_s, float(interruption.signal or 0))
        if signalled:  # where not, nothing is taken back: one may have come since it was asked for
            interruption.signal = int(signalled)
        return bool(signalled)

    def _show(self, log: TrainingLog | NoLog, loss: Tensor, lr: float, images_per_s: float) -> None:
        """Tell the log about an update: each on a CPU; on a GPU, where reading a loss means waiting, those recorded."""
        recorded = self.step % self.options.record.log_every == 0
        if not recorded and self.device.type != "cpu":
            return
        self.learner.require_finite()
        value = loss.item()
        log.update(self.step, self.progress, self.elapsed_s, value, lr, images_per_s)
        if recorded:
            rate, seconds = round(images_per_s, 2), round(self.elapsed_s, 3)
            log.record({"step": self.step, "loss": value, "lr": lr, "images_per_s": rate, "elapsed_s": seconds})

    def _evaluation_due(self, progress: float) -> bool:
        """Whether an evaluation belongs here and has not been: the log knows, however the run was stopped."""
        every = self.options.record.eval_every
        if every is None:
            return int(progress * _EVALUATIONS) > int(self.schedule.progress(*self.evaluated) * _EVALUATIONS)
        return every > 0 and self.step % every == 0 and self.step != self.evaluated[0]

    def _save_due(self) -> bool:
        """Whether the last state is old, or an epoch ends and states are cheap."""
        age = time.monotonic() - self.saved_at
        images, batch = len(self.samples.dataset), self.options.length.batch
        epoch_ended = self.step * batch // images > (self.step - 1) * batch // images
        return age >= self.options.record.save_every_seconds or (epoch_ended and age * _SAVING_SHARE > self.saving_s)


def _otherwise_judged(best: Metrics, metrics: Metrics) -> bool:
    """Whether two evaluations, of other images or by other windows, cannot be compared; older ones do not say."""
    return bool(best.get("judged_on", metrics.get("judged_on")) != metrics.get("judged_on"))


def _text(measure: float | None) -> str:
    return "-" if measure is None else f"{measure:.4f}"


def make_schedule(options: TrainOptions, images: int) -> Schedule:
    """The schedule of a run over so many training images.

    Raises ConfigError for lengths that are none.
    """
    length, rates = options.length, options.optimizer
    epochs = length.epochs
    if length.steps is None and length.max_minutes is None and epochs is None:
        epochs = 64
    ends = [length.steps, None if epochs is None else max(1, round(epochs * images / length.batch))]
    return Schedule(
        lr=rates.lr,
        min_lr=rates.min_lr,
        power=rates.power,
        warmup=rates.warmup,
        steps=min((end for end in ends if end is not None), default=None),
        budget_s=None if length.max_minutes is None else 60 * length.max_minutes,
    )
