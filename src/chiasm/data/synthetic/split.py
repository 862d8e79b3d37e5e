"""Which half a content belongs to, decided by what it is and by nothing else."""

from __future__ import annotations

import hashlib
from typing import Literal

TEST_SHARE = 0.1


def split_of(kind: str, key: str) -> Literal["train", "test"]:
    """The half of all contents with this key.

    A hash of the key decides, so train and test are disjoint in keys by construction: within one
    made set and between sets of different seeds and counts alike.
    """
    digest = hashlib.sha256(f"{kind}\n{key}".encode()).digest()
    place = int.from_bytes(digest[:8], "big") / 2**64
    return "test" if place < TEST_SHARE else "train"
