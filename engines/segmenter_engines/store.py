"""A folder of files, on disk or in an object store: `photos`, `s3://bucket/photos`, whatever fsspec opens.

Files are read and written as a whole. Those of a store pass through a temporary file here. They appear at once on disks
of this machine (`file://` too) and in object stores (S3, GCS, Azure); where files are sent piece by piece, as by sftp,
a kill can leave the beginning of one.
"""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from segmenter.errors import ConfigError, DataError, ImageError
from segmenter.files import atomic_path


class Store:
    """The folder at a path or URL; names are relative to it, with `/`.

    Raises ConfigError for a URL whose package is not installed, or that is of no known kind.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/") or url
        self.remote: Any = None  # the file system of fsspec, which has no types
        self.root = self.url
        if "://" not in url:
            return
        from fsspec.core import url_to_fs  # PyTorch brings it
        from fsspec.implementations.local import LocalFileSystem
        from fsspec.registry import known_implementations

        try:
            self.remote, self.root = url_to_fs(self.url)
        except ImportError as error:
            known = known_implementations.get(url.partition("://")[0], {})
            package = known.get("class", "fsspec").partition(".")[0]  # s3fs.S3FileSystem
            advice = "" if package == "fsspec" else f"; pip install {package}"
            raise ConfigError(f"{url}: {' '.join(str(error).split())}{advice}") from error
        except ValueError as error:
            raise ConfigError(f"{url}: {error}; pass a folder, or a URL such as s3://bucket/photos") from error
        if isinstance(self.remote, LocalFileSystem):
            self.remote = None

    def is_folder(self) -> bool:
        """Whether there is such a folder; of a store, which may know keys alone, what holds nothing still is one."""
        return self.remote is not None or Path(self.root).is_dir()

    def names(self, suffixes: Sequence[str]) -> list[str]:
        """Files in the folder and below it with one of the suffixes, in any case, sorted; hidden ones are left out.

        Keys of a store stay as they are, `a//b.png` too. Empty where there is no such folder. Raises DataError where a
        store cannot be asked.
        """
        if self.remote is None:
            paths = (path for path in Path(self.root).rglob("*") if path.suffix.lower() in suffixes)
            names = [path.relative_to(self.root).as_posix() for path in paths if path.is_file()]
        else:
            with self._asked(self.url):
                found = self.remote.find(self.root)
            names = [path[len(self.root) :].removeprefix("/") for path in found]
        return sorted(name for name in names if _is_wanted(PurePosixPath(name), suffixes))

    def lies_in(self, other: "Store") -> bool:
        """Whether this is the other folder, or below it."""
        if self.remote is not None or other.remote is not None:
            return f"{self.url}/".startswith(f"{other.url}/")
        return Path(self.root).resolve().is_relative_to(Path(other.root).resolve())

    def read_text(self, name: str) -> str | None:
        """A file's text, None where there is none."""
        if self.remote is None:
            path = Path(self.root, name)
            return path.read_text(encoding="utf-8") if path.is_file() else None
        with self._asked(name):
            there = self.remote.exists(self._path(name))
            return str(self.remote.cat_file(self._path(name)).decode()) if there else None

    @contextmanager
    def reading(self, name: str) -> Iterator[Path]:
        """The file on this disk. An ImageError inside the block names it as it is in the store."""
        if self.remote is None:
            yield Path(self.root, name)
            return
        with tempfile.TemporaryDirectory() as folder:
            here = Path(folder, PurePosixPath(name).name)
            with self._asked(name):
                self.remote.get_file(self._path(name), str(here))
            try:
                yield here
            except ImageError as error:
                raise ImageError(str(error).replace(str(here), f"{self.url}/{name}")) from error

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """A path to write to, whose file is in the folder, whole, once the block succeeds."""
        if self.remote is None:
            with atomic_path(Path(self.root, name)) as temporary:
                yield temporary
            return
        with tempfile.TemporaryDirectory() as folder:
            here = Path(folder, PurePosixPath(name).name)
            yield here
            with self._asked(name):
                self.remote.makedirs(str(PurePosixPath(self._path(name)).parent), exist_ok=True)
                self.remote.put_file(str(here), self._path(name))

    def _path(self, name: str) -> str:
        return f"{self.root.rstrip('/')}/{name}"

    @contextmanager
    def _asked(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # each store has errors of its own
            told = " ".join(str(error).split())[:200] or type(error).__name__
            raise DataError(f"{self.url}: {name} cannot be had or written ({told}); check URL and keys") from error


def _is_wanted(name: PurePosixPath, suffixes: Sequence[str]) -> bool:
    return name.suffix.lower() in suffixes and not any(part.startswith(".") for part in name.parts)
