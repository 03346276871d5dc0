"""Labelling by an engine, in shares: what one machine labels, many do too, however often they are stopped."""

import json
import os
import sys
import uuid
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import fsspec
import numpy as np
import pytest
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFile
from PIL import Image

from segmenter.errors import ConfigError
from segmenter.images import read_labels
from segmenter_engines import open_session
from segmenter_engines.export import export
from segmenter_engines.folder import CHECKPOINT, FP32, INT8
from segmenter_engines.label import main, share
from segmenter_engines.label_ray import RayLabeller
from segmenter_engines.labeller import Labeller
from segmenter_engines.sessions import ENGINES
from tests.small_engines import H, W, pictures

pytestmark = pytest.mark.filterwarnings("ignore:.*not verified in:RuntimeWarning")

NAMES = ["a.png", "b.jpg", "deep/c.png", "deep/d.PNG", "e.jpeg"]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Pictures of the engine's size, and one that is larger, in a folder and below it."""
    folder = tmp_path / "photos"
    (folder / "deep").mkdir(parents=True)
    for index, (name, image) in enumerate(zip(NAMES, pictures(len(NAMES)), strict=True)):
        larger = image.repeat(2, axis=0) if index == 2 else image
        Image.fromarray(larger).save(folder / name)
    (folder / ".hidden.png").write_bytes(b"none")
    return folder


def label(engine: Path, photos: object, out: object, *more: str) -> int:
    return main([str(engine), "--images", str(photos), "--out", str(out), "--threads", "1", *more])


def labels(out: Path) -> dict[str, np.ndarray]:
    return {path.relative_to(out).as_posix(): read_labels(path) for path in out.rglob("*.png")}


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


@pytest.fixture
def bucket() -> str:
    """A folder of fsspec's store in memory."""
    return f"memory://{uuid.uuid4().hex}"


def test_an_object_store(
    engine_folder: Path, photos: Path, tmp_path: Path, bucket: str, capsys: pytest.CaptureFixture[str]
) -> None:
    store = fsspec.filesystem("memory")
    root = bucket.removeprefix("memory:/")
    for name in NAMES:
        store.pipe_file(f"{root}/in/{name}", (photos / name).read_bytes())
    store.pipe_file(f"{root}/in/broken.png", b"no picture")
    engine = engine_folder / FP32
    assert label(engine, f"{bucket}/in", f"{bucket}/out", "--shard", "0/2") in (0, 1)
    assert label(engine, f"{bucket}/in", f"{bucket}/out", "--shard", "1/2") in (0, 1)
    assert f"{bucket}/in/broken.png: not a JPEG or PNG" in capsys.readouterr().err
    (photos / "broken.png").unlink(missing_ok=True)
    assert label(engine, photos, tmp_path / "out") == 0
    for name, expected in labels(tmp_path / "out").items():
        copy = tmp_path / "copy.png"
        copy.write_bytes(store.cat_file(f"{root}/out/{name}"))
        assert (read_labels(copy) == expected).all()
    # nothing is left to do but what failed
    assert label(engine, f"{bucket}/in", f"{bucket}/out") == 1
    assert "0 of 1 images labelled" in capsys.readouterr().out


def test_keys_that_are_no_paths_and_one_that_cannot_be_had(
    engine_folder: Path, photos: Path, tmp_path: Path, bucket: str, capsys: pytest.CaptureFixture[str]
) -> None:
    store = fsspec.filesystem("memory")
    root = f"{bucket.removeprefix('memory:/')}/in"
    picture = (photos / "a.png").read_bytes()
    # as S3 lists them; this store's own writing would tidy them
    store.store.update({f"{root}{key}": MemoryFile(store, f"{root}{key}", picture) for key in ("/x//b.png", "//c.png")})
    store.pipe_file(f"{root}/a.png", picture)
    get = store.get_file

    def lost(remote: str, *rest: Any, **options: Any) -> None:
        if remote.endswith("a.png"):
            raise ConnectionError("reset by peer")
        get(remote, *rest, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "get_file", lost)
        assert label(engine_folder / FP32, f"{bucket}/in", tmp_path / "out") == 1
    said = capsys.readouterr()
    assert "a.png cannot be had or written (reset by peer)" in said.err
    assert "2 of 3 images labelled" in said.out
    assert sorted(labels(tmp_path / "out")) == ["c.png", "x/b.png"]
    assert label(engine_folder / FP32, f"{bucket}/in", tmp_path / "out") == 0
    assert "1 of 1 images labelled" in capsys.readouterr().out


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


