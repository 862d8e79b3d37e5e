"""Why the engine does not answer."""

from __future__ import annotations

from chiasm.core.errors import ChiasmError, DataError


class Busy(ChiasmError):  # noqa: N818 -- a state, not a fault
    """Nothing more can wait. seconds: when to try again, by how long requests took lately."""

    def __init__(self, seconds: int):
        super().__init__(f"too many requests are waiting; try again in {seconds} s")
        self.seconds = seconds


class Late(ChiasmError):  # noqa: N818
    """A request waited for a row longer than requests may take."""


class TooLongError(DataError):
    """A prompt leaves no room for a reply."""
