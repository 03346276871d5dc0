"""The report's tables of the hardware: what was judged, and none that mixes what was measured apart."""

from typing import Any

import pytest

from segmenter_bench.page_hardware import hardware
from tests.bench_samples import MACHINE, checks_run, kernels_run, stages_run

Run = dict[str, Any]
LATER = {"created": "2026-01-02T05:00:00Z"}
OTHER_GPU = {"model": {"name": "GPU 8000"}}
OTHER_COMMIT = {"machine": MACHINE | {"git": {"commit": "abcdef0123", "dirty": False}}}


def test_what_was_judged_is_told_by_op_and_type_and_what_failed_by_shape() -> None:
    (table,) = hardware([checks_run()], [])
    assert table.title == "Kernels judged on GPU 9000"
    assert table.hint.startswith("4 of 9 shapes judged")
    assert [[cell.text for cell in line] for line in table.lines] == [
        ["attention", "fp16", "50%", "1 of 1 right"],
        ["attention", "bf16", "-", "0 of 1 right"],
        ["8 x 1025, 12 x 64", "bf16", "-", "failed: no answer within 120 s"],
        ["quantize", "fp16", "50%", "1 of 1 right"],
        ["quantize", "bf16", "50%", "1 of 1 right"],
    ]


@pytest.mark.parametrize(("make", "title"), [(kernels_run, "Kernels against"), (checks_run, "Kernels judged on")])
def test_gpus_and_commits_have_tables_of_their_own(make: Any, title: str) -> None:
    tables = hardware([make() | LATER | OTHER_COMMIT, make(), make() | OTHER_GPU], [])
    assert all(table.title.startswith(title) for table in tables)
    assert [table.title.split()[-1] for table in tables] == ["9000", "8000", "9000"]
    assert [table.hint.partition("2026-01-02 ")[2] for table in tables] == [
        "03:04:05, commit 0123456 with local changes.",
        "03:04:05, commit 0123456 with local changes.",
        "05:00:00, commit abcdef0.",
    ]


def test_kernels_of_one_commit_share_a_table_and_types_do_not() -> None:
    other_type = kernels_run()
    other_type["settings"]["dtype"] = "bf16"
    one, two = hardware([kernels_run(), kernels_run() | LATER, other_type], [])
    assert len(one.lines) == 2 * len(two.lines)
    assert one.hint == "fp16. 2026-01-02 03:04:05 to 2026-01-02 05:00:00, commit 0123456 with local changes."
    assert two.hint.startswith("bf16. ")


@pytest.mark.parametrize(
    "change", [{"ops": "plain"}, {"dtype": "bf16"}, {"threads": 1}, {"device": "cpu"}, {"batch": 1}]
)
def test_stages_hide_none_of_other_settings(change: Run) -> None:
    old, new, other = stages_run(), stages_run() | LATER, stages_run() | LATER
    new["rows"][0]["ms"] = 77.0
    other["settings"] |= change
    tables = hardware([old, new, other], [])
    assert [table.lines[0][1].text for table in tables] == ["77.0", "1,230"]
    large = stages_run()
    large["model"] |= {"height": 1024, "width": 1024}
    assert [table.hint.split(",")[0] for table in hardware([old, large], [])] == ["360x480", "1024x1024"]
