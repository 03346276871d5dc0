"""Timing arithmetic: quantiles, turns and ratios."""

import time

import pytest

from segmenter_bench.timing import Burst, Timing, burst, ratio, take_turns


def test_quantiles_are_interpolated_and_images_per_second_come_from_the_median():
    timing = Timing.of(
        [Burst([float(ms) for ms in range(1, 51)], 80.0), Burst([float(ms) for ms in range(51, 102)], 90)], 4
    )
    assert (timing.calls, timing.batch) == (101, 4)
    assert (timing.ms_p50, timing.ms_p90, timing.ms_p99) == (51.0, 91.0, 100.0)
    assert (timing.ms_mean, timing.ms_min, timing.cpu_ms) == (51.0, 1.0, 85.0)
    assert timing.images_per_s == pytest.approx(4 * 1000 / 51)


@pytest.mark.parametrize("bursts", [[], [Burst([], 0.0)], [Burst([1.0, 0.0], 1.0)]])
def test_no_times_or_times_of_nothing_are_refused(bursts):
    with pytest.raises(ValueError, match="wanted at least one"):
        Timing.of(bursts)


def test_a_burst_makes_its_calls_and_times_none_of_the_warm_up():
    calls = []
    result = burst(lambda: calls.append(time.sleep(0.002)), seconds=0.0, min_calls=3, warmup=2)
    assert len(calls) == 5
    assert len(result.ms) == 3
    assert min(result.ms) >= 2.0
    assert 0.0 <= result.cpu_ms < max(result.ms)


def test_a_burst_fills_its_seconds():
    start = time.perf_counter()
    result = burst(lambda: time.sleep(0.001), seconds=0.05, min_calls=1)
    assert time.perf_counter() - start >= 0.05
    assert len(result.ms) > 3


def test_everyone_takes_a_turn_each_round_and_another_starts_each_time():
    order = []

    def candidate(name):
        def turn():
            order.append(name)
            return Burst([1.0], 1.0)

        return turn

    pauses = []
    result = take_turns({name: candidate(name) for name in "abc"}, 4, lambda: pauses.append(len(order)))
    assert "".join(order) == "abc" + "bca" + "cab" + "abc"
    assert {name: len(bursts) for name, bursts in result.items()} == {"a": 4, "b": 4, "c": 4}
    assert pauses == list(range(1, 13))


def test_a_ratio_survives_a_machine_that_slows_down():
    slow = [Burst([10.0 * drift] * 3, 20.0) for drift in (1.0, 1.5, 4.0)]
    fast = [Burst([2.0 * drift] * 9, 5.0) for drift in (1.0, 1.5, 4.0)]
    result = ratio(slow, fast)
    assert (result.median, result.low, result.high, result.cpu) == (5.0, 5.0, 5.0, 4.0)


def test_a_ratio_shows_its_spread_and_ignores_one_stalled_call():
    slow = [Burst([8.0], 1.0), Burst([10.0], 1.0), Burst([12.0], 1.0)]
    fast = [Burst([1.0, 1.0, 500.0], 1.0)] * 3
    result = ratio(slow, fast)
    assert (result.low, result.median, result.high) == (9.0, 10.0, 11.0)
    assert result.of_p50 == 10.0
    assert ratio([*slow, Burst([30.0] * 4, 1.0)], [*fast, Burst([1.0], 1.0)]).of_p50 == 30.0


def test_a_ratio_needs_the_same_rounds():
    with pytest.raises(ValueError, match="1 rounds against 2"):
        ratio([Burst([1.0], 1.0)] * 2, [Burst([1.0], 1.0)])


def test_energy_is_read_around_the_timed_calls_alone():
    used = iter([100.0, 160.0])
    result = burst(lambda: None, seconds=0.0, min_calls=3, warmup=2, meter=lambda: next(used))
    assert result.joules == 20.0
    assert Timing.of([result, Burst([1.0], 1.0, 24.0)], batch=2).joules_per_image == 11.0
    assert Timing.of([result, Burst([1.0], 1.0)], batch=2).joules_per_image is None
    assert burst(lambda: None, seconds=0.0, min_calls=1).joules is None
