"""Files that are read in pieces, on a disk or behind any URL that fsspec knows."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

from chiasm.core.errors import DataError, MissingExtraError
from chiasm.core.image import Unreadable
from chiasm.core.sample import Image

OPEN_FILES = 256  # at a time


def is_url(data: str) -> bool:
    return "://" in data


@dataclass(frozen=True)
class Blob:
    """place: a path or a URL. stamp: what changes when the file does."""

    place: str
    stamp: str

    @property
    def name(self) -> str:
        return self.place.rpartition("/")[2]

    @property
    def folder(self) -> str:
        return self.place.rpartition("/")[0]

    @property
    def source(self) -> str:
        """The folder's own name."""
        return self.folder.rpartition("/")[2]

    def read(self, start: int, length: int) -> bytes:
        """A piece. Raises DataError where it cannot be had."""
        try:
            if is_url(self.place):
                system, path = _system(self.place)
                data = system.cat_file(path, start=start, end=start + length)
            else:
                file = _opened(self.place)  # held: another thread may push it out of the cache
                data = os.pread(file.fileno(), length, start)
        except Exception as error:  # every file system has errors of its own
            raise _unreachable(self.place, error) from None
        if len(data) != length:
            raise DataError(f"{self.place}: ends before byte {start + length:,}; it has changed")
        return data

    @contextmanager
    def open(self) -> Iterator[IO[bytes]]:
        """The whole file as a stream."""
        if is_url(self.place):
            system, path = _system(self.place)
            with system.open(path, "rb") as file:
                yield file
        else:
            with open(self.place, "rb") as file:
                yield file


def blobs(data: str) -> list[Blob]:
    """The files that a path, a URL, a pattern with * or a folder of either means, in order; in a
    folder its .tar files or else its .jsonl files. Raises DataError if there are none."""
    try:
        if is_url(data):
            system, path = _system(data)
            found = _matching(system.glob, path, system.isdir(path))
            return [Blob(_url(data, p), str(system.ukey(p))) for p in found]
        path = str(Path(data).expanduser())
        return [local(Path(p)) for p in _matching(_glob, path, Path(path).is_dir())]
    except FileNotFoundError:
        found = []
    except (DataError, MissingExtraError):
        raise
    except Exception as error:
        raise _unreachable(data, error) from None
    raise DataError(f"{data}: no such file; give a .tar or .jsonl file, a folder or a pattern")


def local(file: Path) -> Blob:
    """A file on a disk."""
    found = file.stat()
    return Blob(os.path.abspath(file), f"{found.st_size}-{found.st_mtime_ns}")


def _matching(glob: Any, path: str, folder: bool) -> list[str]:
    patterns = (
        [path.rstrip("/") + ending for ending in ("/*.tar", "/*.jsonl")] if folder else [path]
    )
    for pattern in patterns:
        if found := sorted(glob(pattern)):
            return found
    raise FileNotFoundError(path)


def _glob(pattern: str) -> list[str]:
    path = Path(pattern)
    return [str(p) for p in path.parent.glob(path.name)]


def _url(given: str, path: str) -> str:
    """The URL of a path that was found below a URL; "simplecache::" and the like stay before it."""
    chain, protocol = given[: given.rfind("::") + 2 if "::" in given else 0], given.rindex("://")
    return chain + path if "://" in path else given[: protocol + 3] + path


@lru_cache(maxsize=OPEN_FILES)
def _opened(place: str) -> IO[bytes]:
    return open(place, "rb", buffering=0)  # closed by whoever holds it last, here the cache


def _system(url: str) -> tuple[Any, str]:
    """fsspec's file system and the path in it."""
    try:
        from fsspec.core import url_to_fs
    except ImportError:
        raise MissingExtraError("fsspec", "remote", f"reading {url}") from None
    try:
        return url_to_fs(url)
    except ImportError:
        if "gs://" in url or "gcs://" in url:
            raise MissingExtraError("gcsfs", "gcs", f"reading {url}") from None
        raise MissingExtraError("s3fs", "s3", f"reading {url}") from None
    except ValueError as error:  # a protocol that nobody knows
        raise _unreachable(url, error) from None


def _unreachable(place: str, error: Exception) -> DataError:
    words = " ".join(str(error).split()) or type(error).__name__
    return DataError(f"{place}: cannot be read: {words}; check the address and its credentials")


@dataclass(frozen=True, eq=False)
class Fetched(Image):
    """An image behind a URL, fetched when it is needed."""

    url: str = ""

    @staticmethod
    def at(url: str, where: str) -> Fetched:
        return Fetched(Path("/", url), where, url)

    def encoded(self) -> bytes:
        system, path = _system(self.url)
        try:
            return system.cat_file(path)
        except FileNotFoundError:
            raise
        except Exception as error:  # every file system has errors of its own
            raise Unreadable(str(_unreachable(self.url, error))) from None
