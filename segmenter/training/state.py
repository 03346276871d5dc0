"""The folder of a training run: whole states that survive a kill at any moment, and the best network so far.

    last -> states/step-00001200    config.json, model.safetensors, optimizer.safetensors, training.json, and where the
                                    model is the average of the updates' weights, learning.safetensors: the weights
    best -> states/best-00001000    config.json, model.safetensors, metrics.json

A state is written beside the others, reaches the disk, gets its name, and only then does the link `last` move to it.
So a folder without the ending `.part` is whole, and where a copy left the links out the newest such is linked again.
The one before it is kept too. Nothing in a state is code.
"""

import errno
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from shlex import quote
from typing import Any

from torch.optim import Optimizer

from segmenter.checkpoint import STATES, WEIGHTS_NAME, load_weights, read_tensors, save_model, write_tensors
from segmenter.errors import CheckpointError
from segmenter.files import atomic_path, settle_names
from segmenter.model import Segmenter
from segmenter.training.optimizer import load_optimizer, optimizer_tensors

try:
    import fcntl
except ImportError:  # Windows has no record locks of this kind; two runs in one folder go unnoticed there
    fcntl = None  # type: ignore[assignment]

OPTIMIZER_NAME = "optimizer.safetensors"
LEARNING_NAME = "learning.safetensors"
TRAINING_NAME = "training.json"
METRICS_NAME = "metrics.json"
WANDB_NAME = "wandb-id"  # the name Weights & Biases knows the run by
_LOCK_NAME = ".lock"
_UNFINISHED = ".part"
_LATE_S = 30.0  # after which a network file system shows what another machine has written


@dataclass(frozen=True)
class TrainingRecord:
    """What a run knows besides weights and optimiser state; the order of images and all chance follow from `step`."""

    step: int  # updates done
    elapsed_s: float
    options: dict[str, Any]  # TrainOptions.identity()
    data: dict[str, Any]  # number of training images, class names
    class_weights: list[float] | None = None
    scaler: dict[str, Any] = field(default_factory=dict)  # GradScaler state of fp16 training


