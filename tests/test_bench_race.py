"""Engines in processes of their own, taking turns: fakes that are right, wrong, or die."""

import itertools
import os
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from segmenter.checkpoint import WEIGHTS_NAME
from segmenter.errors import ConfigError, EngineError
from segmenter.files import sha256
from segmenter_bench import throughput
from segmenter_bench.engines import CHECKPOINT, TABLE, Entry, choose, entries, misfit, missing, open_entry
from segmenter_bench.machine import Spending
from segmenter_bench.race import Pace, agreement, artifact_sha256, limit_of, opened, race
from segmenter_bench.race_notes import elsewhere_of, placement_notes
from segmenter_bench.worker import Worker
from segmenter_engines import ENGINES
from segmenter_engines.folder import ARTIFACTS, reason_path
from segmenter_engines.limits import LIMITS
from tests.bench_fakes import fake_entry

OTHER_NETWORKS = {"another": "wrong", "no-labels": "shapeless"}
PACE = Pace(rounds=2, burst_seconds=0.02, min_calls=2, warmup=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An engine folder for fakes, which worker processes must be able to import."""
    folder = tmp_path_factory.mktemp("fakes")
    (folder / "artifact").touch()
    root = Path(__file__).resolve().parents[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "7")  # of the parent, and not for the workers
        patch.setenv("PYTHONPATH", os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")]))
        yield folder


@pytest.fixture(scope="module")
def images():
    return list(np.random.default_rng(0).integers(0, 256, (3, 16, 24, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def raced(folder, images):
    """Rows by (engine, batch), and the engines that could not be opened."""
    chosen = [fake_entry(name) for name in ("official", "fast", "mixes-rows", "dies", "refuses")]
    chosen.append(fake_entry("wrong", precision="int8"))
    chosen += [replace(fake_entry(name, kind), compared=False) for name, kind in OTHER_NETWORKS.items()]
    with opened(chosen, [fake_entry("official"), fake_entry("eager")], folder, threads=1) as (contestants, unavailable):
        rows = race(contestants, images, [1, 2], ["labels"], PACE, trained=True)
    return {(row["engine"], row["batch"]): row for row in rows}, unavailable


def test_every_engine_has_a_row_and_the_truth_only_when_asked_for(raced):
    rows, unavailable = raced
    assert {engine for engine, _ in rows} == {"official", "fast", "mixes-rows", "dies", "wrong", *OTHER_NETWORKS}
    assert unavailable == [{"engine": "refuses", "reason": "engine refuses: no driver here"}]


def test_rows_have_the_hash_of_the_file_their_engine_is_opened_from(raced, folder, tmp_path):
    assert {row["sha256"] for row in raced[0].values()} == {sha256(folder / "artifact")}
    checkpoint = tmp_path / CHECKPOINT
    checkpoint.mkdir()
    (checkpoint / WEIGHTS_NAME).write_bytes(b"weights")
    assert artifact_sha256(choose(["eager"])[0], tmp_path) == sha256(checkpoint / WEIGHTS_NAME)


def test_a_right_engine_is_timed_against_the_reference(raced):
    row = raced[0]["fast", 2]
    assert (row["status"], row["reason"], row["agreement"], row["agreement_limit"]) == ("ok", None, 1.0, 0.999)
    assert row["timing"]["batch"] == 2
    assert row["timing"]["calls"] == sum(len(turn) for turn in row["rounds_ms"])
    assert len(row["rounds_ms"]) == PACE.rounds
    assert row["ratio"]["median"] > 2  # the reference sleeps
    assert raced[0]["official", 1]["ratio"]["median"] == 1.0
    assert row["memory_bytes"] > 10 << 20
    assert row["describe"]["threads"] == 1
    assert row["describe"]["omp"] == "1"
    assert row["others_busy"] is None or 0.0 <= row["others_busy"] <= 1.5


def test_each_engine_lives_in_its_own_process(raced):
    pids = [row["describe"]["pid"] for (_, batch), row in raced[0].items() if batch == 1]
    assert len(set(pids)) == len(pids)
    assert os.getpid() not in pids


def test_others_are_neither_the_engines_nor_the_bench(folder, images, monkeypatch):
    counted = []
    monkeypatch.setattr("segmenter_bench.race.Spending", lambda pids: counted.extend(pids) or Spending(counted))
    with opened([fake_entry("eager"), fake_entry("fast")], [], folder, threads=1) as (contestants, _):
        race(contestants, images, [1], ["labels"], PACE, trained=True)
        assert counted == [one.worker.pid for one in contestants]


def test_wrong_labels_fail_but_keep_their_times(raced):
    row = raced[0]["wrong", 1]
    assert row["status"] == "failed"
    assert row["reason"] == "50.00% of pixels agree with PyTorch; wanted 90.0% at int8"
    assert row["timing"] is not None


def test_rows_of_a_batch_that_influence_each_other_are_found(raced):
    assert raced[0]["mixes-rows", 1]["status"] == "ok"
    assert raced[0]["mixes-rows", 2]["status"] == "failed"
    assert raced[0]["mixes-rows", 2]["agreement"] < 0.6


def test_an_engine_that_dies_is_reported_with_its_last_words(raced):
    row = raced[0]["dies", 1]
    assert row["status"] == "failed"
    assert row["reason"] == "dies: its process ended with status 3: out of luck"
    assert row["timing"] is None
    assert row["ratio"] is None


def test_another_network_is_timed_and_its_labels_are_not_compared(raced):
    row = raced[0]["another", 2]
    assert (row["status"], row["agreement"], row["agreement_limit"], row["compared"]) == ("ok", None, None, False)
    assert row["ratio"] is not None
    assert raced[0]["no-labels", 2]["reason"] == "labels uint8 (2, 16): wanted uint8 (2, 16, 24)"
    assert raced[0]["fast", 2]["compared"] is True


def test_without_the_truth_nothing_can_be_checked(folder, images):
    with (
        opened([fake_entry("eager", "refuses")], [], folder, threads=1) as (contestants, unavailable),
        pytest.raises(EngineError, match="without its labels nothing can be checked"),
    ):
        race(contestants, images, [1], ["labels"], PACE, trained=True)
    assert unavailable[0]["engine"] == "eager"


def test_a_worker_says_what_went_wrong_in_one_line_and_stops_when_too_slow(folder, images):
    worker = Worker(fake_entry("hangs"), folder, threads=1)
    try:
        worker.timeout_s = 0.3
        start = time.perf_counter()
        with pytest.raises(EngineError, match=r"hangs: no answer to 'labels' within 0 s; stopped"):
            worker.labels(images[0][None])
        assert time.perf_counter() - start < 20
    finally:
        worker.close()


def test_a_runtimes_own_exception_is_the_engines_failure_and_the_network_can_be_timed_alone(folder, images):
    worker = Worker(fake_entry("raises"), folder, threads=1)
    try:
        with pytest.raises(EngineError, match="RuntimeError: first line second line"):
            worker.labels(images[0][None])
        worker.prepare(images[0][None], "network", warmup=1)
        assert len(worker.burst(0.0, 3).ms) == 3
    finally:
        worker.close()


def test_agreement_counts_pixels_and_takes_no_other_shape():
    truth = np.zeros((4, 5), np.uint8)
    half = truth.copy()
    half[:2] = 1
    assert agreement([(truth, truth), (half, truth)]) == 0.75
    assert agreement([(truth[:2], truth)]) == 0.0


def test_random_weights_are_judged_in_fp32_only():
    assert limit_of("fp32", trained=False) == 1 - LIMITS["fp32"].disagreement
    assert limit_of("int8", trained=False) is None
    assert limit_of("int8", trained=True) == 1 - LIMITS["int8"].disagreement


def test_engines_are_chosen_by_name_family_or_all():
    assert [row.name for row in choose(["official"])] == ["official"]
    assert [row.name for row in choose(["openvino", "eager"])] == [
        "eager",
        "openvino-fp32",
        "openvino-bf16",
        "openvino-int8",
    ]
    assert choose(["all"]) == entries()
    with pytest.raises(ConfigError, match="engine 'nosuch' is unknown; choose 'all' or some of official, "):
        choose(["eager", "nosuch"])


def test_a_family_asked_for_is_missing_when_none_of_it_is_there():
    family = ["openvino-fp32", "openvino-bf16", "openvino-int8"]
    assert missing(["openvino", "tensorrt-rtx"], family) == ["openvino"]
    assert missing(["openvino"], family[1:]) == []  # some of it is there
    assert missing(["openvino-bf16", "eager"], family[1:]) == ["openvino-bf16"]
    assert missing(["all"], [row.name for row in entries()]) == []


def test_engines_on_other_devices_have_no_ratio(folder, images):
    names = ("official", "eager", "gpu")
    with opened([fake_entry(name) for name in names], [], folder, threads=1) as (contestants, _):
        kept = []
        found = race(
            *(contestants, images, [1], ["labels"], PACE, True),
            keep=lambda rows: kept.append([len(row["rounds_ms"]) for row in rows]),
        )
        rows = {row["engine"]: row for row in found}
    assert kept == [[turn] * 3 for turn in range(1, PACE.rounds + 1)]  # a run that is cut has its rounds
    assert rows["eager"]["ratio"] is not None
    assert rows["gpu"]["status"] == "ok"
    assert rows["gpu"]["timing"] is not None
    assert rows["gpu"]["ratio"] is None
    assert elsewhere_of(list(rows.values())) == ["gpu"]


def test_rows_are_of_rounds_with_the_cores_equally_far_apart(folder, images, monkeypatch):
    # before the race, then after each turn of three engines: five rounds far apart, one on the move, the others near
    distances = iter([250.0, *[250.0] * 15, *(250.0, 60.0, 60.0), *[60.0] * 30])
    monkeypatch.setattr("segmenter_bench.placement.steady", lambda read, before=None: read())
    with opened([fake_entry(name) for name in ("official", "fast")], [fake_entry("eager")], folder, 1) as (running, _):
        rows = race(
            *(running, images, [1], ["labels"], replace(PACE, rounds=6), True),
            gauge=lambda: next(distances),
        )
    assert len(list(distances)) == 30 - 6 * 3  # no round more than it takes
    for row in rows:
        (far,) = row["other_placements"]
        assert (row["core_to_core_ns"], row["cores_moved"], len(row["rounds_ms"])) == (60.0, True, 6)
        assert (far["core_to_core_ns"], len(far["rounds_ms"])) == (250.0, 5)
        assert row["timing"]["calls"] == sum(map(len, row["rounds_ms"]))
        assert far["timing"]["calls"] == sum(map(len, far["rounds_ms"]))
        assert far["ratio"]["median"] >= 1.0
    (note,) = placement_notes(rows)
    assert "figures are of the 6 rounds in which a cache line took 60 ns between them; in 5 it took 250 ns, and" in note


def test_cores_that_never_rest_are_told(folder, images, monkeypatch):
    distances = itertools.cycle([60.0, 250.0])
    monkeypatch.setattr("segmenter_bench.placement.steady", lambda read, before=None: read())
    with opened([fake_entry("official"), fake_entry("eager")], [], folder, threads=1) as (running, _):
        rows = race(running, images, [1], ["labels"], PACE, True, gauge=lambda: next(distances))
    assert {(row["core_to_core_ns"], len(row["rounds_ms"])) for row in rows} == {(None, 2 * PACE.rounds)}
    (note,) = placement_notes(rows)
    assert note.endswith("too few rounds, so figures are of all rounds, and unsure.")
    assert placement_notes([row | {"cores_moved": False} for row in rows]) == []


def test_a_race_goes_on_without_the_distance_of_cores(folder, images):
    distances = itertools.chain([60.0] * 3, itertools.repeat(None))
    with opened([fake_entry("official"), fake_entry("eager")], [], folder, threads=1) as (running, _):
        rows = race(running, images, [1], ["labels"], PACE, True, gauge=lambda: next(distances))
    for row in rows:
        assert (row["core_to_core_ns"], row["cores_moved"], len(row["rounds_ms"])) == (None, False, PACE.rounds)


def test_a_worker_that_dies_between_its_turns_fails_alone(folder, images):
    with opened([fake_entry(name) for name in ("eager", "fast")], [], folder, threads=1) as (contestants, _):
        worker = contestants[1].worker
        ask = worker.memory

        def memory():
            worker._process.kill()
            worker._process.wait()
            return ask()

        worker.memory = memory
        rows = race(contestants, images, [1], ["labels"], PACE, trained=True)
    assert [(row["engine"], row["status"]) for row in rows] == [("eager", "ok"), ("fast", "failed")]
    assert rows[1]["reason"].startswith("fast: its process was killed by signal 9")


def test_a_run_that_is_cut_has_its_notes(tmp_path, monkeypatch):
    row = {"engine": "gpu", "timing": {"ms_p50": 1.0}, "device": "GPU 9", "reference_device": "cpu", "others_busy": 0.5}

    def cut(*arguments, **_):
        arguments[-1]([row])
        raise KeyboardInterrupt

    subject = SimpleNamespace(size=(32, 32), folder=tmp_path, trained=False, max_batch={}, facts=lambda: {"name": "x"})
    monkeypatch.setattr(throughput, "_subject", lambda *_: subject)
    monkeypatch.setattr(throughput, "opened", lambda *_: nullcontext(([], [])))
    monkeypatch.setattr(throughput, "race", cut)
    kept = []
    with pytest.raises(KeyboardInterrupt):
        throughput.throughput(throughput.Options(variant="Seg-Ti-Mask/16", engine=("eager",)), "x", kept.append)
    assert [note.split(":")[0] for note in kept[0]["notes"]] == [
        "Random weights",
        "No ratio for gpu",
        "Other programs took up to 50% of the CPU cores during the timing",
    ]


def test_every_engine_of_the_registry_is_benched(monkeypatch):
    assert {row.engine for row in entries()} >= set(ENGINES)
    monkeypatch.setitem(ENGINES, "brand-new", ("module", "Class", ""))
    assert entries() == (*TABLE, Entry("brand-new", "checkpoint", "brand-new", ""))


def test_the_table_opens_what_the_pipeline_makes():
    opened = {row.artifact for row in TABLE}
    sources = {"model.fp16.onnx", "model.int8-trt.onnx"}  # only plans are made of them
    assert opened == {CHECKPOINT, *ARTIFACTS} - sources


def test_the_official_inference_only_races_on_square_images():
    inference, plain = choose(["official-inference"])[0], choose(["official"])[0]
    assert misfit(inference, (64, 64)) is None
    assert misfit(plain, (64, 80)) is None
    assert "cuts 64x80 images into square windows" in misfit(inference, (64, 80))


def test_a_missing_artifact_gives_its_reason(tmp_path):
    entry = next(row for row in TABLE if row.name == "openvino-int8")
    with pytest.raises(
        EngineError, match=r"model\.int8\.onnx is not in the engine folder; make it with `segmenter pipeline`"
    ):
        open_entry(entry, tmp_path, 1)
    reason_path(tmp_path / "model.int8.onnx").write_text("the package onnx is not installed\n")
    with pytest.raises(EngineError, match=r"^the package onnx is not installed$"):
        open_entry(entry, tmp_path, 1)
