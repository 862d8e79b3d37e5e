"""The codes of a data set's images, computed once: shards that are mapped into memory.

A folder holds tokens.json (the tokenizer's fingerprint, how many codes it has, which shards there
are) and for each shard `NAME.codes.npy` (all codes end to end, uint16 or uint32) and
`NAME.index.npy` (one row an image: digest of its pixels, where its codes begin, rows, columns).
Shards do not depend on one another (data/shards.py).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from chiasm.core.errors import CheckpointError, DataError
from chiasm.core.protocols import TokenCodec
from chiasm.core.sample import Image, Sample
from chiasm.data.formats.media import Appearing
from chiasm.data.shards import fingerprint

INDEX = np.dtype([("digest", "u1", 32), ("start", "i8"), ("rows", "i4"), ("columns", "i4")])
OnUnreadable = Callable[[Image, DataError], None]


class Codes:
    """The work (data/shards.py) of encoding the images of `size` samples a shard. An image that
    cannot be read is named in the manifest with the reason. data: what the samples are called."""

    def __init__(self, samples: Sequence[Sample], codec: TokenCodec, size: int, data: str = ""):
        self.samples, self.codec, self.size = samples, codec, size
        self.fingerprint = fingerprint("codes", codec.fingerprint, data, len(samples), size)
        self.count = -(-len(samples) // size)

    def name(self, number: int) -> str:
        return f"shard-{number:05d}"

    def write(self, number: int, folder: Path) -> dict[str, Any]:
        chosen = self.samples[number * self.size : (number + 1) * self.size]
        images = [image for sample in chosen for image in sample.images]
        unusable: dict[str, str] = {}

        def on_unreadable(image: Image, error: DataError) -> None:
            unusable[image.where or str(error)] = str(error)

        write_shard(folder / self.name(number), images, self.codec, on_unreadable)
        return {"unusable": unusable}

    def finish(self, out: Path, manifests: Sequence[dict[str, Any]]) -> None:
        shards = [self.name(number) for number in range(len(manifests))]
        about = {"fingerprint": self.codec.fingerprint, "codes": self.codec.code_count,
                 "shards": shards}  # fmt: skip
        with Appearing(out / "tokens.json") as temporary:
            temporary.write_text(json.dumps(about, indent=2))


def write_shard(
    stem: Path,
    images: Sequence[Image],
    codec: TokenCodec,
    on_unreadable: OnUnreadable | None = None,
    batch: int = 64,
) -> None:
    """One shard: stem.codes.npy and stem.index.npy."""
    rows: list[tuple[bytes, int, int, int]] = []
    codes: list[np.ndarray] = [np.zeros(0, np.int64)]
    seen: set[bytes] = set()
    start = 0
    for i in range(0, len(images), batch):
        fresh = {}
        for image in images[i : i + batch]:
            try:
                pixels = image.load()
            except DataError as error:
                if on_unreadable is None:
                    raise
                on_unreadable(image, error)
                continue
            digest = bytes.fromhex(Image(pixels).digest())
            if digest not in seen:
                seen.add(digest)
                fresh[digest] = pixels
        made = codec.codes(list(fresh.values())) if fresh else []
        for digest, grid in zip(fresh, made, strict=True):
            rows.append((digest, start, *grid.shape))
            codes.append(grid.reshape(-1))
            start += grid.size
    index = np.zeros(len(rows), INDEX)
    for at, (digest, *place) in enumerate(rows):
        index[at] = (np.frombuffer(digest, np.uint8), *place)
    small = np.uint16 if codec.code_count <= 2**16 else np.uint32
    np.save(stem.with_name(f"{stem.name}.codes.npy"), np.concatenate(codes).astype(small))
    np.save(stem.with_name(f"{stem.name}.index.npy"), index)


class Tokens(Mapping[str, np.ndarray]):
    """Digest of an image's pixels -> its codes [h w], read from the shards when asked for."""

    def __init__(self, folder: Path, names: Sequence[str]):
        self._codes, self._index = [], []
        self._place: dict[bytes, tuple[int, int]] = {}
        for number, name in enumerate(names):
            self._codes.append(_map(folder / f"{name}.codes.npy"))
            index = _map(folder / f"{name}.index.npy")
            self._index.append(index)
            for row, digest in enumerate(index["digest"]):
                self._place[digest.tobytes()] = (number, row)

    def __getitem__(self, digest: str) -> np.ndarray:
        number, row = self._place[bytes.fromhex(digest)]
        _, start, rows, columns = self._index[number][row]
        flat = self._codes[number][start : start + rows * columns]
        return flat.reshape(rows, columns).astype(np.int64)

    def __iter__(self) -> Iterator[str]:
        return (digest.hex() for digest in self._place)

    def __len__(self) -> int:
        return len(self._place)


def read_tokens(folder: Path, codec: TokenCodec) -> Tokens:
    """What Codes left. Raises CheckpointError if another tokenizer wrote it, or if it is
    not whole."""
    file = folder / "tokens.json"
    try:
        about = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{file}: unreadable ({error}); make it with 'chiasm precompute'"
        ) from None
    if about["fingerprint"] != codec.fingerprint:
        raise CheckpointError(
            f"{folder}: holds codes of the image tokenizer {about['fingerprint'][:12]}, but this "
            f"one is {codec.fingerprint[:12]}: they would stand for other images; "
            "precompute them again with this tokenizer"
        )
    return Tokens(folder, about["shards"])


def _map(file: Path) -> np.ndarray:
    try:
        return np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file}: unreadable ({error}); precompute the codes again") from None
