"""SIGTERM and SIGINT end a run between two micro-batches, with a checkpoint."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class _Abandoned(BaseException):
    """Leaves a section that holds nothing worth keeping; no `except Exception` swallows it."""


class Interruption:
    """Entered around training: the first signal sets `requested`, which the loop polls; a second
    one ends the process as it would have without us. Outside the main thread, where Python takes no
    handlers, it notices nothing."""

    def __init__(self) -> None:
        self.number = 0
        self._at_once = False
        self._before: dict[int, object] = {}

    @property
    def requested(self) -> bool:
        return self.number != 0

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *_exception: object) -> None:
        self._restore()

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """A section that a signal leaves at once (an evaluation, a warm-up): the rest of it is not
        run, and what follows it is. Not to be nested."""
        self._at_once = True
        try:
            yield
        except _Abandoned:
            pass
        finally:
            self._at_once = False

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self.requested:  # asked twice: whoever asks does not want to wait for a checkpoint
            self._restore()
            signal.raise_signal(number)
            return
        self.number = number
        if self._at_once:
            raise _Abandoned

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._before = {}
