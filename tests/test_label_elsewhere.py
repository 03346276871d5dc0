"""Labelling where pictures, labels or workers are elsewhere: object stores, URLs, and Ray."""

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

from segmenter.images import read_labels
from segmenter_engines.folder import FP32
from segmenter_engines.label_ray import RayLabeller
from tests.labelling import NAMES, label, labels, photos_fixture  # noqa: F401 - the last is a fixture

pytestmark = pytest.mark.filterwarnings("ignore:.*not verified in:RuntimeWarning")


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
    assert result["turned"].tolist() == [False, False]
    assert list(labels(tmp_path / "out")) == ["a.png"]


@pytest.fixture(name="ray_asked")
def ray_asked_fixture(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A stand-in that takes what Ray Data documents for `from_items` and `map_batches`, and runs it here.

    Gives what it was asked for.
    """
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
    return asked


def test_the_pipeline_given_to_ray(
    engine_folder: Path,
    photos: Path,
    tmp_path: Path,
    ray_asked: list[dict[str, Any]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    (photos / "b.jpg").write_bytes(b"no picture")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(photos / "e.jpeg").save(photos / "e.jpeg", exif=exif)
    assert label(engine_folder / FP32, photos, tmp_path / "out", "--ray", "3", "--ray-gpus", "0.5") == 1
    assert ray_asked == [{"concurrency": 3, "num_gpus": 0.5}]
    told = capsys.readouterr().err
    assert "b.jpg: not a JPEG or PNG file" in told
    assert "warning: e.jpeg: labelled as stored, not turned as EXIF says" in told
    assert len(labels(tmp_path / "out")) == 4


@pytest.mark.usefixtures("ray_asked")
def test_what_rays_workers_may_not_open_is_one_line(
    engine_folder: Path,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for option, complaint in (
        (["--require-verified"], f"{FP32}: not verified in onnxruntime-fp32"),
        (["--require-signature", "none.pem"], f"{tmp_path}/none.pem: no such file, wanted a public Ed25519 key"),
    ):
        assert label(engine_folder / FP32, photos, tmp_path / "out", "--ray", "2", *option) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert complaint in line
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_ray_itself(engine_folder: Path, photos: Path, tmp_path: Path) -> None:
    ray = pytest.importorskip("ray", reason="ray is not installed")
    ray.init(num_cpus=2, include_dashboard=False)
    try:
        assert label(engine_folder / FP32, photos, tmp_path / "out", "--ray", "2") == 0
    finally:
        ray.shutdown()
    assert len(labels(tmp_path / "out")) == len(NAMES)
