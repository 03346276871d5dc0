"""The page made of runs: whole, self-contained, and honest about what is missing."""

import copy
import json
import re
from pathlib import Path

import pytest

from segmenter.errors import ConfigError
from segmenter_bench import page_figures, report
from segmenter_bench.page_figures import FAMILIES, FAMILY_NAMES, family
from segmenter_bench.runs import read_run
from segmenter_bench.sections import Line, sections
from segmenter_bench.sheets import quantity
from tests.bench_samples import CLASSES, miou_run, throughput_run
from tests.outline import Outline, rendered


def test_engines_that_are_not_judged_are_not_counted_as_though_they_had_failed():
    run = throughput_run(batches=(1,))
    assert "10 of 11 engines whose labels were judged and passed" in rendered(run)[1].text
    rival = copy.deepcopy(run["rows"][0]) | {"engine": "eomt-style", "agreement": None, "agreement_limit": None}
    run["rows"].append(rival | {"compared": False})
    told = "10 of 11 engines whose labels were judged and passed; 1 more is there for speed alone"
    assert told in rendered(run)[1].text
    random = throughput_run(trained=False, batches=(1,))  # of two precisions nothing is judged on random weights
    assert "7 of 8 engines whose labels were judged and passed; 3 more are there" in rendered(random)[1].text


def test_the_page_is_well_formed_and_fetches_nothing():
    text, outline = rendered(throughput_run(), miou_run(), throughput_run(trained=False, name="Seg-Ti-Mask/16"))
    assert outline.open == []
    assert all(value.startswith("data:image/") for value in outline.fetched)
    assert len(outline.fetched) > 10
    assert all(url.startswith("data:image/") for url in re.findall(r"url\(([^)]*)\)", text))
    assert not re.search(r"https?:|@import|<script|<link|<iframe", text)
    assert "A &lt;title&gt; &amp; more" in text
    assert "<tree>" not in text
    assert not any(f"<{word}" in text for word in ("weights", "picture", "out of "))


def test_the_page_tells_speed_accuracy_failures_and_what_is_missing():
    _, outline = rendered(throughput_run(), miou_run())
    text = outline.text
    for expected in (
        "openvino-int8",
        "0.6243",
        "-0.0042",
        "98.61%",
        "14.9",
        "7.84",
        "onnxruntime-fp16 : 91.00% of pixels agree with PyTorch, wanted 99.0%; its process was killed by signal",
        "9: <out of memory>",
        "val/<picture 1>.png",
        "tensorrt-rtx-int8 : no NVIDIA driver here (libcuda.so.1 not found)",
        "Results, batch 4",
        "Some CPU 9000",
        "avx512_vnni",
        "0123456789ab with local changes",
        "segmenter bench-miou --folder camvid <weights & all>",
        "uint8 images to uint8 labels, in host memory.",
        "cyclist",
    ):
        assert expected in text
    assert "nan" not in text.lower().split()
    assert "None" not in text


def test_random_weights_are_shown_as_not_judged():
    _, outline = rendered(throughput_run(trained=False))
    assert "random weights" in outline.text
    assert "not judged" in outline.text
    assert "mIoU against speed" not in outline.text


def test_engines_that_failed_are_never_the_best():
    run = throughput_run(batches=(1,))
    fastest = next(row for row in run["rows"] if row["engine"] == "openvino-int8")
    fastest |= {"status": "failed", "reason": "wrong labels"}
    (section,) = sections([run])
    assert section.best.engine == "openvino-bf16"


def test_accuracy_alone_and_speed_alone_make_pages_too():
    for runs in ([miou_run()], [throughput_run()], [miou_run() | {"rows": [], "examples": []}]):
        _, outline = rendered(*runs)
        assert outline.open == []


def test_odd_rows_do_not_break_the_page():
    run = miou_run()
    run["rows"][0] |= {"miou": None, "iou": [None] * len(CLASSES), "drop": None, "agreement": None}
    speed = throughput_run()
    speed["rows"] = [row | {"timing": None, "ratio": None, "status": "failed", "reason": None} for row in speed["rows"]]
    speed["machine"] = {"versions": {}, "cpu": {}}
    _, outline = rendered(run, speed)
    assert outline.open == []
    assert "no reason given" in outline.text


