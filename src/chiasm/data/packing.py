"""Samples to rows that are full: a knapsack with two sides, tokens and patches.

A window of samples is measured (from the headers of their images), then row after row is filled
from it. Every pick weighs how much of the row a sample fills against how far it takes the row from
the window's mixture of patches and tokens: rows then cost alike, in whatever order ranks get them.
Where little room is left, pairs are tried too. What would leave a row emptier than `FULL` waits
for the next window, but no more than `WAITING` rows' worth of it.

    tokens   |=====A=====|==B==|=C=|     of Budget.tokens
    patches  |===A===|      |=C=|        of Budget.patches
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

FULL = 0.97
"""Share of a row's tokens that must be used, or its samples wait."""

WAITING = 4
"""Rows that samples may wait for; what is more goes into rows that are not full."""

PAIRS = 192
"""At most so many candidates are tried in pairs."""


@dataclass(frozen=True)
class Size:
    """What a sample takes of a row."""

    tokens: int
    patches: int = 0


@dataclass(frozen=True)
class Budget:
    """What a row may hold; patches None: any number, shared out evenly all the same."""

    tokens: int
    patches: int | None = None


def fill(sizes: Sequence[Size], budget: Budget) -> tuple[list[list[int]], list[int]]:
    """Rows of numbers of samples that hold to the budget, and the numbers that are left over.

    A sample that is larger than the budget by itself makes a row of its own. The same sizes give
    the same rows.
    """
    tokens = np.array([size.tokens for size in sizes], np.int64)
    patches = np.array([size.patches for size in sizes], np.int64)
    most = budget.tokens * 2**20 if budget.patches is None else budget.patches
    large = (tokens >= budget.tokens) | (patches >= most)
    rows = [[int(i)] for i in np.flatnonzero(large)]
    free = ~large
    share = patches[free].sum() / max(1, tokens[free].sum())
    late = np.zeros_like(free)
    while free.any():
        row = _row(tokens, patches, free, budget.tokens, most, share)
        if tokens[row].sum() >= FULL * budget.tokens or patches[row].sum() >= FULL * most:
            rows.append(row)
            free[row] = False
        else:  # nothing completes its largest
            late[row[0]], free[row[0]] = True, False
    while tokens[late].sum() > WAITING * budget.tokens:
        rows.append(_row(tokens, patches, late, budget.tokens, most, share))
        late[rows[-1]] = False
    return rows, [int(i) for i in np.flatnonzero(late)]


def _row(
    tokens: np.ndarray, patches: np.ndarray, free: np.ndarray, room: int, most: int, share: float
) -> list[int]:
    """The samples of one row, the first picks the largest."""
    row: list[int] = []
    length, free = room, free.copy()
    even = max(1.0, share * length)
    seen = 0
    while True:
        fits = np.flatnonzero(free & (tokens <= room) & (patches <= most - seen))
        if not len(fits):
            return row
        used = length - room + tokens[fits]
        drift = np.abs((seen + patches[fits]) / even - used / length) if share else 0.0
        picks = [int(fits[np.argmax(tokens[fits] / length - drift)])]
        if room <= 2 * tokens[fits].max():
            picks = _closing(tokens, patches, fits, room, most - seen) or picks
        for pick in picks:
            row.append(pick)
            free[pick] = False
            room -= int(tokens[pick])
            seen += int(patches[pick])


def _closing(
    tokens: np.ndarray, patches: np.ndarray, fits: np.ndarray, room: int, most: int
) -> list[int]:
    """The one or two samples that fill the rest of a row best."""
    fits = fits[np.argsort(-tokens[fits], kind="stable")]
    # Long ones and short ones: a gap is closed by one of each.
    fits = np.concatenate([fits[: PAIRS // 2], fits[PAIRS // 2 :][-PAIRS // 2 :]])
    both = tokens[fits][:, None] + tokens[fits]
    allowed = (both <= room) & (patches[fits][:, None] + patches[fits] <= most)
    np.fill_diagonal(allowed, False)
    if not allowed.any():
        return []
    first, second = np.unravel_index(np.argmax(np.where(allowed, both, -1)), both.shape)
    if both[first, second] <= tokens[fits[0]]:
        return [int(fits[0])]
    return [int(fits[first]), int(fits[second])]


def usefulness(rows: Sequence[Sequence[int]], sizes: Sequence[Size], budget: Budget) -> float:
    """Share of the rows' tokens that belong to samples."""
    used = sum(sizes[i].tokens for row in rows for i in row)
    return used / max(1, sum(max(budget.tokens, sum(sizes[i].tokens for i in r)) for r in rows))
