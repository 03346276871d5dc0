"""Runs on disk: what is written is read back, and a file that is no run is named."""

import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from segmenter.errors import DataError
from segmenter_bench import miou, runs, throughput
from segmenter_bench.runs import new_run, read_run, runs_in, write_record, write_run
from tests.bench_samples import (
    checks_run,
    kernels_run,
    machine_run,
    miou_run,
    stages_run,
    throughput_run,
)


def test_runs_survive_the_disk_and_nan_becomes_null(tmp_path):
    run = new_run("miou", "segmenter bench-miou", {"name": "Seg-Ti-Mask/16"}, {"threads": 1})
    row = {"engine": "eager", "precision": "fp32", "status": "ok"}
    run["rows"] = [row | {"miou": math.nan, "iou": (0.5, math.inf)}]
    path = write_run(run, tmp_path)
    assert re.fullmatch(r"miou-seg-ti-mask-16-\d{8}T\d{6}\.json", path.name)
    back = read_run(path)
    assert back["rows"] == [row | {"miou": None, "iou": [0.5, None]}]
    assert back["machine"]["cpu"]["usable_cores"] >= 1


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{", "not JSON"),
        ("[]", "lacks schema"),
        ('{"schema": "segmenter-bench/1"}', "lacks kind"),
        (json.dumps(throughput_run() | {"schema": "other/2"}), "has schema 'other/2'"),
        (json.dumps(throughput_run() | {"rows": [{}]}), "row 0 lacks engine, precision, batch, region, status, timing"),
        (
            json.dumps(miou_run() | {"rows": [*miou_run()["rows"], {"engine": "x"}]}),
            "row 9 lacks precision, status, miou",
        ),
        (json.dumps(kernels_run() | {"rows": [7]}), "row 0 lacks op, .*, which a kernels run has"),
    ],
)
def test_a_file_that_is_no_run_is_named(tmp_path, text, complaint):
    path = tmp_path / "run.json"
    path.write_text(text)
    with pytest.raises(DataError, match=rf"run\.json: .*{complaint}"):
        read_run(path)
    with pytest.raises(DataError, match=r"gone\.json: No such file"):
        read_run(tmp_path / "gone.json")


@pytest.mark.parametrize("make", [throughput_run, miou_run, checks_run, kernels_run, stages_run, machine_run])
def test_rows_of_every_kind_are_read(make, tmp_path):
    assert read_run(write_run(make(), tmp_path))["rows"]


def test_the_committed_runs_are_read():
    files = runs_in(Path(runs.__file__).parent / "results")
    assert len([read_run(file) for file in files]) > 10


@pytest.mark.parametrize(("show", "run"), [(throughput.show, throughput_run()), (miou.show, miou_run())])
def test_names_and_reasons_are_printed_as_they_are(show, run, capsys):
    run["model"]["name"] = "net [/a]"
    run["rows"] = [{"others_busy": None, "extra_memory_bytes": None, **row} for row in run["rows"]]
    run["rows"][0] |= {"status": "failed", "reason": "outputs [labels]"}
    run["unavailable"] = [{"engine": "tensorrt", "reason": "run: pip install 'segmenter-trt[tensorrt]'"}]
    run["notes"] = ["a note [/b]"]
    show(run)
    out = capsys.readouterr().out
    for text in ("net [/a] ", ": outputs [labels]", "pip install 'segmenter-trt[tensorrt]'", "a note [/b]"):
        assert text in out


def test_a_record_has_every_option_and_no_nan(tmp_path):
    @dataclass(frozen=True)
    class Group:
        crop: tuple[int, int] = (2, 3)

    @dataclass(frozen=True)
    class Options:
        data: Path = Path("somewhere")
        group: Group = field(default_factory=Group)

    write_record(tmp_path / "r.json", Options(), {"ms": math.nan})
    record = json.loads((tmp_path / "r.json").read_text())
    assert {key: record[key] for key in ("data", "crop", "ms")} == {"data": "somewhere", "crop": [2, 3], "ms": None}
