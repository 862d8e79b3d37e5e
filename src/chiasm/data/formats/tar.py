"""Tars as runs of members that share a key: 7.jpg, 7.json and 7.txt are one sample."""

from __future__ import annotations

import io
import posixpath
import struct
import tarfile
from collections.abc import Iterator
from typing import IO

from chiasm.core.batch import round_up
from chiasm.core.errors import DataError

LARGEST = 256 * 2**20  # bytes of one member
HEAD = struct.Struct("100s24x12s20xc188x155s12x")  # of a ustar block: name, size, kind, prefix
BLOCK = HEAD.size

Members = dict[str, bytes]
"""What the members of a key hold, by their endings in lower case."""


def groups(stream: IO[bytes]) -> Iterator[tuple[str, tuple[int, int], Members | DataError]]:
    """(key, where its members begin and end in the tar, the members or what is wrong with one) for
    each run of members of one key."""
    key: str | None = None
    members: Members = {}
    wrong: DataError | None = None
    start = end = 0
    try:
        with tarfile.open(fileobj=stream, mode="r:") as tar:
            while (member := tar.next()) is not None:
                # Else all heads of a large tar would stay in memory.
                tar.members.clear()  # type: ignore[attr-defined]
                if not member.isfile():
                    continue
                name, ending = _key(member.name)
                if name != key:
                    if key is not None:
                        yield key, (start, end), wrong or members
                    key, members, wrong, start = name, {}, None, member.offset
                end = member.offset_data + round_up(member.size, BLOCK)
                if member.size > LARGEST:
                    wrong = DataError(f"{member.name} has {member.size:,} bytes; shrink it")
                    continue
                data = _read(tar, member)
                if len(data) < member.size:
                    wrong = DataError(f"{member.name} ends early; the tar is truncated")
                if ending in members:
                    wrong = DataError(
                        f"{member.name} stands there twice: two samples of the key {name} in a "
                        "row; give each its own"
                    )
                members[ending] = data
            if key is not None:
                yield key, (start, end), wrong or members
    except (tarfile.TarError, OSError) as error:
        yield key or "", (start, end), DataError(f"not readable from here on: {error}")


def one(data: bytes) -> tuple[str, Members | DataError]:
    """Key and members of a run that `groups` has found, from its bytes alone."""
    found = _plain(data)
    if found is not None:
        return found
    key, _, members = next(groups(io.BytesIO(data)))
    return key, members


def _plain(data: bytes) -> tuple[str, Members] | None:
    """As `one`, without the 0.1 ms that tarfile takes; None for what is not plain files with
    short names."""
    key, members, at = "", {}, 0
    while at < len(data):
        name, size, kind, prefix = HEAD.unpack_from(data, at)
        name = name.partition(b"\0")[0]
        if kind not in b"0\0" or prefix[0] or not name or name.endswith(b"/"):
            return None
        try:
            length = int(size.partition(b"\0")[0], 8)
        except ValueError:
            return None
        at += BLOCK
        key, ending = _key(name.decode("utf-8", "surrogateescape"))
        if ending in members:
            return None  # `groups` says what is wrong
        members[ending] = data[at : at + length]
        at += round_up(length, BLOCK)
    return key, members


def _key(name: str) -> tuple[str, str]:
    """("a/7", "seg.png") of a/7.seg.PNG."""
    folder, slash, rest = posixpath.normpath(name).rpartition("/")
    base, _, ending = rest.partition(".")
    return f"{folder}{slash}{base}", ending.lower()


def _read(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    return file.read() if file else b""
