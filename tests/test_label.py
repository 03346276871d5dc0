"""Labelling by an engine, in shares: what one machine labels, many do too, however often they are stopped."""

import json
import os
import re
import shutil
import sys
import warnings
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segmenter.errors import ConfigError
from segmenter_engines import open_session
from segmenter_engines.export import export
from segmenter_engines.folder import CHECKPOINT, FP32, INT8
from segmenter_engines.label import main, pictures, share
from segmenter_engines.labeller import Labeller
from segmenter_engines.limits import LIMITS
from segmenter_engines.manifest import manifest_path
from segmenter_engines.sessions import ENGINES
from segmenter_engines.store import Store
from segmenter_engines.verdict import Verdict, record
from tests.labelling import NAMES, label, labels, photos_fixture  # noqa: F401 - the last is a fixture
from tests.small_engines import H, W

pytestmark = pytest.mark.filterwarnings("ignore:.*not verified in:RuntimeWarning")


def test_labels_are_the_engines(engine_folder: Path, photos: Path, tmp_path: Path) -> None:
    assert label(engine_folder / FP32, photos, tmp_path / "out") == 0
    found = labels(tmp_path / "out")
    assert sorted(found) == ["a.png", "b.png", "deep/c.png", "deep/d.png", "e.png"]
    with open_session(engine_folder / FP32, threads=1) as session:
        for name in ("a.png", "deep/d.PNG"):
            image = np.asarray(Image.open(photos / name))
            assert (found[name.lower()] == session(image)).all()
        half = Image.open(photos / "deep/c.png").resize((W, H), Image.Resampling.BILINEAR)
        expected = session(np.asarray(half))
        assert found["deep/c.png"].shape == (2 * H, W)
        assert (found["deep/c.png"][::2] == expected).all()
        assert (found["deep/c.png"][1::2] == expected).all()


def test_a_pixel_has_the_label_its_centre_falls_into_at_any_size(
    engine_folder: Path, photos: Path, tmp_path: Path
) -> None:
    height, width = 5 * H // 4, 5 * W // 2 + 1  # some centres fall on an edge
    Image.open(photos / "a.png").resize((width, height)).save(photos / "a.png")
    assert label(engine_folder / FP32, photos, tmp_path / "out") == 0
    found = labels(tmp_path / "out")["a.png"]
    with open_session(engine_folder / FP32, threads=1) as session:
        small = session(np.asarray(Image.open(photos / "a.png").resize((W, H), Image.Resampling.BILINEAR)))
    rows = [int(Fraction(2 * y + 1, 2 * height) * H) for y in range(height)]
    columns = [int(Fraction(2 * x + 1, 2 * width) * W) for x in range(width)]
    assert (found == small[np.ix_(rows, columns)]).all()


