"""Signals to a run: the first is a request, its echo says nothing new, and a second Ctrl-C ends all at once."""

import signal
from types import SimpleNamespace

import pytest

from segmenter.training import interruption
from segmenter.training.interruption import Interrupted, Interruption


def test_a_second_interrupt_ends_all_but_an_echo_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 5.0
    monkeypatch.setattr(interruption, "time", SimpleNamespace(monotonic=lambda: now))
    with Interruption().listening() as listener:
        signal.raise_signal(signal.SIGINT)
        now += 0.1
        signal.raise_signal(signal.SIGINT)
        assert listener.signal == signal.SIGINT
        now += 2
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_an_interrupt_that_another_process_told_of_before_is_the_first() -> None:
    with Interruption().listening() as listener:
        listener.signal = signal.SIGINT
        signal.raise_signal(signal.SIGINT)
        assert listener.signal == signal.SIGINT


def test_where_nothing_is_to_be_saved_a_signal_ends_the_block_at_once() -> None:
    with Interruption().listening() as listener:
        with pytest.raises(Interrupted), listener.allowed():
            signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Interrupted), listener.allowed():
            raise AssertionError("a signal came before")
