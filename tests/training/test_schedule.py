"""The polynomial schedule against the official scheduler's rates, its formula, and its ends."""

from pathlib import Path

import numpy as np
import pytest

from segmenter.errors import ConfigError
from segmenter.training.schedule import Schedule


def test_official_rates(shared: Path) -> None:
    truth = np.load(shared / "golden" / "poly_lr.npy")
    schedule = Schedule(lr=1e-3, min_lr=1e-5, power=0.9, steps=100)
    rates = np.array([schedule.lr_at(step) for step in range(100)])
    np.testing.assert_allclose(rates, truth, rtol=1e-14, atol=0)


def test_formula_with_warmup() -> None:
    schedule = Schedule(lr=2e-3, min_lr=1e-4, power=0.9, warmup=10, steps=50)
    for step in range(51):
        factor = step / 10 * (1 - 10 / 50) ** 0.9 if step < 10 else (1 - step / 50) ** 0.9
        assert schedule.lr_at(step) == pytest.approx((2e-3 - 1e-4) * factor + 1e-4, rel=1e-12)
    assert schedule.lr_at(0) == pytest.approx(1e-4)
    assert schedule.lr_at(50) == pytest.approx(1e-4)
    # past the end nothing becomes complex or negative
    assert schedule.lr_at(99) == pytest.approx(1e-4)


def test_time_ends_the_run_when_it_comes_first() -> None:
    schedule = Schedule(lr=1.0, min_lr=0.0, power=1.0, steps=100, budget_s=60)
    assert schedule.progress(10, 30) == 0.5
    assert schedule.progress(80, 30) == 0.8
    assert schedule.progress(5, 1e6) == 1.0
    assert schedule.lr_at(10, 30) == pytest.approx(0.5)
    assert schedule.lr_at(10, 60) == 0.0


def test_a_budget_alone_is_enough() -> None:
    schedule = Schedule(lr=1.0, min_lr=0.0, power=1.0, warmup=10, budget_s=100)
    assert schedule.lr_at(5, 20) == pytest.approx(0.5 * 0.8)
    assert schedule.lr_at(10**9, 50) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({}, "end"),
        ({"steps": 0}, "0 steps"),
        ({"budget_s": 0.0}, "budget"),
        ({"steps": 10, "warmup": 10}, "warm-up of 10"),
        ({"steps": 10, "lr": 1e-6}, "minimum"),
    ],
)
def test_impossible_schedules(changes: dict[str, float], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        Schedule(**changes)  # type: ignore[arg-type]
