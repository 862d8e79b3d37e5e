"""Images that a record names by their URL, found in a folder or a tar of files fetched before.

A file is known by its URL where it is called as a downloader calls it: HOST/PATH (wget -x), or the
MD5, SHA-1 or SHA-256 of the URL in hexadecimal; in tars of img2dataset by the "url" of the JSON
beside it. The last part of the path alone would take one site's logo.png for another's.
"""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

from chiasm.data.formats.media import SUFFIXES

HASHES = ("md5", "sha1", "sha256")
Member = tuple[Path, int, int]
"""A tar, and where in it a file begins and how long it is."""


class Addresses:
    """The files below one folder, or in one tar, by their URLs."""

    def __init__(self, root: Path):
        self.root = root
        self._members: dict[str, Member] | None = None

    def find(self, url: str) -> Path | bytes | None:
        """The file of a URL, or its bytes out of a tar; None where it is not there."""
        if self.root.is_dir():
            for name in _names(url):
                path = self.root / name
                if path.is_file():
                    return path
        if self._members is None:
            self._members = dict(_members(self.root))
        found = self._members.get(url)
        if found is None:
            return None
        tar, start, length = found
        with tar.open("rb") as stream:
            stream.seek(start)
            return stream.read(length)


def _names(url: str) -> Iterator[str]:
    parts = urlsplit(url)
    path = unquote(parts.path).lstrip("/")
    if ".." not in path.split("/"):
        yield f"{parts.netloc}/{path}"
    for name in HASHES:
        digest = hashlib.new(name, url.encode(), usedforsecurity=False).hexdigest()
        yield from (f"{digest}{suffix}" for suffix in ("", *SUFFIXES))


def _members(root: Path) -> Iterator[tuple[str, Member]]:
    """(url, where its image is) of the tars that `root` is or holds."""
    tars = sorted(root.glob("*.tar")) if root.is_dir() else [root]
    for tar in (tar for tar in tars if tar.suffix == ".tar" and tar.is_file()):
        images: dict[str, Member] = {}
        urls: dict[str, str] = {}
        with tarfile.open(tar, "r:") as archive:
            for member in archive:
                key, _, ending = member.name.rpartition(".")
                if ending == "json" and (file := archive.extractfile(member)):
                    try:
                        urls[key] = json.loads(file.read()).get("url")
                    except (ValueError, AttributeError):
                        continue
                elif f".{ending.lower()}" in SUFFIXES:
                    images[key] = (tar, member.offset_data, member.size)
        yield from ((url, images[key]) for key, url in urls.items() if url and key in images)
