"""What a run says while it trains: a progress bar or plain lines, metrics.jsonl, and boards for those who want them."""

import json
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from segmenter.files import atomic_path
from segmenter.training.boards import open_boards
from segmenter.training.options import TrainOptions
from segmenter.training.state import reporting

LOG_NAME = "metrics.jsonl"
_LINE_SECONDS = 15.0  # between lines where there is no terminal to draw a bar on
_SMOOTHING = 0.95


class TrainingLog:
    """Progress for people and records for programs; records of updates that a resumed run repeats are dropped.

    Each record is a line of JSON with its `step`, and `loss`, `lr`, `images_per_s`, `elapsed_s` or the measures of an
    evaluation.
    Raises CheckpointError when the log cannot be written.
    """

    def __init__(self, options: TrainOptions, first_step: int) -> None:
        self.root, self.path = options.out, options.out / LOG_NAME
        with reporting(self.path, "cannot be written"):
            self.evaluated = _keep_records(self.path, first_step)  # update and seconds of the last evaluation
            self.file = self.path.open("a", encoding="utf-8")
        self.console = Console(stderr=True)
        self.boards = open_boards(options, first_step, self.note)
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[text]}"),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.task = self.bar.add_task("training", total=1.0, text="")
        self.loss: float | None = None
        self.line_at = time.monotonic() + _LINE_SECONDS

    def __enter__(self) -> "TrainingLog":
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.bar.stop()
        # a full disk must not hide the error that is on its way, which names it
        try:
            self.file.close()
            for board in self.boards:
                board.close()
        except OSError as trouble:
            self.note(f"{self.root}: the log could not be finished ({trouble})")

    def update(self, step: int, progress: float, elapsed_s: float, loss: float, lr: float, images_per_s: float) -> None:
        """Show how far the run is: on the bar, or where there is none in a line now and then."""
        self.loss = loss if self.loss is None else _SMOOTHING * self.loss + (1 - _SMOOTHING) * loss
        left = _clock(elapsed_s * (1 - progress) / progress) if progress > 0 else "?"
        text = f"step {step}  loss {self.loss:.3f}  lr {lr:.1e}  {images_per_s:.1f} img/s  {left} left"
        self.bar.update(self.task, completed=progress, text=text)
        if self.bar.disable and time.monotonic() >= self.line_at:
            self.note(f"{progress:4.0%}  {text}")
            self.line_at = time.monotonic() + _LINE_SECONDS

    def record(self, values: dict[str, Any]) -> None:
        """Append a record, which has a `step`."""
        with reporting(self.path, "cannot be written"):
            self.file.write(json.dumps(values) + "\n")
            self.file.flush()
            for board in self.boards:
                board.add(values["step"], {key: value for key, value in values.items() if isinstance(value, float)})

    def note(self, text: str) -> None:
        """Print a line above the bar."""
        self.console.print(text, highlight=False, soft_wrap=True, markup=False)


class NoLog:
    """The log of the processes of a run that leave speaking to the first."""

    evaluated = 0, 0.0

    def __enter__(self) -> "NoLog":
        return self

    def __exit__(self, *_: object) -> None: ...

    def update(self, *_: float) -> None: ...

    def record(self, values: dict[str, Any]) -> None: ...

    def note(self, text: str) -> None: ...


def _keep_records(path: Path, last_step: int) -> tuple[int, float]:
    """Drop records after a step, and a last line cut short by a kill; step and seconds of the last evaluation left."""
    evaluated = 0, 0.0
    if not path.is_file():
        return evaluated
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if record["step"] <= last_step:
            kept.append(line + "\n")
            if "miou" in record:
                evaluated = record["step"], record.get("elapsed_s", 0.0)
    with atomic_path(path) as temporary:
        temporary.write_text("".join(kept), encoding="utf-8")
    return evaluated


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
