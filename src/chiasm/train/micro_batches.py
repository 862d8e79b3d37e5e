"""The micro-batches of a step, dealt to ranks so that their number changes nothing.

The data order is split into as many data shards as a step has micro-batches: data shard s of n
sees the places s, s + n, s + 2n, ... Every step takes one micro-batch of each data shard, and rank
r of w reads data shards r, r + w, ...: no rank encodes what another trains on, and any number of
ranks that divides n makes the same steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch

from chiasm.core.errors import CheckpointError
from chiasm.core.protocols import Stream
from chiasm.train.parallel import World


def micro_batch_count(accumulation_steps: int, ranks: int, world: World) -> int:
    """Micro-batches a step of a run begun on `ranks` ranks: accumulation_steps, raised to their
    next multiple. CheckpointError where this world cannot share them evenly."""
    count = ranks * math.ceil(accumulation_steps / ranks)
    if count % world.size:
        fitting = [n for n in range(1, count + 1) if count % n == 0]
        raise CheckpointError(
            f"a step has {count} micro-batches, which {world.size} ranks cannot share evenly; "
            f"resume on {', '.join(map(str, fitting))} ranks"
        )
    return count


class Feed:
    """This rank's data shards of a stage's data, on the device that computes.

    Beside an accelerator a thread makes the next micro-batch of every data shard while this one is
    computed; the position of the data shards is saved as of the batches that were given out, so
    resuming is exact.
    """

    def __init__(self, make: Callable[[], Stream], count: int, world: World, device: torch.device):
        self.count, self.world, self.device = count, world, device
        streams = {s: make() for s in range(world.rank, count, world.size)}
        if count > 1:
            for data_shard, stream in streams.items():
                stream.split(data_shard, count)
        ahead = device.type != "cpu" and all(getattr(s, "ahead", True) for s in streams.values())
        self._pool = ThreadPoolExecutor(1, "feed") if ahead else None
        self._data_shards = {
            s: _DataShard(stream, device, self._pool) for s, stream in streams.items()
        }

    def step(self) -> Iterator[tuple[int, Any]]:
        """(data shard, micro-batch) for each of this rank's data shards."""
        for data_shard, own in self._data_shards.items():
            batch = own.next()
            yield data_shard, batch if self.device.type == "cpu" else batch.to(self.device)

    def state(self) -> dict[int, dict]:
        """Where this rank's data shards stand; between two steps, or it is of no use."""
        return {data_shard: own.state() for data_shard, own in self._data_shards.items()}

    def load(self, states: list[dict]) -> None:
        """states: of all data shards, in order. Before the first step."""
        for data_shard, own in self._data_shards.items():
            own.stream.load_state_dict(states[data_shard])

    def close(self) -> None:
        """Forget what was made ahead."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)


class _DataShard:
    """The batches of one stream, made when asked for or, with a pool, one ahead."""

    def __init__(self, stream: Stream, device: torch.device, pool: ThreadPoolExecutor | None):
        self.stream, self.device, self.pool = stream, device, pool
        self._batches: Iterator | None = None
        self._ahead: Future[tuple[Any, dict]] | None = None
        self._given: dict | None = None

    def next(self) -> Any:
        if self.pool is None:
            return self._make()
        ahead = self._ahead or self.pool.submit(self._make_ahead)
        batch, self._given = ahead.result()
        self._ahead = self.pool.submit(self._make_ahead)
        return batch

    def state(self) -> dict:
        return self.stream.state_dict() if self._given is None else self._given

    def _make(self) -> Any:
        if self._batches is None:
            self._batches = iter(self.stream)
        return next(self._batches)

    def _make_ahead(self) -> tuple[Any, dict]:
        batch = self._make().pin(self.device)
        return batch, self.stream.state_dict()
