"""Several runs on one page: which row counts, what is joined, and what is told of where each comes from."""

import copy

import pytest

from segmenter.errors import DataError
from segmenter_bench import report
from segmenter_bench.sections import sections
from tests.bench_samples import MACHINE, miou_run, throughput_run
from tests.outline import rendered


def test_the_newer_of_two_runs_counts():
    old, new = throughput_run(), copy.deepcopy(throughput_run())
    old["created"], new["created"] = "2026-01-01T00:00:00Z", "2026-01-03T00:00:00Z"
    new["rows"][0]["timing"]["images_per_s"] = 77.0
    for runs in ([old, new], [new, old]):
        (section,) = sections(runs)
        assert section.lines(1)[0].images_per_s == 77.0


def test_a_second_run_of_other_engines_hides_none_of_the_first():
    """An acceptance times a network's engines, then those of its exports: both are in the tables."""
    first, second = throughput_run(batches=(1, 32)), throughput_run(batches=(1,))
    first["rows"] = [row for row in first["rows"] if not row["engine"].startswith("openvino")]
    second["rows"] = [row for row in second["rows"] if row["engine"] in ("openvino-int8", "official")]
    second["created"] = "2026-01-03T00:00:00Z"
    second["settings"] = second["settings"] | {"rounds": 3}
    second["notes"] = ["a note of the second"]
    (section,) = sections([second, first])
    assert section.batches == [1, 32]
    lines = {line.engine: line for line in section.lines(1)}
    assert {"eager", "official", "openvino-int8"} < set(lines)
    assert lines["openvino-int8"].rounds == 3
    assert lines["eager"].rounds == 6
    assert lines["official"].speed is second["rows"][0]
    assert "official" in {line.engine for line in section.lines(32)}
    text = rendered(second, first)[1].text
    assert "a note of the second" in text
    assert "3 rounds of at least" in text
    assert "6 rounds of at least" in text


def test_engines_of_different_runs_are_not_shown_as_one_race():
    first, second = throughput_run(), throughput_run()
    first["created"], second["created"] = "2026-01-01T10:00:00Z", "2026-01-02T10:00:00Z"
    second["machine"] = second["machine"] | {"git": {"commit": "abcdef0123", "dirty": False}}
    second["rows"] = [row for row in second["rows"] if row["engine"] in ("official", "openvino-int8")]
    _, outline = rendered(first, second)
    told = "openvino-int8 (2026-01-02 10:00:00, commit abcdef0)"
    assert "Raced apart, in 2 runs" in outline.text
    assert told in outline.text
    assert "against the official of its own run" in outline.text
    assert told in report.markdown(sections([first, second]), [])
    assert "Raced apart" not in rendered(first)[1].text
    assert "Raced apart" not in rendered(first, first | {"created": "2026-01-03T10:00:00Z"})[1].text


def with_files(run, **files):
    """The run of engines opened from files of these hashes, by their first word."""
    rows = [row | {"sha256": files.get(row["engine"].split("-")[0], "a")} for row in run["rows"]]
    return run | {"rows": rows}


def test_a_table_tells_what_its_accuracy_and_its_speed_are_of():
    speed, accuracy = with_files(throughput_run(batches=(1,))), with_files(miou_run())
    accuracy["created"] = "2026-01-05T10:00:00Z"
    accuracy["machine"] = MACHINE | {
        "cpu": MACHINE["cpu"] | {"model": "Small CPU", "flags": ["avx2"]},
        "git": {"commit": "abcdef0123", "dirty": False},
    }
    text = rendered(speed, accuracy)[1].text
    told = (
        "mIoU is of camvid val, 101 images: 2026-01-05 10:00:00, commit abcdef0, Small CPU, 8 cores with avx2;"
        " speed: 2026-01-02 03:04:05, commit 0123456 with local changes."
    )
    assert told in text
    assert told in report.markdown(sections([speed, accuracy]), [])
    assert "engine file" not in text
    assert "mIoU is of" not in rendered(speed)[1].text
    assert "the same engine files is not known" in rendered(throughput_run(), miou_run())[1].text


