"""Samples that stay where they are: shards of JSON lines or tars, read by an index of offsets.

The index of a shard takes 36 bytes a sample: where it begins, its length, its line, hashes of its
id and of its image's name or bytes. It is made by reading the shard once, in which every record
is checked, and kept in CHIASM_CACHE/index until the shard changes. Memory does not grow with the
data, any sample is one read away, so order and shuffling are arithmetic (data/turns.py), whoever
reads.
"""

from __future__ import annotations

import hashlib
import json
import struct
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import IO, Any, overload

import numpy as np

from chiasm.core.cache import cache_root
from chiasm.core.errors import DataError
from chiasm.core.sample import Image, Part, Sample
from chiasm.data.blob import Blob, Fetched, is_url
from chiasm.data.formats.media import Appearing
from chiasm.data.formats.reading import Reading, json_line_object, lines
from chiasm.data.formats.rows import sample_of
from chiasm.data.formats.tar import Members, groups, one
from chiasm.data.formats.webdataset import tar_sample
from chiasm.data.halves import held_out, keys
from chiasm.data.turns import Selected

VERSION = 3  # of the index files: another reading of the same bytes is another index
ROW = np.dtype([("start", "<i8"), ("length", "<i8"), ("number", "<i4"), ("id", "<u8"),
                ("shown", "<u8")])  # fmt: skip
PACK = struct.Struct("<qqiQQ")  # the same


@dataclass(frozen=True)
class Shard:
    """A file with the rows of its usable records, and the bad ones: (place, what is wrong); unused:
    records by the keys that are not used."""

    blob: Blob
    rows: np.ndarray
    bad: tuple[tuple[str, str], ...]
    reading: Reading = field(default_factory=Reading)
    unused: dict[str, int] = field(default_factory=dict)

    def sample(self, row: int) -> Sample:
        start, length, number, *_ = PACK.unpack_from(self.rows, row * PACK.size)  # type: ignore[arg-type]
        data = self.blob.read(start, length)
        if not self.blob.name.endswith(".tar"):
            return _of_line(data, number, self.blob, self.reading)
        return _of_tar(*one(data), self.blob, self.reading)


class Indexed(Sequence[Sample]):
    """The samples of all shards in order, each read when it is asked for; nothing is kept."""

    def __init__(self, shards: Sequence[Shard]):
        self.shards = shards
        self._ends = list(accumulate(len(shard.rows) for shard in shards))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | Sequence[Sample]:
        if isinstance(index, slice):
            return Selected(self, range(len(self))[index])
        place = range(len(self))[index]
        number = bisect_right(self._ends, place)
        shard = self.shards[number]
        return shard.sample(place - self._ends[number] + len(shard.rows))

    def half(self, test: bool) -> Selected:
        """The samples for tests, or the rest, as halves.held_out tells them apart."""
        ids, shown = (
            np.concatenate([shard.rows[key] for shard in self.shards]) for key in ("id", "shown")
        )
        return Selected(self, np.flatnonzero(held_out(ids, shown) == test))


def open_indexed(found: Sequence[Blob], reading: Reading | None = None) -> Indexed:
    """The usable samples of files; each bad record goes to reading.on_error. Raises DataError for
    the first one without it."""
    reading = reading or Reading()
    shards = []
    for blob in found:
        shard = _shard(blob, reading)
        reading.unused.update(shard.unused)
        for where, wrong in shard.bad:
            if reading.on_error is None:
                raise DataError(wrong)
            reading.on_error(where, DataError(wrong))
        shards.append(shard)
    return Indexed(shards)


def _shard(blob: Blob, reading: Reading) -> Shard:
    """A file's index: the one kept, or made and kept."""
    root = cache_root() / "index"
    key = hashlib.sha256(f"{VERSION} {blob.place} {blob.stamp} {reading.how}".encode()).hexdigest()[
        :32
    ]
    file = root / f"{key}.npz"
    try:
        with np.load(file, allow_pickle=False) as kept:
            bad = tuple((where, wrong) for where, wrong in json.loads(str(kept["bad"])))
            unused = json.loads(str(kept["unused"]))
            return Shard(blob, kept["rows"], bad, reading.quiet(), unused)
    except (OSError, ValueError, KeyError):
        shard = _scan(blob, reading)
    try:
        with Appearing(file) as temporary, temporary.open("wb") as out:
            bad, unused = (np.array(json.dumps(v)) for v in (shard.bad, shard.unused))
            np.savez(out, rows=shard.rows, bad=bad, unused=unused)
    except OSError:  # a full or read-only disk: the next run reads the shard again
        pass
    return shard


def _scan(blob: Blob, reading: Reading) -> Shard:
    """Read a file through and check every record."""
    rows, bad = bytearray(), []
    source, reading = blob.source, reading.quiet()
    with blob.open() as stream:
        found = (_tar if blob.name.endswith(".tar") else _lines)(stream, blob, reading)
        for number, start, length, sample in found:
            if isinstance(sample, DataError):
                where = f"{source}/{blob.name}:{number}"
                bad.append((where, f"{where}: {sample}"))
            else:
                rows += PACK.pack(start, length, number, *keys(sample))
    found_rows = np.frombuffer(bytes(rows), ROW)
    return Shard(blob, found_rows, tuple(bad), reading.quiet(), dict(reading.unused))


Read = tuple[int, int, int, Sample | DataError]
"""Number of the record, where it begins, its length, what it is."""


def _tar(stream: IO[bytes], blob: Blob, reading: Reading) -> Iterator[Read]:
    for number, (key, (start, end), members) in enumerate(groups(stream), 1):
        yield number, start, end - start, _tried(_of_tar, key, members, blob, reading)


def _lines(stream: IO[bytes], blob: Blob, reading: Reading) -> Iterator[Read]:
    for number, start, line in lines(stream):
        length = 0 if isinstance(line, DataError) else len(line)
        yield number, start, length, _tried(_of_line, line, number, blob, reading)


def _tried(make: Callable[..., Sample], *arguments: Any) -> Sample | DataError:
    try:
        return make(*arguments)
    except DataError as error:
        return error


def _of_tar(key: str, members: Members | DataError, blob: Blob, reading: Reading) -> Sample:
    if isinstance(members, DataError):
        raise members
    return tar_sample(members, f"{blob.name}:{key}", blob.source, reading)


def _of_line(line: bytes | DataError, number: int, blob: Blob, reading: Reading) -> Sample:
    row, where = json_line_object(line), f"{blob.name}:{number}"
    if is_url(blob.place):
        return _fetched(sample_of(row, Path(), blob.source, where, reading), blob.folder)
    return sample_of(row, reading.root(Path(blob.folder)), blob.source, where, reading)


def _fetched(sample: Sample, folder: str) -> Sample:
    """The sample with its relative paths made URLs."""
    if sample.videos:
        raise DataError("a video behind a URL is not read; copy the data set to a disk")

    def part(one: Part) -> Part:
        if isinstance(one, Image) and isinstance(one.source, Path):
            return Fetched.at(f"{folder}/{one.source.as_posix()}", one.where)
        return one

    return sample.map_parts(part)
