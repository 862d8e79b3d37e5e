"""Data order as a function of (seed, epoch, cursor): resuming is arithmetic, not replay."""

from __future__ import annotations

from functools import lru_cache

import numpy as np


@lru_cache(maxsize=64)  # sources of a mixture take turns
def permutation(count: int, seed: int, epoch: int) -> np.ndarray:
    """The order of one epoch [count]; differs by epoch, depends on nothing else."""
    return np.random.default_rng((seed, epoch)).permutation(count)


def index_at(cursor: int, count: int, seed: int) -> int:
    """Which of `count` items stands at a place in the endless shuffled sequence."""
    epoch, place = divmod(cursor, count)
    return int(permutation(count, seed, epoch)[place])


def randomness_at(cursor: int, seed: int) -> np.random.Generator:
    """The random generator of one place, for augmentation and dropout of conditions."""
    return np.random.default_rng((seed, 1, cursor))


def place_of(cursor: int, data_shard: int, count: int) -> int:
    """Where the cursor of one of `count` data shards stands in the whole sequence."""
    return cursor * count + data_shard