def test_other_instructions_of_a_cpu_of_the_same_name_are_told():
    accuracy = miou_run() | {"machine": MACHINE | {"cpu": MACHINE["cpu"] | {"flags": []}}}
    text = rendered(throughput_run(batches=(1,)), accuracy)[1].text
    assert "Some CPU 9000, 8 cores with no instructions of note;" in text


def test_speed_and_accuracy_of_other_engine_files_are_not_joined():
    speed = with_files(throughput_run(batches=(1,)))
    (section,) = sections([speed, with_files(miou_run(), openvino="b")])
    lines = {line.engine: line for line in section.lines(1)}
    assert lines["openvino-int8"].miou is None
    assert lines["onnxruntime-int8"].miou == 0.6251
    text = rendered(speed, with_files(miou_run(), openvino="b"))[1].text
    assert "The mIoU of openvino-fp32, openvino-bf16, openvino-int8 is left out: it is of another engine file" in text


def test_a_newer_run_of_one_engines_accuracy_hides_no_other():
    old, new = miou_run(), miou_run()
    new["created"] = "2026-01-09T00:00:00Z"
    new["rows"] = [row | {"miou": 0.61} for row in new["rows"] if row["engine"] == "openvino-int8"]
    for runs in ([old, new], [new, old]):
        (section,) = sections([*runs, throughput_run()])
        lines = {line.engine: line.miou for line in section.lines(1)}
        assert (lines["openvino-int8"], lines["eager"]) == (0.61, 0.6285)
        text = rendered(*runs, throughput_run())[1].text
        assert "openvino-int8 (2026-01-09 00:00:00, commit 0123456 with local changes)" in text
        assert text.count("0.970") > 1  # the IoU of a class, by every engine
    new["settings"] = new["settings"] | {"images": 5}  # of other images nothing is joined
    (section,) = sections([old, new])
    assert set(section.judged) == {"openvino-int8"}


def test_speeds_with_other_threads_are_told_apart():
    first, second = throughput_run(batches=(1,)), throughput_run(batches=(1,))
    second["settings"] = second["settings"] | {"threads": 64}
    second["created"] = "2026-01-03T10:00:00Z"
    second["rows"] = [row for row in second["rows"] if row["engine"] in ("official", "openvino-int8")]
    text = rendered(first, second)[1].text
    assert "(2026-01-03 10:00:00, commit 0123456 with local changes, 64 threads)" in text
    assert "(2026-01-02 03:04:05, commit 0123456 with local changes, 8 threads)" in text


def test_an_engine_that_the_newest_run_could_not_open_is_told():
    old, new = throughput_run(batches=(1,)), throughput_run(batches=(1,))
    new["created"] = "2026-01-03T00:00:00Z"
    new["rows"] = [row for row in new["rows"] if row["engine"] != "openvino-int8"]
    new["unavailable"] = [{"engine": "openvino-int8", "reason": "no libopenvino.so"}]
    told = "openvino-int8 : no libopenvino.so; the speed shown is of an older run"
    assert told in rendered(old, new, miou_run())[1].text
    mended = throughput_run(batches=(1,)) | {"created": "2026-01-04T00:00:00Z"}
    assert "no libopenvino.so" not in rendered(old, new, mended)[1].text
    # a run of accuracy that opens it says nothing of its speed
    later = miou_run() | {"created": "2026-01-05T00:00:00Z"}
    assert told in rendered(old, new, later)[1].text


def test_speeds_of_different_machines_do_not_share_a_table():
    other = throughput_run() | {"machine": MACHINE | {"cpu": MACHINE["cpu"] | {"model": "Another CPU"}}}
    with pytest.raises(DataError, match=r"different machines .*Another CPU.*one report a machine"):
        sections([throughput_run(), other])