def test_a_picture_that_would_be_fetched_is_refused():
    run = miou_run()
    run["examples"][0]["photo"] = "https://example.org/spy.png"
    run["examples"][0]["labels"]["eager"] = "javascript:alert(1)"
    text, outline = rendered(run)
    assert "example.org" not in text
    assert "javascript" not in text
    assert all(value.startswith("data:image/") for value in outline.fetched)


def test_quantiles_of_few_calls_are_not_shown():
    run = throughput_run(batches=(1,))
    for row in run["rows"]:
        if row["timing"]:
            row["timing"] |= {"calls": 99, "ms_p90": 111.25, "ms_p99": 333.25}
    assert "p99 ms" not in rendered(run)[1].text
    assert "111.2" in rendered(run)[1].text
    next(row for row in run["rows"] if row["engine"] == "eager")["timing"]["calls"] = 100
    assert rendered(run)[1].text.count("333.2") == 1
    for row in run["rows"]:
        if row["timing"]:
            row["timing"]["calls"] = 9
    assert "p90 ms" not in rendered(run)[1].text


def test_the_way_through_logits_has_a_table_of_its_own():
    run = throughput_run(batches=(1,))
    row = next(row for row in run["rows"] if row["engine"] == "openvino-int8")
    long = row | {"region": "logits", "ratio": None, "memory_bytes": 1_070_000_000}
    long["timing"] = row["timing"] | {"ms_p50": 250.1}
    run["rows"].append(long)
    text = rendered(run)[1].text
    assert "By way of logits" in text
    assert "250.1" in text
    assert "1,070" in text
    assert "By way of logits" not in rendered(throughput_run())[1].text


def test_ratios_are_named_after_the_engine_they_are_against():
    run = throughput_run(trained=False, batches=(1,))
    run["rows"] = [row | {"engine": row["engine"].replace("official", "gpu-explicit")} for row in run["rows"]]
    run["settings"]["reference"] = "gpu-explicit"
    text = rendered(run)[1].text
    assert "x gpu-explicit" in text
    assert "Times gpu-explicit" in text
    assert "gpu-explicit, same run, same threads" in text
    assert "official" not in text.replace("segmenter", "")
    official = rendered(throughput_run())[1].text
    for words in ("x official", "Times the official way", "the official implementation's way, same run"):
        assert words in official


def test_class_masks_held_to_a_limit_are_judged():
    row = {"engine": "gpu-sdpa", "status": "ok", "agreement_limit": None, "error_limit": 0.01}
    assert Line("gpu-sdpa", 1, row, None).verdict == "passed"
    assert Line("gpu-sdpa", 1, row | {"error_limit": None}, None).verdict == "not judged"


def test_a_run_says_how_it_was_timed_as_far_as_it_came():
    run = throughput_run() | {"how": "All <in> one process."}
    run["settings"] |= {"threads": "<8>", "rounds": 9}
    run["rows"][0]["rounds_ms"] = [[1.0], [1.0]]  # cut in the third round
    text, outline = rendered(run)
    assert "<8>" not in text
    assert "<8> CPU threads for every engine. They take turns, 2 rounds of at least 1.0 s after 2" in outline.text
    assert "All <in> one process." in outline.text
    assert "process of its own" not in outline.text
    del run["settings"]["warmup"]
    assert "take turns, 2 rounds; images/s is" in rendered(run)[1].text
    assert "Each runs in a process of its own" in rendered(throughput_run())[1].text


def test_kernels_have_a_colour_of_their_own():
    assert {family(name) for name in ("gpu-kernels", "gpu-kernels-labels", "triton-fp16")} == {"triton"}
    assert family("gpu-sdpa") == "torch"
    style = (Path(page_figures.__file__).parent / "page.css").read_text(encoding="utf-8")
    assert set(FAMILIES.values()) | {"other"} <= set(re.findall(r"\.fill\.(\w+) \{", style))
    assert set(FAMILIES.values()) | {"other"} == set(FAMILY_NAMES)


