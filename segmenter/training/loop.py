"""The training loop: updates, checkpoints, evaluations, each resumable to the last bit that the device repeats."""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from segmenter.datasets import SegmentationDataset
from segmenter.errors import DataError, ImageError
from segmenter.model import Segmenter
from segmenter.training.augment import PRESETS
from segmenter.training.data import Augmented, Order, batches, spare_workers
from segmenter.training.interruption import Interrupted, Interruption
from segmenter.training.log import TrainingLog
from segmenter.training.loss import require_finite, require_stride, segmentation_loss
from segmenter.training.optimizer import autocast_type, make_optimizer, set_lr, set_training
from segmenter.training.options import TrainOptions
from segmenter.training.schedule import Schedule
from segmenter.training.state import RunFolder, TrainingRecord

Metrics = dict[str, Any]
_DROPOUT = 2  # a use of the seed apart from those of segmenter.training.data
_EVALUATIONS = 5  # a run, unless told otherwise
_SAVING_SHARE = 0.05  # of the time, at most, for checkpoints at the ends of epochs


class Trainer:
    """A run in its folder: `train` until the schedule ends or a signal comes.

    judge: metrics of the network; `best` is chosen by their `miou`. record: where the run begins. resume: read weights
    and optimiser state from the folder.
    """

    def __init__(
        self,
        options: TrainOptions,
        folder: RunFolder,
        model: Segmenter,
        data: SegmentationDataset,
        judge: Callable[[Segmenter], Metrics],
        record: TrainingRecord,
        device: torch.device,
        resume: bool,
    ) -> None:
        require_stride(options.optimizer.loss_stride, model.config.encoder.patch_size)
        self.options, self.folder, self.judge = options, folder, judge
        self.model, self.device = model.to(device), device
        self.record, self.step = record, record.step
        self.schedule = make_schedule(options, len(data))
        self.precision = autocast_type(options.optimizer.amp, device)
        self.optimizer = make_optimizer(model, options.optimizer)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.precision is torch.float16)
        if resume:
            folder.load(model, self.optimizer)
            if record.scaler:
                self.scaler.load_state_dict(record.scaler)
        self.weights = None if record.class_weights is None else torch.tensor(record.class_weights, device=device)
        wanted = options.augmentation
        given = {name: getattr(wanted, name) for name in ("scale", "short_side", "long_ratio")}
        settings = replace(
            PRESETS[wanted.augment], **{name: value for name, value in given.items() if value is not None}
        )
        crop = wanted.crop or model.config.encoder.image_size
        self.samples = Augmented(
            *(data, crop, settings, model.config.preprocess, options.seed),
            skip_bad=options.machine.on_bad_sample == "skip",
            raw=options.machine.augment_on == "device",
        )
        self.began = time.monotonic() - record.elapsed_s
        self.saved_at, self.saving_s = time.monotonic(), 0.0
        self.frozen: int | None = None
        self.evaluated = 0, 0.0  # update and seconds of the last evaluation

    @property
    def elapsed_s(self) -> float:
        """Seconds of the run so far, earlier parts of a resumed one included."""
        return time.monotonic() - self.began

    @property
    def progress(self) -> float:
        """Share of the run behind us, 0 to 1."""
        return self.schedule.progress(self.step, self.elapsed_s)

    def read_first(self) -> None:
        """Read the next update's images, so that unusable data show before anything is written or deleted.

        Raises ImageError or DataError for a bad file.
        """
        order = Order(len(self.samples.dataset), self.options.length.batch, self.options.seed, self.step, self.step + 1)
        next(batches(self.samples, order, workers=0))

    def train(self, log: TrainingLog, interruption: Interruption) -> Metrics:
        """Train to the end of the schedule; returns the metrics of the final network.

        Raises Interrupted after a signal, the state saved; ConfigError when the loss is no longer a number;
        CheckpointError when a state cannot be written.
        """
        self.evaluated = log.evaluated
        if self.progress < 1:
            if self._evaluation_due(self.progress):
                # a kill or a signal came after this state was saved and before it was judged
                self.evaluate(log, interruption)
            try:
                self._updates(log, interruption)
            except (ImageError, DataError):
                # a file that went, or broke, costs nothing of what was learnt before it
                self.save()
                raise
            self.save()
        return self.evaluate(log, interruption)

    def save(self) -> None:
        """Make the present state `last`."""
        self._require_finite(all(bool(torch.isfinite(parameter).all()) for parameter in self.model.parameters()))
        begin = time.monotonic()
        self.record = replace(self.record, step=self.step, elapsed_s=self.elapsed_s, scaler=self.scaler.state_dict())
        self.folder.save(self.model, self.optimizer, self.record)
        self.saved_at = time.monotonic()
        self.saving_s = self.saved_at - begin

    def evaluate(self, log: TrainingLog, interruption: Interruption) -> Metrics:
        """Judge the network, and keep it as `best` if it is."""
        self.evaluated = self.step, self.elapsed_s
        with interruption.allowed():
            metrics = {"step": self.step, **self.judge(self.model.eval())}
        best = self.folder.best_metrics()
        if best is None or (metrics["miou"] or 0.0) > (best["miou"] or 0.0):
            self.folder.save_best(self.model, metrics)
        log.note(f"step {self.step}: mIoU {_text(metrics['miou'])}, pixel accuracy {_text(metrics['pixel_accuracy'])}")
        measures = {key: metrics[key] for key in ("step", "miou", "pixel_accuracy", "mean_accuracy")}
        log.record({**measures, "elapsed_s": self.evaluated[1]})
        return metrics

    def _updates(self, log: TrainingLog, interruption: Interruption) -> None:
        """Update to the end of the schedule, with evaluations and states on the way."""
        options = self.options
        order = Order(len(self.samples.dataset), options.length.batch, options.seed, self.step, self.schedule.steps)
        workers = spare_workers() if options.machine.workers is None else options.machine.workers
        began, seconds = time.monotonic(), None
        for images, labels in batches(self.samples, order, workers, self.device, log.note):
            elapsed_s, progress = self.elapsed_s, self.progress
            if progress >= 1:
                break
            self._thaw(progress)
            lr = self.schedule.lr_at(self.step, elapsed_s)
            loss = self._update(images, labels, lr)
            self.step += 1
            now = time.monotonic() - began
            seconds = now if seconds is None else 0.9 * seconds + 0.1 * now
            self._show(log, loss, lr, options.length.batch / max(seconds, 1e-9))
            if interruption.signal is not None:
                self.save()
                raise Interrupted
            progress = self.progress
            if progress < 1 and self._evaluation_due(progress):
                self.save()
                self.evaluate(log, interruption)
            elif progress < 1 and self._save_due():
                self.save()
            began = time.monotonic()

    def _thaw(self, progress: float) -> None:
        """Freeze what is to be frozen at this point of the run; after an evaluation, back into training mode."""
        settings = self.options.optimizer
        frozen = settings.freeze_encoder_blocks if progress < settings.freeze_for else 0
        if frozen != self.frozen or not self.model.training:
            set_training(self.model, frozen)
            self.frozen = frozen

    def _show(self, log: TrainingLog, loss: Tensor, lr: float, images_per_s: float) -> None:
        """Tell the log about an update: each on a CPU; on a GPU, where reading a loss means waiting, those recorded."""
        recorded = self.step % self.options.record.log_every == 0
        if not recorded and self.device.type != "cpu":
            return
        value = loss.item()
        self._require_finite(np.isfinite(value))
        log.update(self.step, self.progress, self.elapsed_s, value, lr, images_per_s)
        if recorded:
            rate, seconds = round(images_per_s, 2), round(self.elapsed_s, 3)
            log.record({"step": self.step, "loss": value, "lr": lr, "images_per_s": rate, "elapsed_s": seconds})

    def _update(self, images: Tensor, labels: Tensor, lr: float) -> Tensor:
        """One step of the optimiser; returns the loss before it."""
        # chance in the network depends on the update alone, so it needs no place in the state
        torch.manual_seed(int(np.random.SeedSequence((self.options.seed, _DROPOUT, self.step)).generate_state(1)[0]))
        settings = self.options.optimizer
        set_lr(self.optimizer, lr)
        with torch.autocast(self.device.type, self.precision, enabled=self.precision is not None):
            masks = self.model.masks(images)
        loss = segmentation_loss(
            masks, labels, self.model.config.encoder.patch_size, settings.loss_stride, self.weights
        )
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        if settings.clip_grad > 0:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), settings.clip_grad)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss.detach()

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

    def _require_finite(self, finite: bool) -> None:
        advice = f"lower --lr ({self.options.optimizer.lr}), pass --clip-grad 1, or --amp off"
        require_finite(finite, self.step, advice)


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