def test_pictures_that_exif_turns_are_told(
    engine_folder: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(photos / "b.jpg").save(photos / "b.jpg", exif=exif)
    assert label(engine_folder / FP32, photos, tmp_path / "out") == 0
    assert "warning: b.jpg: labelled as stored, not turned as EXIF says" in capsys.readouterr().err


def test_an_engine_that_was_not_verified_is_told_in_a_line(
    engine_folder: Path, photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")  # or this file's mark hides it
        assert label(engine_folder / FP32, photos, tmp_path / "out") == 0
    lines = [line for line in capfd.readouterr().err.splitlines() if "verified" in line]
    assert len(lines) == 1
    assert lines[0].startswith("warning: ")


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_each_picture_is_in_one_share_whatever_else_there_is(count: int) -> None:
    names = [f"{index}.png" for index in range(500)]
    shares = [share(names, f"{index}/{count}") for index in range(count)]
    assert sorted(name for each in shares for name in each) == sorted(names)
    assert max(map(len, shares)) < 2 * 500 / count
    fewer = names[::3]
    assert [share(fewer, f"{index}/{count}") for index in range(count)] == [
        [name for name in each if name in fewer] for each in shares
    ]


@pytest.mark.parametrize("text", ["2/2", "1", "-1/2", "a/b", "0/0", "1/2/3"])
def test_no_share(text: str) -> None:
    with pytest.raises(ConfigError, match="wanted i/n"):
        share(["a.png"], text)


def test_shares_make_up_the_whole_and_go_on_where_they_stopped(
    engine_folder: Path,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    engine = engine_folder / FP32
    assert label(engine, photos, tmp_path / "whole") == 0
    done: list[str] = []
    make = Labeller.label

    def counted(self: Labeller, name: str) -> None:
        if len(done) == 3:
            raise KeyboardInterrupt
        make(self, name)
        done.append(name)

    monkeypatch.setattr(Labeller, "label", counted)
    statuses = [label(engine, photos, tmp_path / "parts", "--shard", f"{index}/2") for index in range(2)]
    assert 130 in statuses
    assert len(labels(tmp_path / "parts")) == 3
    done.clear()
    assert {label(engine, photos, tmp_path / "parts", "--shard", f"{index}/2") for index in range(2)} == {0}
    assert len(done) == 2  # not those that were there
    assert "were there" in capsys.readouterr().out
    whole, parts = labels(tmp_path / "whole"), labels(tmp_path / "parts")
    assert whole.keys() == parts.keys()
    assert all((whole[name] == parts[name]).all() for name in whole)


def test_a_share_that_no_picture_falls_to_is_done_and_says_so(
    engine_folder: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = pictures(Store(str(photos)))
    every = [f"{index}/{2 * len(names)}" for index in range(2 * len(names))]
    shard = next(each for each in every if not share(names, each))
    assert label(engine_folder / FP32, photos, tmp_path / "out", "--shard", shard) == 0
    assert f"none of the {len(names)} images falls to share {shard}" in capsys.readouterr().out
    assert not labels(tmp_path / "out")


def test_labels_of_two_engines_do_not_mix(
    engine_folder: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert label(engine_folder / FP32, photos, tmp_path / "out", "--shard", "0/2") == 0
    before = labels(tmp_path / "out")
    assert label(engine_folder / INT8, photos, tmp_path / "out", "--shard", "1/2") == 2
    assert "holds labels of another engine" in capsys.readouterr().err
    assert labels(tmp_path / "out").keys() == before.keys()
    # a checkpoint is an engine too
    assert label(engine_folder / CHECKPOINT, photos, tmp_path / "torch") == 0
    assert json.loads((tmp_path / "torch" / "engine.json").read_text())["engine"] == "eager-fp32"


def test_labels_of_two_runtimes_or_precisions_do_not_mix(
    engine_folder: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engine, out = engine_folder / FP32, tmp_path / "out"
    assert label(engine, photos, out, "--engine", "onnxruntime") == 0
    facts = (out / "engine.json").read_text()
    refused = "holds labels of another engine, onnxruntime-fp32 (engine.json), and this is openvino"
    assert label(engine, photos, out, "--engine", "openvino") == 2  # and nothing is left to do
    assert refused in capsys.readouterr().err
    (out / "a.png").unlink()
    assert label(engine, photos, out, "--engine", "openvino") == 2
    assert refused in capsys.readouterr().err
    for other, named in (("onnxruntime-bf16", "onnxruntime-bf16"), (None, "none it names")):
        (out / "engine.json").write_text(json.dumps(json.loads(facts) | {"engine": other}))
        assert label(engine, photos, out) == 2
        assert f"another engine, {named} (engine.json), and this is onnxruntime" in capsys.readouterr().err
    assert not (out / "a.png").exists()
    (out / "engine.json").write_text(facts)
    assert label(engine, photos, out) == 0
    assert (out / "a.png").exists()


def test_only_a_verified_engine_labels_where_that_is_asked(
    engine_folder: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (engine_folder / FP32, manifest_path(engine_folder / FP32)):
        shutil.copy(path, tmp_path)
    record(tmp_path / FP32, Verdict("openvino-fp32", "fp32", 4, 0.4, 0.5, 1.0, LIMITS["fp32"]))
    record(tmp_path / FP32, Verdict("onnxruntime-fp32", "fp32", 4, 0.5, 0.5, 1.0, LIMITS["fp32"]))
    strict = "--require-verified", "--engine"
    assert label(tmp_path / FP32, photos, tmp_path / "out", *strict, "openvino", "--shard", "0/1") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.match(rf"error: .*{FP32}: failed its verification in openvino-fp32: mIoU dropped by 0\.1000", line)
    assert not (tmp_path / "out").exists()
    assert label(tmp_path / FP32, photos, tmp_path / "out", *strict, "onnxruntime") == 0


def test_a_bad_picture_is_named_and_the_others_are_labelled(
    engine_folder: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "b.jpg").write_bytes(b"no picture")
    assert label(engine_folder / FP32, photos, tmp_path / "out") == 1
    said = capsys.readouterr()
    assert "b.jpg: not a JPEG or PNG file" in said.err
    assert "4 of 5 images labelled" in said.out
    assert len(labels(tmp_path / "out")) == 4


def test_what_cannot_be(
    engine_folder: Path,
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = engine_folder / FP32

    def refused(images: object, out: object, *more: str) -> str:
        assert label(engine, images, out, *more) == 2
        return capsys.readouterr().err.splitlines()[-1]

    assert "none: no such folder; point --images at" in refused(tmp_path / "none", tmp_path / "out")
    assert "a.png: is a file; point --images at" in refused(photos / "a.png", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    assert "empty: holds no images" in refused(tmp_path / "empty", tmp_path / "out")
    assert "lies in --images" in refused(photos, photos / "labels")
    assert "lies in --images" in refused(photos, photos)
    assert "--shard 2/2" in refused(photos, tmp_path / "out", "--shard", "2/2")
    assert "streets://" in refused("streets://x", tmp_path / "out")
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    assert refused("gs://x", tmp_path / "out").endswith("; pip install gcsfs")
    monkeypatch.setitem(sys.modules, "ray", None)
    assert refused(photos, tmp_path / "out", "--ray", "2") == (
        "error: ray is not installed; run: pip install 'segmenter-trt[ray]'"
    )
    Image.new("RGB", (W, H)).save(photos / "a.jpg")
    assert "a.jpg and a.png would both become a.png" in refused(photos, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_names_of_any_bytes_and_length(engine_folder: Path, photos: Path, tmp_path: Path) -> None:
    odd, long = os.fsdecode(b"\xff\xe9.png"), "n" * 251 + ".png"
    for name in (odd, long):
        (photos / name).write_bytes((photos / "a.png").read_bytes())
    assert label(engine_folder / FP32, photos, tmp_path / "out", "--shard", "0/1") == 0
    assert {odd, long} <= labels(tmp_path / "out").keys()


def test_a_finished_share_too_belongs_to_one_engine(
    engine_folder: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert label(engine_folder / FP32, photos, tmp_path / "out") == 0
    assert "5 of 5 images labelled" in capsys.readouterr().out
    assert label(engine_folder / FP32, photos, tmp_path / "out") == 0
    assert f"all {len(NAMES)} images of this share were labelled already" in capsys.readouterr().out
    assert label(engine_folder / INT8, photos, tmp_path / "out") == 2
    assert "holds labels of another engine" in capsys.readouterr().err


def test_the_help_names_the_engines(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(engine in text for engine in ENGINES)


def test_an_engine_that_takes_no_single_picture(engine_folder: Path, photos: Path, tmp_path: Path) -> None:
    assert label(engine_folder / FP32, photos, tmp_path / "one") == 0
    export(engine_folder / CHECKPOINT, tmp_path / "pairs.onnx", height=H, width=W, batch=(2, 2, 4))
    assert label(tmp_path / "pairs.onnx", photos, tmp_path / "two") == 0
    one, two = labels(tmp_path / "one"), labels(tmp_path / "two")
    assert one.keys() == two.keys()
    assert all((one[name] == two[name]).mean() > 0.99 for name in one)
