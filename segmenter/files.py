"""Files that are either whole or not there: everything the project writes goes through here."""

import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` to write to; it replaces `path` when the block succeeds and is removed when not.

    The data reach the disk before the name does, so neither a full disk nor a killed process leaves a broken file or
    loses the old one. Parent folders are made.
    Raises OSError naming `path`, or the parent that is no folder, as `require_writable` does.
    """
    with atomic_paths(path) as (temporary,):
        yield temporary


@contextmanager
def atomic_paths(*paths: Path) -> Iterator[tuple[Path, ...]]:
    """`atomic_path` for files that belong together: all are replaced, or, where that fails or is interrupted, none is.

    Between the renames there is no moment that a process can be stopped in by Ctrl-C or an error and leave a mix; only
    one that is killed, or a power cut, can leave new files beside old ones, each whole. The first is the one that is
    worth most: a full disk, whose error does not say where, is told as its.
    """
    paths = tuple(map(Path, paths))
    with ExitStack() as stack:
        # the first is entered last, so that an error without a name is told as its: it is the large one
        temporaries = tuple(stack.enter_context(_temporary(path)) for path in reversed(paths))[::-1]
        yield temporaries
        for temporary, path in zip(temporaries, paths, strict=True):
            with _named(path, temporary):
                _settle(temporary)
        _replace_together(temporaries, paths)


@contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    _require_replaceable(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    stem = os.fsdecode(os.fsencode(path.name)[:200])  # a name may have 255 bytes
    try:
        handle, name = tempfile.mkstemp(prefix=f".{stem}.", suffix=".part" + path.suffix, dir=path.parent)
    except OSError as error:
        error.filename = str(path)
        raise
    os.close(handle)
    temporary = Path(name)
    try:
        with _named(path, temporary):
            yield temporary
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _named(path: Path, temporary: Path) -> Iterator[None]:
    """A write to a full disk fails without saying where, and nobody knows the temporary name: both become `path`."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename in (None, str(temporary)):
            error.filename = str(path)
        raise


def _settle(temporary: Path) -> None:
    """Put a written file on the disk, with the permissions a new file gets."""
    with temporary.open("rb+") as written:
        os.fsync(written.fileno())
    umask = os.umask(0)
    os.umask(umask)
    temporary.chmod(0o666 & ~umask)


def _replace_together(temporaries: tuple[Path, ...], paths: tuple[Path, ...]) -> None:
    kept: list[tuple[Path, Path | None]] = []  # a path, and a second name of what it was
    try:
        for temporary, path in zip(temporaries, paths, strict=True):
            if len(paths) > 1:
                kept.append((path, _second_name(path)))
            with _named(path, temporary):
                temporary.replace(path)
    except BaseException:
        for path, old in reversed(kept):
            if old is None:
                path.unlink(missing_ok=True)
            else:
                old.replace(path)
        raise
    finally:
        for _, old in kept:
            if old is not None:
                old.unlink(missing_ok=True)
    for folder in {path.parent for path in paths}:
        settle_names(folder)


def settle_names(folder: Path) -> None:
    """Wait until a folder's names are on the disk, where its file system can tell."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        # of files every file system can, of folders some network ones, and those in user space, cannot
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


def _second_name(path: Path) -> Path | None:
    """A hidden name beside `path` for the file it is now, a copy where there are no links; None when there is none."""
    if not path.exists():
        return None
    name = path.with_name(f".{path.name}.{os.getpid()}.old")
    name.unlink(missing_ok=True)
    try:
        name.hardlink_to(path)
    except OSError:
        shutil.copy2(path, name)
    return name


def require_writable(path: Path) -> None:
    """Find out before long work whether a file can be put at `path`, leaving nothing behind.

    Raises OSError naming `path` where it is a folder, a device or a pipe, or its folder takes no file, and naming the
    parent that is no folder.
    """
    path = Path(path)
    _require_replaceable(path)
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        error.filename = str(path)
        raise


def _require_replaceable(path: Path) -> None:
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "a device or a pipe, which no file can replace", str(path))


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
