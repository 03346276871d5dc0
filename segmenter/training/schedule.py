"""Learning rates: linear warm-up, then polynomial decay, over a number of updates or over a budget of time."""

from dataclasses import dataclass

from segmenter.errors import ConfigError


@dataclass(frozen=True)
class Schedule:
    """The learning rate before each update, and when training ends.

    `steps` updates, `budget_s` seconds, or both: the run ends with whichever is used up first, and the rate decays
    towards that end. Warm-up is counted in updates.
    Source: the paper, section 4.2 ("poly" schedule, power 0.9); the arithmetic is the official code's.
    Raises ConfigError when neither end is given, or the warm-up does not fit into the run.
    """

    lr: float = 1e-3
    min_lr: float = 1e-5
    power: float = 0.9
    warmup: int = 0
    steps: int | None = None
    budget_s: float | None = None

    def __post_init__(self) -> None:
        if self.steps is None and self.budget_s is None:
            raise ConfigError("a schedule needs an end: pass a number of steps, of epochs, or of minutes")
        if self.steps is not None and self.steps < 1:
            raise ConfigError(f"{self.steps} steps: wanted at least 1")
        if self.budget_s is not None and self.budget_s <= 0:
            raise ConfigError(f"a budget of {self.budget_s} seconds: wanted more than 0")
        if self.warmup < 0 or (self.steps is not None and self.warmup >= self.steps):
            raise ConfigError(
                f"warm-up of {self.warmup} steps in a run of {self.steps}: wanted 0 to one less than the run"
            )
        if not 0 <= self.min_lr <= self.lr:
            raise ConfigError(f"learning rate {self.lr} with minimum {self.min_lr}: wanted 0 <= minimum <= rate")

    def progress(self, step: int, elapsed_s: float = 0.0) -> float:
        """Share of the run behind us after `step` updates and `elapsed_s` seconds, 0 to 1."""
        by_steps = step / self.steps if self.steps is not None else 0.0
        by_time = elapsed_s / self.budget_s if self.budget_s is not None else 0.0
        return min(1.0, max(by_steps, by_time))

    def lr_at(self, step: int, elapsed_s: float = 0.0) -> float:
        """Learning rate of update number `step`, counted from 0."""
        progress = self.progress(step, elapsed_s)
        if step < self.warmup:
            # the decayed rate warm-up arrives at, so that nothing jumps where the two meet
            target = max(progress, self.progress(self.warmup))
            factor = step / self.warmup * (1 - target) ** self.power
        else:
            factor = (1 - progress) ** self.power
        return (self.lr - self.min_lr) * factor + self.min_lr
