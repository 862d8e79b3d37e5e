"""What was computed of images lately, within a budget of bytes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, MutableMapping
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from chiasm.train.feature_cache import image_hashes

K = TypeVar("K")
V = TypeVar("V")


class Recent(MutableMapping[K, V], Generic[K, V]):
    """A mapping that forgets what was used longest ago once `weigh` of all exceeds `budget`.
    hits, misses: of `get`."""

    def __init__(self, budget: float, weigh: Callable[[V], float]):
        self.budget, self.weigh, self.weight = budget, weigh, 0.0
        self.hits = self.misses = 0
        self._held: OrderedDict[K, V] = OrderedDict()

    def get(self, key: K, default: Any = None) -> Any:
        if key not in self._held:
            self.misses += 1
            return default
        self.hits += 1
        return self[key]

    def __getitem__(self, key: K) -> V:
        self._held.move_to_end(key)
        return self._held[key]

    def __setitem__(self, key: K, value: V) -> None:
        if key in self._held:
            del self[key]
        self._held[key] = value
        self.weight += self.weigh(value)
        while self.weight > self.budget and self._held:
            del self[next(iter(self._held))]

    def __delitem__(self, key: K) -> None:
        self.weight -= self.weigh(self._held.pop(key))

    def __iter__(self) -> Iterator[K]:
        return iter(self._held)

    def __len__(self) -> int:
        return len(self._held)


class RecentFeatures:
    """Stands before an encoder: images seen lately are not encoded again."""

    def __init__(self, budget: float):
        self.held: Recent[bytes, Tensor] = Recent(budget, lambda features: features.nbytes)

    def __call__(self, encoder: nn.Module, batch: Any) -> Tensor:
        """features [P width] of the images of a batch (core/batch.py)."""
        sizes, grids = batch.image_grids.prod(1).tolist(), batch.image_grids
        images = batch.image_patches.split(sizes)
        names = image_hashes(batch)
        found = {name: self.held.get(name) for name in dict.fromkeys(names)}
        fresh = [i for i, name in enumerate(names) if found[name] is None and name not in names[:i]]
        if fresh:
            new = encoder(torch.cat([images[i] for i in fresh]), grids[fresh])
            # A features' count may differ from that of its patches (class tokens).
            for i, features in zip(fresh, new.split(_shares(sizes, fresh, len(new))), strict=True):
                found[names[i]] = features
                self.held[names[i]] = features.clone()  # not a view of all that came with it
        return torch.cat([found[name] for name in names])


def _shares(sizes: list[int], fresh: list[int], rows: int) -> list[int]:
    """Rows of features of each fresh image: as many more than patches for every one."""
    extra = (rows - sum(sizes[i] for i in fresh)) // len(fresh)
    return [sizes[i] + extra for i in fresh]
