"""What long work tells whoever waits: a title, how much is done, a word on how it goes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class View(Protocol):
    """One piece of work under way, entered when it begins and left when it ends."""

    def __enter__(self) -> View: ...
    def __exit__(self, *exception: object) -> None: ...
    def advance(self) -> None: ...
    def status(self, text: str) -> None: ...


Show = Callable[[str, int, int], View]
"""(title, total, done so far) -> the view of a piece of work."""


def bars(disable: bool = False) -> Progress:
    """Progress bars in our columns; every task needs the field `status`."""
    return Progress(
        SpinnerColumn(),
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("{task.fields[status]}"),
        TimeElapsedColumn(),
        TextColumn("eta"),
        TimeRemainingColumn(),
        disable=disable,
    )


class Bar:
    """A View: one bar in the terminal."""

    def __init__(self, title: str, total: int, done: int = 0, shown: bool = True):
        self._bars = bars(disable=not shown)
        self._task = self._bars.add_task(title, total=total, completed=done, status="")

    def __enter__(self) -> Bar:
        self._bars.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._bars.stop()

    def advance(self) -> None:
        self._bars.advance(self._task)

    def status(self, text: str) -> None:
        self._bars.update(self._task, status=text)


def silent(title: str, total: int, done: int = 0) -> View:
    """A Show that shows nothing."""
    return Bar(title, total, done, shown=False)
