"""Rounds told apart by how far apart the cores were: made-up readings, and a race whose cores move."""

import os
import subprocess
import sys

import pytest

import segmenter_trt
from segmenter_bench import placement
from segmenter_bench.placement import (
    Distances,
    Placement,
    alike,
    comparable,
    counted,
    gauge,
    over,
    placements,
    settled,
    steady,
)

NEAR, FAR = 57.0, 250.0


def test_rounds_count_together_where_the_cores_were_equally_far_apart() -> None:
    readings = [[NEAR, 60.0, 55.0], [58.0, FAR, FAR], [FAR, 245.0, 260.0], [FAR] * 3, [FAR, NEAR, NEAR], [NEAR] * 3]
    assert placements([*readings, [240.0] * 3]) == [Placement((0, 5), NEAR), Placement((2, 3, 6), FAR)]
    assert placements([[], []]) == []


def test_a_row_is_of_the_nearest_cores_with_rounds_enough() -> None:
    near, far, between = [NEAR] * 2, [FAR] * 2, [NEAR, FAR]
    assert counted([near] * 4, wanted=4) == [Placement((0, 1, 2, 3), NEAR, moved=False)]
    moved = [*[far] * 6, between, *[near] * 5]
    assert counted(moved, 9) == [
        Placement((7, 8, 9, 10, 11), NEAR, moved=True),
        Placement((0, 1, 2, 3, 4, 5), FAR, moved=True),
    ]
    assert counted(moved[:-1], 9) == [Placement((0, 1, 2, 3, 4, 5), FAR, moved=True)]  # four are too few for a range
    assert counted([far, near, near], wanted=2) == [Placement((1, 2), NEAR, moved=True)]  # more were not asked for
    assert counted([between] * 4, 4) == [Placement((0, 1, 2, 3), None, moved=True)]
    assert counted([near] * 2, wanted=6) == [Placement((0, 1), NEAR, moved=False)]  # so far, and none of them moved
    assert counted([near, far], wanted=6) == [Placement((0, 1), None, moved=True)]
    assert counted([[]] * 4, 4) == [Placement((0, 1, 2, 3), None, moved=False)]  # nobody measured


def test_a_race_goes_on_while_the_nearest_cores_seen_lack_rounds() -> None:
    assert not over([[]] * 4, 4)
    assert over([[FAR]] * 4, 4)
    assert not over([[NEAR], *[[FAR]] * 6], 4)
    assert over([*[[NEAR]] * 4, [FAR]], 4)


def test_a_reading_stands_between_two_turns_until_nobody_can_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "SETTLE_SECONDS", 0.0)
    monkeypatch.setattr(placement, "AGAIN_SECONDS", 0.0)
    given = iter([NEAR, NEAR, NEAR, FAR, FAR, FAR, FAR, None])
    distances = Distances(lambda: next(given))
    for _ in range(4):
        distances.settle()
    assert distances.of_rounds(2, 2) == [[NEAR, NEAR, NEAR], [NEAR, FAR, FAR]]
    distances.settle()
    assert len(distances.readings) == 6
    distances.settle()
    assert distances.of_rounds(2, 3) == [[], [], []]
    nobody = Distances(None)
    nobody.settle()
    assert nobody.of_rounds(3, 1) == [[]]


def test_a_reading_that_something_disturbed_is_taken_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "AGAIN_SECONDS", 0.0)
    readings = iter([520.0, 58.0, 250.0, 251.0, 61.0, 250.0, None, None])
    read = lambda: next(readings)  # noqa: E731
    assert steady(read, 57.0) == 58.0  # threads still spun
    assert steady(read, 58.0) == 250.0  # the cores did move
    assert steady(read, 250.0) == 61.0  # they moved together; nothing makes it shorter
    assert steady(read) == 250.0
    assert steady(read, 250.0) is None
    assert next(readings) is None


def test_distances_compare_within_half_as_much_again() -> None:
    assert alike(57.0, 80.0)
    assert not alike(57.0, 90.0)
    assert comparable(None, None)
    assert comparable(None, 57.0)
    assert comparable(250.0, 245.0)
    assert not comparable(57.0, 245.0)


def test_rounds_of_cores_now_near_now_far_compare_with_none() -> None:
    row = {"core_to_core_ns": None, "cores_moved": False}
    assert settled(row) == [row]  # nobody measured
    assert settled(row | {"cores_moved": True}) == []
    other = {"core_to_core_ns": FAR}
    row = {"core_to_core_ns": NEAR, "cores_moved": True, "other_placements": [other]}
    assert settled(row) == [row, other]
    assert settled({}) == [{}]  # of before it was read


def test_one_thread_or_core_has_no_distance(monkeypatch: pytest.MonkeyPatch) -> None:
    assert gauge(threads=1) is None

    def refuse(first: int, second: int) -> float:
        raise segmenter_trt.Unavailable("no Linux")

    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 8, 5})
    monkeypatch.setattr(segmenter_trt, "core_to_core_ns", lambda first, second: 10.0 * first + second)
    read = gauge(threads=2)
    assert read is not None
    assert read() == 38.0  # the outermost
    monkeypatch.setattr(segmenter_trt, "core_to_core_ns", refuse)
    assert read() is None  # a core was taken away
    assert gauge(threads=2) is None
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3})
    assert gauge(threads=2) is None


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_this_machine_passes_a_cache_line_on() -> None:
    cores = sorted(os.sched_getaffinity(0))
    ns = segmenter_trt.core_to_core_ns(cores[0], cores[-1])
    assert 1.0 < ns < 1e6  # from a shared first-level cache to threads that are hardly ever scheduled
    assert sorted(os.sched_getaffinity(0)) == cores  # the caller's thread is not held anywhere


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
@pytest.mark.parametrize("room", [1, 9])  # MiB: for no thread, and for one
def test_without_threads_to_be_had_that_is_said(room: int) -> None:
    code = f"""
import os, resource, segmenter_trt
cores = sorted(os.sched_getaffinity(0))
used = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmSize"))
resource.setrlimit(resource.RLIMIT_AS, ((used << 10) + ({room} << 20),) * 2)
try:
    segmenter_trt.core_to_core_ns(cores[0], cores[-1])
except segmenter_trt.Unavailable as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.startswith("core_to_core_ns: no thread to be had: ")


def test_cores_that_are_none_are_refused() -> None:
    core = min(os.sched_getaffinity(0))
    with pytest.raises(ValueError, match=f"core {core} twice: wanted two cores"):
        segmenter_trt.core_to_core_ns(core, core)
    for wrong in (-1, 100_000):
        with pytest.raises(ValueError, match=f"core {wrong}: wanted one of those this process may run on"):
            segmenter_trt.core_to_core_ns(core, wrong)
