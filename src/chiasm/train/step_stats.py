"""What a step amounted to over all micro-batches of all ranks, and what a log line says of many."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tally:
    """One step. losses: mean loss of each micro-batch (data_shard); means: parts of the loss."""

    total: float
    count: int
    means: dict[str, float]
    losses: dict[int, float]
    tokens: int
    images: int
    flops: float

    @property
    def loss(self) -> float:
        return self.total / max(1, self.count)

    def worst(self) -> int:
        """The data shard whose loss is not finite, or highest."""
        return max(
            self.losses,
            key=lambda s: self.losses[s] if math.isfinite(self.losses[s]) else math.inf,
        )


def fetched(value: Any) -> Any:
    """The scalar tensors of nested dicts, lists and tuples as numbers, brought from the device all
    at once: the one time that a step waits for it."""
    tensors: list[Tensor] = []

    def collect(part: Any) -> Any:
        if isinstance(part, Tensor):
            tensors.append(part.detach())
        return part

    _mapped(collect, value)
    if any(t.device.type != "cpu" for t in tensors):
        # float32: not every accelerator has more, and no count here is above 2**24.
        numbers = torch.stack([t.reshape(()).float() for t in tensors]).tolist()
    else:
        numbers = [t.item() for t in tensors]
    rest = iter(numbers)
    return _mapped(lambda part: next(rest) if isinstance(part, Tensor) else part, value)


def _mapped(change: Any, value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _mapped(change, part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_mapped(change, part) for part in value]
    return change(value)


def tally(ranks: Sequence[Mapping]) -> Tally:
    """From every rank's {data shard: sums of its micro-batch}; summed in the order of
    data shards, so that the numbers do not depend on how many ranks there are."""
    rows = {int(data_shard): row for own in ranks for data_shard, row in own.items()}
    parts: dict[str, tuple[float, float]] = {}
    total, count, tokens, images, flops = 0.0, 0, 0, 0, 0.0
    for data_shard in sorted(rows):
        row = rows[data_shard]
        total, count = total + row["sum"], count + row["count"]
        tokens, images = tokens + row["tokens"], images + row["images"]
        flops += row["flops"]
        for name, (value, n) in row["parts"].items():
            before = parts.get(name, (0.0, 0.0))
            parts[name] = (before[0] + value, before[1] + n)
    means = {name: value / n for name, (value, n) in parts.items() if n}
    losses = {data_shard: row["sum"] / max(1, row["count"]) for data_shard, row in rows.items()}
    return Tally(total, count, means, losses, tokens, images, flops)


class Window:
    """Means and rates over the steps since the last log line."""

    def __init__(self) -> None:
        self._records: list[dict[str, float]] = []
        self._seconds = 0.0

    def add(self, record: dict[str, float], seconds: float) -> None:
        self._records.append(record)
        self._seconds += seconds

    def flush(self) -> dict[str, float]:
        sums = ("tokens", "images", "flops")
        line: dict[str, float] = {}
        for name in dict.fromkeys(key for record in self._records for key in record):
            values = [r[name] for r in self._records if name in r]
            if name in (*sums, "waited"):
                line[name] = sum(values)
            elif name.startswith("lr/"):
                line[name] = values[-1]
            else:
                line[name] = sum(values) / len(values)
        for name in sums:
            line[f"{name}_per_second"] = line[name] / max(1e-9, self._seconds)
        line["seconds"] = self._seconds
        self._records, self._seconds = [], 0.0
        return line