class RunFolder:
    """A run's states under `root`, one process at a time."""

    def __init__(self, root: Path) -> None:
        self.root, self.states = root, root / STATES
        self.last, self.best = root / "last", root / "best"

    @contextmanager
    def locked(self) -> Iterator[int]:
        """Keep other processes from training in this folder; the lock ends with the process, however it ends.

        Gives a number below 2^53 by which the others of this run know the folder, see `shows`.

        Raises CheckpointError when another process holds it, the folder cannot be made, or it is a copy whose links
        have become folders.
        """
        with reporting(self.root, "cannot be written"):
            self.root.mkdir(parents=True, exist_ok=True)
            file = (self.root / _LOCK_NAME).open("a", encoding="utf-8")
        with file:
            if fcntl is not None:
                try:
                    # a record lock, not flock: workers that outlive a killed run would inherit the latter
                    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError as error:
                    if error.errno in (errno.EACCES, errno.EAGAIN):
                        raise CheckpointError(
                            f"{self.root}: another process is training here; wait for it, or choose another --out"
                        ) from error
            token = secrets.randbits(53)
            with reporting(self.root, "cannot be written"):
                file.truncate(0)
                file.write(str(token))
                file.flush()
                os.fsync(file.fileno())
            self._mend_links()
            yield token

    def shows(self, token: int) -> bool:
        """Whether this is the folder that another process has locked, and not one of that name on another machine.

        Not for that process itself: its lock ends with the first time it closes the file.
        """
        end = time.monotonic() + _LATE_S
        while True:
            with suppress(OSError):
                if (self.root / _LOCK_NAME).read_text(encoding="utf-8") == str(token):
                    return True
            if time.monotonic() > end:
                return False
            time.sleep(0.1)

    @property
    def holds_run(self) -> bool:
        return self.last.is_symlink()

    def save(
        self, model: Segmenter, optimizer: Optimizer, record: TrainingRecord, learning: Segmenter | None = None
    ) -> None:
        """Write a state and make it `last`; once this returns it is on the disk, and before that the old one stands.

        learning: the network whose weights the optimiser changes, where `model` is their average.
        Raises CheckpointError when it cannot be written, a full disk included.
        """
        name = f"step-{record.step:08d}"
        if self._target(self.last) == name:
            return

        def write(folder: Path) -> None:
            save_model(model, folder)
            write_tensors(optimizer_tensors(optimizer), folder / OPTIMIZER_NAME)
            if learning is not None:
                weights = {name: tensor.detach().cpu().contiguous() for name, tensor in learning.state_dict().items()}
                write_tensors(weights, folder / LEARNING_NAME)
            _write_json(folder / TRAINING_NAME, asdict(record))

        before = self._target(self.last)
        self._publish(name, self.last, write)
        self._remove_states("step-", keep=(name, before))

    def save_record(self, record: TrainingRecord) -> None:
        """Put another record of the same update into `last`.

        Raises CheckpointError when it cannot be written.
        """
        with reporting(self.last / TRAINING_NAME, "cannot be written"):
            _write_json(self.last / TRAINING_NAME, asdict(record))

    def save_best(self, model: Segmenter, metrics: dict[str, Any]) -> None:
        """Write the network and its metrics (with their `step`) and make it `best`.

        Raises CheckpointError when it cannot be written.
        """

        def write(folder: Path) -> None:
            save_model(model, folder)
            _write_json(folder / METRICS_NAME, metrics)

        name = f"best-{metrics['step']:08d}"
        if self._target(self.best) == name:  # judged again after a resume; the one in use stays until it is replaced
            name += "-again"
        self._publish(name, self.best, write)
        self._remove_states("best-", keep=(name,))

    def read_record(self) -> TrainingRecord:
        """The record of `last`.

        Raises CheckpointError when it is missing or damaged.
        """
        path = self.last / TRAINING_NAME
        try:
            return TrainingRecord(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise CheckpointError(f"{path}: {error}; {self._way_out()}") from error

    def load(self, model: Segmenter, optimizer: Optimizer, average: Segmenter | None = None) -> None:
        """Put weights and optimiser state of `last` into a network of its configuration and its optimiser.

        average: where the average of the weights goes, which where none was kept begins with them.
        Raises CheckpointError when either is missing, damaged or does not fit.
        """
        judged, learning = self.last / WEIGHTS_NAME, self.last / LEARNING_NAME
        weights = learning if learning.exists() else judged
        load_weights(model, read_tensors(weights), weights)
        if average is not None:
            load_weights(average, read_tensors(judged), judged)
        try:
            load_optimizer(optimizer, read_tensors(self.last / OPTIMIZER_NAME))
        except (KeyError, ValueError) as error:
            raise CheckpointError(f"{self.last / OPTIMIZER_NAME}: {error}; {self._way_out()}") from error

    def best_metrics(self) -> dict[str, Any] | None:
        """Metrics of `best`, None when there is none yet."""
        path = self.best / METRICS_NAME
        if not path.is_file():
            return None
        try:
            metrics: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path}: {error}; delete {self.best} to have it made anew") from error
        return metrics

    def begin(self, record: TrainingRecord | None) -> None:
        """Make ready for a run that goes on from `record`, or, with None, a new one; then any old one is deleted.

        What a killed process left half-written, or finished but not yet made `last` or `best`, goes too.
        """
        (self.root / METRICS_NAME).unlink(missing_ok=True)
        if record is None:
            for path in (self.last, self.best, self.root / WANDB_NAME):
                path.unlink(missing_ok=True)
        last, best = self._target(self.last), self._target(self.best)
        steps = sorted(path.name for path in self.states.glob("step-*") if path.suffix != _UNFINISHED)
        before = [name for name in steps if last is not None and name < last]
        self._remove_states("step-", keep=(last, *before[-1:]))
        self._remove_states("best-", keep=(best,))

    def _publish(self, name: str, link: Path, write: Callable[[Path], None]) -> None:
        """Make the folder `states/name` by `write` and point `link` at it; on failure nothing has changed."""
        final, unfinished = self.states / name, self.states / f"{name}{_UNFINISHED}"
        intact = f"{link} is as it was" if link.exists() else "there was no earlier one"
        pointer = link.with_name(f".{link.name}{_UNFINISHED}")
        try:
            with reporting(final, "cannot be saved", f"{intact}; make room (or fix it), and start again to go on"):
                for stale in (final, unfinished):
                    shutil.rmtree(stale, ignore_errors=True)
                unfinished.mkdir(parents=True)
                write(unfinished)
                settle_names(unfinished)
                unfinished.replace(final)
                settle_names(self.states)
                pointer.unlink(missing_ok=True)
                pointer.symlink_to(final.relative_to(self.root), target_is_directory=True)
                pointer.replace(link)
                settle_names(self.root)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
            with suppress(OSError):
                pointer.unlink(missing_ok=True)

    def _mend_links(self) -> None:
        """Undo what copying does to links: those left out come back, those that became folders are refused."""
        for link, prefix in ((self.last, "step-"), (self.best, "best-")):
            states = sorted(path.name for path in self.states.glob(f"{prefix}*") if path.suffix != _UNFINISHED)
            if link.is_symlink():
                continue
            if link.exists():
                # states that no link names would be deleted, so going on, or over it, is not for us to choose
                there, target = quote(str(link)), self.states / (states[-1] if states else f"{prefix}00000000")
                move = (
                    f"rm -r {there}"
                    if states
                    else f"mkdir -p {quote(str(self.states))} && mv {there} {quote(str(target))}"
                )
                raise CheckpointError(
                    f"{link}: a folder where a link belongs, as a copy that follows links makes it; run"
                    f" `{move} && ln -s {target.relative_to(self.root)} {there}` to go on, or choose another --out"
                )
            if states:
                with reporting(link, "cannot be written"):
                    link.symlink_to(Path("states") / states[-1], target_is_directory=True)

    def _remove_states(self, prefix: str, keep: tuple[str | None, ...]) -> None:
        for path in self.states.glob(f"{prefix}*"):
            if path.name in keep:
                continue
            doomed = path.with_name(path.name.removesuffix(_UNFINISHED) + _UNFINISHED)
            with suppress(OSError):
                # a state under its own name is whole, also when a kill interrupts this
                path.replace(doomed)
            shutil.rmtree(doomed, ignore_errors=True)

    def _target(self, link: Path) -> str | None:
        return link.readlink().name if link.is_symlink() else None

    def _way_out(self) -> str:
        others = sorted(path.name for path in self.states.glob("step-*") if path.name != self._target(self.last))
        other = f"point {self.last} at {self.states / others[-1]}, or " if others else ""
        return f"{other}start over with --resume never"


@contextmanager
def reporting(path: Path, trouble: str, next_step: str = "make room or choose another --out") -> Iterator[None]:
    """Turn the file system's errors inside the block into a CheckpointError naming the path and the next step."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"{path}: {trouble} ({error.strerror or error}); {next_step}") from error


def write_metrics(path: Path, metrics: dict[str, Any]) -> None:
    """Write metrics as JSON, atomically.

    Raises CheckpointError when they cannot be written.
    """
    with reporting(path, "cannot be written"):
        _write_json(path, metrics)


def _write_json(path: Path, values: dict[str, Any]) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
