"""What one request may ask of a server, and all of them together."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from chiasm.serve.refusals import Busy
from chiasm.serve.remote import Remote


@dataclass(frozen=True)
class Limits:
    """Everything is checked before the work it would cause.

    body: bytes of a request; body_seconds: in which it must have come whole. images, clips: of a
    request. pixels: of one image; footage: of all frames of a clip. tokens: longest reply.
    choices: replies or images of a request. texts: of an embeddings request. stops: stop strings.
    seconds: a reply takes no longer. held: bytes of bodies and decoded images of all requests
    under way. remote: hosts that images may be fetched from; by default none.
    """

    body: int = 32 * 2**20
    body_seconds: float = 30.0
    images: int = 16
    clips: int = 1
    pixels: int = 20_000_000
    footage: int = 5_000_000_000
    tokens: int = 2048
    choices: int = 8
    texts: int = 256
    stops: int = 8
    seconds: float = 300.0
    held: int = 2 * 2**30
    remote: Remote = field(default_factory=Remote)


class Budget:
    """Bytes that requests hold; more than `limit` together are refused with Busy."""

    def __init__(self, limit: int):
        self.limit, self.held = limit, 0
        self._lock = threading.Lock()

    @contextmanager
    def request(self) -> Iterator[Holding]:
        holding = Holding(self)
        try:
            yield holding
        finally:
            self.change(holding, -holding.bytes)

    def change(self, holding: Holding, count: int) -> None:
        """Raises Busy if that is too much for all together."""
        with self._lock:  # images are decoded on other threads
            if count > 0 and self.held + count > self.limit:
                raise Busy(5)
            self.held += count
            holding.bytes += count


@dataclass
class Holding:
    """What one request holds."""

    budget: Budget
    bytes: int = 0

    def add(self, count: int) -> None:
        """Raises Busy if that is too much for all together."""
        self.budget.change(self, count)
