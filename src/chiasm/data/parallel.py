"""A function over many items in processes, in order, a bounded number ahead."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from itertools import islice
from multiprocessing import get_context
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")

TOGETHER, AHEAD = 16, 4  # items sent at a time; such groups waiting for each process


def mapped(function: Callable[[T], R], items: Iterable[T], workers: int) -> Iterator[R]:
    """function(item) of every item, in order; in this process for fewer than two workers."""
    if workers < 2:
        yield from map(function, items)
        return
    # Not forked: this process may hold locks of torch's threads.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        waiting: deque[Future[list[Any]]] = deque()
        rest = iter(items)
        while group := list(islice(rest, TOGETHER)):
            waiting.append(pool.submit(_all, function, group))
            if len(waiting) >= workers * AHEAD:
                yield from waiting.popleft().result()
        for future in waiting:
            yield from future.result()


def _all(function: Callable, group: list) -> list:
    return [function(item) for item in group]