def test_a_folder_named_by_a_url(
    engine_folder: Path,
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for images, out in ((f"file://{photos}", photos / "labels"), (photos, f"file://{photos}/labels")):
        assert label(engine_folder / FP32, images, out) == 2
        assert "lies in --images" in capsys.readouterr().err

    def killed(self: object, here: str, there: str, **_: object) -> None:
        Path(there).write_bytes(Path(here).read_bytes()[:20])
        raise KeyboardInterrupt

    monkeypatch.setattr(LocalFileSystem, "put_file", killed)
    assert label(engine_folder / FP32, f"file://{photos}", f"file://{tmp_path}/out") == 0
    assert len(labels(tmp_path / "out")) == len(NAMES)


def test_rays_contract(engine_folder: Path, photos: Path, tmp_path: Path) -> None:
    """A callable class, made once from its arguments, that maps a dict of arrays to one of as many rows."""
    (photos / "b.jpg").write_bytes(b"no picture")
    worker = RayLabeller(engine_folder / FP32, str(photos), str(tmp_path / "out"), None, 1)
    result = worker({"name": np.array(["a.png", "b.jpg"])})
    assert result["name"].tolist() == ["a.png", "b.jpg"]
    assert result["error"][0] == ""
    assert "b.jpg" in result["error"][1]
    assert list(labels(tmp_path / "out")) == ["a.png"]


def test_the_pipeline_given_to_ray(
    engine_folder: Path,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """By a stand-in that takes what Ray Data documents for `from_items` and `map_batches`, and runs it here."""
    asked: list[dict[str, Any]] = []

    class FakeDataset:
        def __init__(self, rows: list[dict[str, Any]]) -> None:
            self.rows = rows

        def map_batches(self, made: type, *, fn_constructor_args: Any, batch_size: int, **rest: Any) -> "FakeDataset":
            asked.append(rest)
            worker, rows = made(*fn_constructor_args), []
            for first in range(0, len(self.rows), batch_size):
                part = self.rows[first : first + batch_size]
                columns = worker({key: np.array([row[key] for row in part]) for key in part[0]})
                rows += [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
            return FakeDataset(rows)

        def iter_rows(self) -> list[dict[str, Any]]:
            return self.rows

    fake: Any = ModuleType("ray")
    fake.data = SimpleNamespace(from_items=FakeDataset)
    monkeypatch.setitem(sys.modules, "ray", fake)
    (photos / "b.jpg").write_bytes(b"no picture")
    assert label(engine_folder / FP32, photos, tmp_path / "out", "--ray", "3", "--ray-gpus", "0.5") == 1
    assert asked == [{"concurrency": 3, "num_gpus": 0.5}]
    assert "b.jpg: not a JPEG or PNG file" in capsys.readouterr().err
    assert len(labels(tmp_path / "out")) == 4


@pytest.mark.slow
def test_ray_itself(engine_folder: Path, photos: Path, tmp_path: Path) -> None:
    ray = pytest.importorskip("ray", reason="ray is not installed")
    ray.init(num_cpus=2, include_dashboard=False)
    try:
        assert label(engine_folder / FP32, photos, tmp_path / "out", "--ray", "2") == 0
    finally:
        ray.shutdown()
    assert len(labels(tmp_path / "out")) == len(NAMES)
