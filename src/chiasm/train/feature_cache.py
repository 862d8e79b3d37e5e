"""Features of a frozen encoder, computed once an image and kept in memory-mapped files.

    CHIASM_CACHE/features/WEIGHTS-PREPROCESSING/PART.data    features, one image after another
                                                PART.index   a record an image: its hash, where

Another encoder, another preprocessing, other pixels: another place, so nothing old is ever read.
Every process writes parts of its own and never touches those of others. An image's record is
written after its features and carries their checksum, so a writer that is killed leaves at worst
features that nobody finds or a record cut short, which is skipped.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
import uuid
import warnings
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedWriter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from chiasm.core.cache import cache_root
from chiasm.core.config import identity
from chiasm.core.device import moved_tensor
from chiasm.nn.flops import is_trained
from chiasm.train.stage import Stage

RECORD = struct.Struct("<16sQIIII")
"""Image, offset in bytes, rows, width, number of the dtype, CRC-32 of the features."""

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@contextmanager
def remembered(model: Any, stage: Stage) -> Iterator[None]:
    """While inside, a model that has a `memory` uses this cache, if the stage trains nothing of its
    encoder, adapters included, and grants the cache any room."""
    frozen = hasattr(model, "memory") and not is_trained(model.vision)
    if not frozen or stage.feature_cache <= 0:
        yield
        return
    model.memory = open_cache(model.vision, stage.feature_cache * 1e9)
    try:
        yield
    finally:
        model.memory.close()
        model.memory = None


def open_cache(encoder: nn.Module, limit: float) -> FeatureCache:
    """The cache of an encoder as it is now. The features of other encoders, those used longest ago
    first, are deleted until all together take at most `limit` bytes."""
    root = cache_root() / "features"
    own = root / encoder_hash(encoder)
    own.mkdir(parents=True, exist_ok=True)
    os.utime(own)
    sizes = {f: _size(f) for f in sorted(root.iterdir(), key=lambda f: f.stat().st_mtime)}
    for folder in sizes:
        if folder != own and sum(sizes.values()) > limit:
            shutil.rmtree(folder, ignore_errors=True)
            sizes[folder] = 0
    return FeatureCache(own, limit - sum(sizes.values()))


def encoder_hash(encoder: nn.Module) -> str:
    """The name of the folder of an encoder's features: of weights and preprocessing."""
    return f"{weights_hash(encoder)}-{preprocessing_hash(encoder)}"


def weights_hash(encoder: nn.Module) -> str:
    """Of the weights with their names and dtypes: rounded to bfloat16 they are another encoder."""
    digest = hashlib.blake2b(digest_size=16)
    for name, value in encoder.state_dict().items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(_bytes(value))
    return digest.hexdigest()


def preprocessing_hash(encoder: Any) -> str:
    """Of the encoder's configuration: sizes, filter, colours, which layers are its features."""
    said = json.dumps(identity(encoder.config), sort_keys=True)
    return hashlib.blake2b(said.encode(), digest_size=16).hexdigest()


def image_hash(patches: Tensor, grid: list[int]) -> bytes:
    """16 bytes for an image's patches [P d] as the encoder gets them."""
    digest = hashlib.blake2b(str(grid).encode(), digest_size=16)
    digest.update(_bytes(patches))
    return digest.digest()


def image_hashes(batch: Any) -> list[bytes]:
    """image_hash of every image of a batch, of its patches in main memory."""
    host = batch.on_host
    images, grids = (
        host.image_patches.split(host.image_grids.prod(1).tolist()),
        host.image_grids.tolist(),
    )
    return [image_hash(p, g) for p, g in zip(images, grids, strict=True)]


@dataclass
class _Entry:
    """Where an image's features are."""

    data: Path
    offset: int
    rows: int
    width: int
    dtype: torch.dtype
    checksum: int
    checked: bool = False

    @property
    def end(self) -> int:
        return self.offset + self.rows * self.width * self.dtype.itemsize


