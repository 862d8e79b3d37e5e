"""The micro-batches of a step, dealt to ranks so that their number changes nothing.

The data order is split into as many strands as a step has micro-batches: strand s of n sees the
places s, s + n, s + 2n, ... Every step takes one micro-batch of each strand, and rank r of w reads
strands r, r + w, ...: no rank encodes what another trains on, and any number of ranks that divides
n makes the same steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

from chiasm.core.errors import CheckpointError
from chiasm.core.protocols import Stream
from chiasm.train.parallel import World


def strands(accumulate: int, ranks: int, world: World) -> int:
    """Micro-batches a step of a run begun on `ranks` ranks: accumulate, raised to their next
    multiple. CheckpointError where this world cannot share them evenly."""
    count = ranks * math.ceil(accumulate / ranks)
    if count % world.size:
        fitting = [n for n in range(1, count + 1) if count % n == 0]
        raise CheckpointError(
            f"a step has {count} micro-batches, which {world.size} ranks cannot share evenly; "
            f"resume on {', '.join(map(str, fitting))} ranks"
        )
    return count


class Feed:
    """This rank's strands of a stage's data."""

    def __init__(self, make: Callable[[], Stream], count: int, world: World):
        self.count, self.world = count, world
        self._streams = {s: make() for s in range(world.rank, count, world.size)}
        if count > 1:
            for strand, stream in self._streams.items():
                stream.split(strand, count)
        self._batches: dict[int, Iterator] = {}

    def step(self) -> Iterator[tuple[int, Any]]:
        """(strand, micro-batch) for each of this rank's strands."""
        for strand, stream in self._streams.items():
            if strand not in self._batches:
                self._batches[strand] = iter(stream)
            yield strand, next(self._batches[strand])

    def state(self) -> dict[int, dict]:
        """Where this rank's strands stand; between two steps, or it is of no use."""
        return {strand: stream.state_dict() for strand, stream in self._streams.items()}

    def load(self, states: list[dict]) -> None:
        """states: of all strands, in order."""
        for strand, stream in self._streams.items():
            stream.load_state_dict(states[strand])
