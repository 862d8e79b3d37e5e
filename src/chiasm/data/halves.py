"""A train and a test half of a set that has none of its own."""

from __future__ import annotations

import hashlib
import os

import numpy as np
import PIL.Image

from chiasm.core.sample import Image, Sample, Video

PART = 10
"""One in so many is for tests."""


def keys(sample: Sample) -> tuple[int, int]:
    """Hashes of the sample's id and of its first image or clip (without one, of its id again)."""
    name = _hash(sample.name.encode("utf-8", "backslashreplace"))
    parts = (part for turn in sample.turns for part in turn.content)
    shown = next((part for part in parts if isinstance(part, (Image, Video))), None)
    if shown is None:
        return name, name
    source = shown.path if isinstance(shown, Video) else shown.source
    if isinstance(source, PIL.Image.Image):
        return name, _hash(str(id(source)).encode())
    return name, _hash(source if isinstance(source, bytes) else os.fsencode(source))


def _hash(data: bytes) -> int:
    return int.from_bytes(hashlib.sha256(data).digest()[:8], "big")


def held_out(names: np.ndarray, shown: np.ndarray) -> np.ndarray:
    """Which samples are for tests [N] bool, of the two `keys` of each [N] uint64.

    Samples of one id, or about one image, stay together: what is tested has not been seen. It is
    the last tenth of such groups in the order of their least id hash, so it depends neither on the
    order of the samples nor on the process.
    """
    group = names
    while True:
        before = group
        for key in (names, shown):
            _, place = np.unique(key, return_inverse=True)
            least = np.full(place.max(initial=-1) + 1, np.iinfo(np.uint64).max, np.uint64)
            np.minimum.at(least, place, group)
            group = least[place]
        if np.array_equal(group, before):
            break
    ordered = np.unique(group)
    return np.isin(group, ordered[-max(1, len(ordered) // PART) :])