def test_the_command_writes_the_page_and_prints_the_table(tmp_path, capsys):
    for name, run in (("speed", throughput_run()), ("miou", miou_run())):
        (tmp_path / f"{name}.json").write_text(json.dumps(run))
    out = tmp_path / "pages" / "report.html"
    assert report.main([str(tmp_path), "--out", str(out), "--markdown"]) == 0
    printed = capsys.readouterr().out
    assert printed.endswith(f"{out}\n")
    rows = [line for line in printed.splitlines() if line.startswith("|")]
    assert rows[0] == "| engine | mIoU | pixels as PyTorch | images/s | p50 ms | x official | verdict |"
    plain = [re.sub(r"\[([^\]]+)\]\[run\d-row\d+\]", r"\1", row) for row in rows]
    assert "| `openvino-int8` | 0.6243 | 98.61% | 14.9 | 67.1 | 7.8 | passed |" in plain
    assert len({row.count("|") for row in rows}) == 1
    assert Outline(out.read_text()).open == []


def test_the_command_wants_runs(tmp_path, capsys):
    with pytest.raises(ConfigError, match="no runs"):
        report.report([tmp_path], tmp_path / "report.html", "title", "command")
    run = tmp_path / "run.json"
    run.write_text(json.dumps(miou_run()))
    with pytest.raises(ConfigError, match=r"run\.json: is one of the runs"):
        report.report([run], run, "title", "command")
    assert read_run(run)["kind"] == "miou"
    assert report.main([str(tmp_path / "gone.json")]) == 2
    assert "error: " in capsys.readouterr().err


def test_a_folder_may_hold_other_json_too(tmp_path, capsys):
    for name, content in (
        ("miou", miou_run()),
        ("seeds", {"seeds": [1]}),
        ("costs", {"schema": "layers/1"}),
        ("x", [1]),
    ):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    out = tmp_path / "report.html"
    assert report.main([str(tmp_path), "--out", str(out)]) == 0
    assert "passed over, no runs: costs.json, seeds.json, x.json" in capsys.readouterr().err
    # named, it is wanted; and what may be a run cut in two is told in a folder as well
    assert report.main([str(tmp_path / "seeds.json"), "--out", str(out)]) == 2
    (tmp_path / "cut.json").write_text('{"schema": "segm')
    assert report.main([str(tmp_path), "--out", str(out)]) == 2
    assert "cut.json: not JSON" in capsys.readouterr().err


def test_few_rounds_give_no_range_and_the_order_of_images_per_s():
    """A round in which official stalled once put the second fastest engine first."""
    run = throughput_run(batches=(1,))
    run["settings"]["rounds"] = 3
    noisy = next(row for row in run["rows"] if row["engine"] == "openvino-bf16")
    noisy["ratio"] = {"median": 9.87, "low": 4.05, "high": 133.99, "cpu": 9.0}
    text = rendered(run)[1].text
    assert "133.99" not in text
    assert "9.87" not in text
    assert "Images/s over official's; 3 rounds are too few for a range." in text
    (section,) = sections([run])
    speedups = {line.engine: line.speedup for line in section.lines(1)}
    assert max(speedups, key=lambda name: speedups[name] or 0) == section.best.engine == "openvino-int8"
    assert speedups["openvino-bf16"] == 10.8 / 1.9
    noisy["ratio"]["of_p50"] = 5.5
    assert next(line for line in section.lines(1) if line.engine == "openvino-bf16").speedup == 5.5
    run["settings"]["rounds"] = 5
    text = rendered(run)[1].text
    assert "9.87 4.05 to 133.99" in text
    assert "Median of how much faster than official each of 5 rounds was" in text


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (1994.3, 3, "1,990"),
        (1994.3, 4, "1,994"),
        (12345678.0, 3, "12,300,000"),
        (14.9, 4, "14.90"),
        (163.96, 4, "164.0"),
        (0.0001234, 3, "0.000123"),
        (0.0, 3, "0.00"),
        (None, 3, "-"),
    ],
)
def test_quantities_are_written_as_people_write_them(value, digits, text):
    assert quantity(value, digits) == text


def test_the_headline_of_a_fast_engine_has_no_exponent():
    run = throughput_run(batches=(1,))
    for row in run["rows"]:
        if row["timing"]:
            row["timing"]["images_per_s"] *= 133.7
    assert "1,990 img/s" in rendered(run)[1].text