class FeatureCache:
    """Stands before a frozen encoder; `encoded` [n 2] are the grids of the images that the last
    call had to encode. Stops growing after `room` bytes, and then encodes the rest every time."""

    def __init__(self, folder: Path, room: float):
        self.folder, self.room = folder, room
        self.encoded = torch.zeros(0, 2, dtype=torch.long)
        self._held: dict[bytes, _Entry] = {}
        self._maps: dict[Path, np.memmap] = {}
        self._files: tuple[BufferedWriter, BufferedWriter] | None = None
        for index in sorted(folder.glob("*.index"), key=lambda file: file.stat().st_mtime_ns):
            self._read(index)  # the latest counts: it may replace what was harmed

    def __call__(self, encoder: nn.Module, batch: Any) -> Tensor:
        """features [P width] of the images of a batch (core/batch.py)."""
        grids, sizes = batch.image_grids, batch.image_grids.prod(1).tolist()
        images, device = batch.image_patches.split(sizes), batch.image_patches.device
        names = image_hashes(batch)
        found = {name: self._load(name) for name in names}
        fresh = [
            i for i, name in enumerate(names) if found[name] is None and i == names.index(name)
        ]
        self.encoded = grids[fresh]
        if fresh:
            with torch.no_grad():
                new = encoder(torch.cat([images[i] for i in fresh]), self.encoded)
            for i, features in zip(fresh, new.split([sizes[i] for i in fresh]), strict=True):
                found[names[i]] = features
                self._store(names[i], features)
        rows = [found[name] for name in names]
        return torch.cat([moved_tensor(own, device) for own in rows if own is not None])

    def close(self) -> None:
        for file in self._files or ():
            file.close()
        self._files = None

    def _read(self, index: Path) -> None:
        data = index.with_suffix(".data")
        held = data.stat().st_size if data.exists() else 0
        content = index.read_bytes()
        whole = len(content) - len(content) % RECORD.size
        for name, offset, rows, width, kind, checksum in RECORD.iter_unpack(content[:whole]):
            if kind < len(DTYPES):
                entry = _Entry(data, offset, rows, width, DTYPES[kind], checksum)
                if entry.end <= held:
                    self._held[name] = entry

    def _load(self, name: bytes) -> Tensor | None:
        """An image's features, or None if there are none that are whole."""
        entry = self._held.get(name)
        if entry is None:
            return None
        mapped = self._maps.get(entry.data)
        if mapped is None or len(mapped) < entry.end:
            mapped = self._maps[entry.data] = np.memmap(entry.data, np.uint8, "r")
        raw = np.array(mapped[entry.offset : entry.end])
        if not entry.checked and zlib.crc32(raw.data) != entry.checksum:
            del self._held[name]
            return None
        entry.checked = True
        return torch.from_numpy(raw).view(entry.dtype).view(entry.rows, entry.width)

    def _store(self, name: bytes, features: Tensor) -> None:
        raw = _bytes(features)
        if self.room < 0:
            return
        if self.room < len(raw) + RECORD.size:
            self._stop("the feature cache is full (raise the stage's feature_cache)")
            return
        try:
            self._write(name, features, raw)
        except OSError as error:  # a full disk must not end a training
            self._stop(f"the feature cache cannot be written ({error})")

    def _stop(self, reason: str) -> None:
        self.room = -1
        warnings.warn(
            f"{self.folder}: {reason}; further images are encoded every time", stacklevel=2
        )

    def _write(self, name: bytes, features: Tensor, raw: memoryview) -> None:
        data, index = self._files = self._files or self._new_part()
        rows, width = features.shape
        entry = _Entry(
            Path(data.name), data.tell(), rows, width, features.dtype, zlib.crc32(raw), True
        )
        record = RECORD.pack(
            name,
            entry.offset,
            entry.rows,
            entry.width,
            DTYPES.index(entry.dtype),
            entry.checksum,
        )
        for file, content in ((data, raw), (index, record)):
            file.write(content)
            file.flush()  # features first: a record must never stand before what it speaks of
        self.room -= len(raw) + len(record)
        self._held[name] = entry

    def _new_part(self) -> tuple[BufferedWriter, BufferedWriter]:
        part = self.folder / uuid.uuid4().hex
        return part.with_suffix(".data").open("xb"), part.with_suffix(".index").open("xb")


def write_part(stem: Path, images: Iterable[tuple[bytes, Tensor]]) -> None:
    """A part of the cache with the features [rows width] of images by their hash: always the same
    bytes, unlike the parts that a training writes."""
    with (
        stem.with_suffix(".data").open("wb") as data,
        stem.with_suffix(".index").open("wb") as index,
    ):
        for name, features in images:
            raw = _bytes(features)
            kind = DTYPES.index(features.dtype)
            index.write(RECORD.pack(name, data.tell(), *features.shape, kind, zlib.crc32(raw)))
            data.write(raw)


def _bytes(tensor: Tensor) -> memoryview:
    return memoryview(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*") if file.is_file())
