"""Boards that draw a run's records: TensorBoard where it is installed, Weights & Biases where it is asked for."""

import uuid
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from segmenter.errors import ConfigError
from segmenter.files import atomic_path
from segmenter.training.options import TrainOptions
from segmenter.training.state import WANDB_NAME, reporting


class Board(Protocol):
    """Takes the numbers of a record, and is closed at the end."""

    def add(self, step: int, values: dict[str, float]) -> None: ...

    def close(self) -> None: ...


def open_boards(options: TrainOptions, first_step: int, note: Callable[[str], None]) -> list[Board]:
    """The boards that options ask for; what happened after `first_step` is drawn anew.

    note: told in one line of a board that cannot be had and need not be. Raises ModuleNotFoundError as `require_boards`
    does, ConfigError when a board refuses, CheckpointError for a folder that cannot be written.
    """
    boards: list[Board] = []
    if options.record.wandb is not None:
        boards.append(WeightsAndBiases(options))
    if options.record.tensorboard and find_spec("tensorboard") is None:
        note(f"TensorBoard is not installed (pip install tensorboard); the log is {options.out / 'metrics.jsonl'}")
    elif options.record.tensorboard:
        boards.append(TensorBoard(options.out / "tensorboard", first_step))
    return boards


def require_boards(options: TrainOptions) -> None:
    """Raises ModuleNotFoundError for a board that is asked for and not installed."""
    if options.record.wandb is not None:
        import wandb  # noqa: F401


class TensorBoard:
    """Event files in a folder."""

    def __init__(self, folder: Path, first_step: int) -> None:
        # takes a second or two to import, and is not always there
        from torch.utils.tensorboard import SummaryWriter

        with reporting(folder, "cannot be written"):
            self.writer = SummaryWriter(str(folder), purge_step=first_step + 1)

    def add(self, step: int, values: dict[str, float]) -> None:
        for key, value in values.items():
            self.writer.add_scalar(key, value, step)

    def close(self) -> None:
        self.writer.close()


class WeightsAndBiases:
    """A run of a project there, the same one after a resume.

    Raises ConfigError where it cannot be opened: no network, no account.
    """

    def __init__(self, options: TrainOptions) -> None:
        import wandb

        path = options.out / WANDB_NAME
        if not path.is_file():
            with reporting(path, "cannot be written"), atomic_path(path) as temporary:
                temporary.write_text(uuid.uuid4().hex[:8], encoding="utf-8")
        try:
            self.run: Any = wandb.init(
                project=options.record.wandb,
                id=path.read_text(encoding="utf-8").strip(),
                resume="allow",
                dir=str(options.out),
                config=options.identity(),
            )
        except Exception as error:  # wandb's own classes share no narrower base
            told = " ".join(str(error).split())[:200] or type(error).__name__
            raise ConfigError(
                f"--wandb {options.record.wandb}: {told}; run `wandb login`, or set WANDB_MODE=offline"
            ) from error

    def add(self, step: int, values: dict[str, float]) -> None:
        self.run.log(values, step=step)

    def close(self) -> None:
        self.run.finish()
