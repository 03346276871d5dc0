"""Files are whole or not there, and a place that takes none is named before the work and not after it."""

import errno
import os
import stat
from contextlib import nullcontext
from pathlib import Path

import pytest

from segmenter.evaluate import main as evaluate
from segmenter.files import atomic_path, atomic_paths, require_writable
from segmenter.probe import main as probe


@pytest.mark.parametrize("how", ["check", "write"])
def test_a_place_that_takes_no_file_is_named(how: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    os.mkfifo(tmp_path / "pipe")
    for path, named, message in (
        (tmp_path, tmp_path, "Is a directory"),
        (tmp_path / "pipe", tmp_path / "pipe", "a device or a pipe"),
        (tmp_path / "file" / "a.json", tmp_path / "file", "Not a directory|File exists"),
        (Path("/proc/a.json"), Path("/proc/a.json"), "No such file or directory|Permission denied"),
    ):
        if path.parts[1] == "proc" and not path.parent.is_dir():
            continue  # not on this system
        if how == "check":
            with pytest.raises(OSError, match=message) as caught:
                require_writable(path)
        else:
            with pytest.raises(OSError, match=message) as caught, atomic_path(path):
                pass
        assert Path(caught.value.filename) == named
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "pipe"]


def test_a_check_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "there").write_text("old")
    require_writable(tmp_path / "there")
    require_writable(tmp_path / "a" / "b" / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
    assert (tmp_path / "there").read_text() == "old"


def test_commands_refuse_an_impossible_output_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    # the checkpoint is not there either, and what is wrong with the output comes before it is looked for
    checkpoint = str(tmp_path / "nowhere")
    assert evaluate(["--checkpoint", checkpoint, "--json", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path}: Is a directory; name a file, such as one in it\n"
    assert probe([checkpoint, "--dataset", "shapes", "--out", str(tmp_path / "file")]) == 2
    assert "it is a file; choose another path" in capsys.readouterr().err


@pytest.mark.parametrize("links", [True, False])
def test_files_that_belong_together_are_replaced_together(
    links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [tmp_path / name for name in ("old", "older", "new")]
    for path in paths[:2]:
        path.write_text(path.name)
    rename = Path.replace

    def failing(self: Path, target: Path) -> Path:
        if target == paths[2]:
            raise OSError(5, "Input/output error", str(self))
        return rename(self, target)

    def unlinkable(self: Path, target: Path) -> None:
        raise PermissionError(1, "no links here", str(self))

    if not links:
        monkeypatch.setattr(Path, "hardlink_to", unlinkable)
    with monkeypatch.context() as broken:
        broken.setattr(Path, "replace", failing)
        with pytest.raises(OSError, match="Input/output error") as caught, atomic_paths(*paths) as temporaries:
            temporaries[0].write_text("never")
    assert caught.value.filename == str(paths[2])
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"old": "old", "older": "older"}
    with atomic_paths(*paths) as temporaries:
        for temporary in temporaries:
            temporary.write_text("whole")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == dict.fromkeys(
        ("old", "older", "new"), "whole"
    )


def test_a_full_disk_is_told_as_the_first_of_files_that_belong_together(tmp_path: Path) -> None:
    graph, manifest = tmp_path / "m.onnx", tmp_path / "m.onnx.json"
    with pytest.raises(OSError, match="No space left") as told, atomic_paths(graph, manifest):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert told.value.filename == str(graph)
    with pytest.raises(OSError, match="No space left") as told, atomic_paths(graph, manifest) as (_, beside):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(beside))
    assert told.value.filename == str(manifest)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP, errno.EIO])
def test_a_file_system_that_settles_no_folders_takes_files(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync = os.fsync

    def files_alone(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(code, os.strerror(code))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", files_alone)
    refused = pytest.raises(OSError, match="Input/output") if code == errno.EIO else nullcontext()
    with refused, atomic_path(tmp_path / "file") as temporary:
        temporary.write_text("whole")
    assert (tmp_path / "file").read_text() == "whole"
