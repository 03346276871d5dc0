"""What learns: the network, its optimiser, its average; and one update of them, in parts and over many processes."""

import copy
import math
import warnings
from collections.abc import Sequence
from contextlib import nullcontext

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import get_ema_multi_avg_fn

from segmenter.model import Segmenter
from segmenter.ranks import Ranks
from segmenter.training.data import Batch
from segmenter.training.loss import labelled, segmentation_loss
from segmenter.training.optimizer import autocast_type, make_optimizer, set_lr, set_training
from segmenter.training.options import TrainOptions

_DROPOUT = 2  # a use of the seed apart from those of segmenter.training.data


class NotFiniteError(Exception):
    """The loss before update number `step` is no number."""

    def __init__(self, step: int) -> None:
        super().__init__(f"the loss of step {step} is no number")
        self.step = step


class Masks(nn.Module):
    """The part of the network that training runs, as PyTorch's wrappers want it: images -> class masks."""

    def __init__(self, model: Segmenter) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model.masks(images)


class Learner:
    """A network with its optimiser. weights: [K] of the classes in the loss, or None for equal ones.

    Raises ConfigError for rates an optimiser, or a precision a device, cannot use.
    """

    def __init__(
        self, model: Segmenter, options: TrainOptions, device: torch.device, ranks: Ranks, weights: Tensor | None
    ) -> None:
        self.model, self.options, self.device, self.ranks = model.to(device), options, device, ranks
        self.weights = weights
        self.precision = autocast_type(options.optimizer.amp, device)
        self.optimizer = make_optimizer(model, options.optimizer)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.precision is torch.float16)
        self.average = copy.deepcopy(model).requires_grad_(False) if options.optimizer.ema else None
        self.frozen: int | None = None
        self.masks: nn.Module = Masks(model)
        if options.machine.compile:
            self.masks.compile(dynamic=False)
        self.run: nn.Module = self.masks  # or what shares its gradients with the other processes
        self._unreported = torch.full((), math.inf, device=device)  # first update whose loss was no number

    @property
    def judged(self) -> Segmenter:
        """What evaluations see and users get, in evaluation mode: the average where there is one."""
        return (self.average or self.model).eval()

    def freeze(self, blocks: int) -> None:
        """Training mode, but for so many frozen blocks, see `set_training`."""
        if blocks == self.frozen and self.model.training:
            return
        set_training(self.model, blocks)
        if self.ranks.count > 1 and blocks != self.frozen:
            # strides along sides of length 1, which mean nothing, differ
            warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
            # it counts the parameters that learn once and for all
            with self.ranks.exchanging():
                self.run = DistributedDataParallel(self.masks, gradient_as_bucket_view=True)
        self.frozen = blocks

    def update(self, parts: Sequence[Batch], step: int, lr: float) -> Tensor:
        """Update number `step`, from this process's parts of a batch; returns the loss of the whole batch before it.

        The parts are on this process's device. The gradient is that of the mean over all labelled pixels of the batch,
        wherever its parts are.
        On a CPU raises NotFiniteError where the loss is no number, all still as it was; elsewhere see `require_finite`.
        """
        settings = self.options.optimizer
        set_lr(self.optimizer, lr)
        counts = [labelled(labels, settings.loss_stride, self.weights) for _, labels in parts]
        count = self.ranks.sum(torch.stack(counts).sum())
        self.optimizer.zero_grad(set_to_none=True)
        losses = []
        for index, (images, labels) in enumerate(parts):
            losses.append(self._backward(images, labels, count, step, index, index == len(parts) - 1))
        loss = self.ranks.sum(torch.stack(losses).sum())
        self._watch(loss, step)
        if settings.clip_grad > 0:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), settings.clip_grad)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self._average(step)
        return loss

    def require_finite(self) -> None:
        """Raises NotFiniteError, with the first update whose loss was no number, when there has been one."""
        first = self._unreported.item()
        if first < math.inf:
            raise NotFiniteError(int(first))

    def _backward(self, images: Tensor, labels: Tensor, count: Tensor, step: int, index: int, last: bool) -> Tensor:
        """Add a part's gradient to the others'; returns its share of the loss."""
        # chance in the network depends on the update and the part alone, so it needs no place in the state
        part = self.ranks.rank * self.options.machine.accumulate + index
        seed = np.random.SeedSequence((self.options.seed, _DROPOUT, step, part)).generate_state(1)[0]
        torch.manual_seed(int(seed))
        patch, stride = self.model.config.encoder.patch_size, self.options.optimizer.loss_stride
        waiting = self.run.no_sync() if isinstance(self.run, DistributedDataParallel) and not last else nullcontext()
        with self.ranks.exchanging(), waiting:
            with torch.autocast(self.device.type, self.precision, enabled=self.precision is not None):
                masks = self.run(images)
            loss = segmentation_loss(masks, labels, patch, stride, self.weights, count=count)
            # gradients are averaged over the processes, and theirs is a sum
            self.scaler.scale(loss * self.ranks.count).backward()
        return loss.detach()

    def _watch(self, loss: Tensor, step: int) -> None:
        if self.device.type == "cpu":
            if not math.isfinite(loss.item()):
                raise NotFiniteError(step)
        else:
            # reading it would mean waiting for the device
            bad = torch.where(torch.isfinite(loss), math.inf, float(step))
            self._unreported = torch.minimum(self._unreported, bad)

    def _average(self, step: int) -> None:
        if self.average is not None:
            # at first the average of few updates, or the random start would stay in it for long
            share = min(self.options.optimizer.ema, (1 + step) / (10 + step))
            mix = get_ema_multi_avg_fn(share)
            mix(list(self.average.parameters()), list(self.model.parameters()), None)
