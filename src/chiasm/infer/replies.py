"""Replies in the making, and the batch that tells a model what was added to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from chiasm.core.batch import IGNORE, Batch
from chiasm.core.protocols import Sampling
from chiasm.infer.grammar import Row


@dataclass
class Reply:
    """One reply in the making: a branch of a row; shift is how much later its twin stands.

    position: where its next token will stand. pending: its last tokens, as far as the model has not
    seen them. state: where it stands in the grammar; None of a model that cannot draw.
    """

    sample: int
    row: int
    branch: int
    position: int
    state: Row | None = None
    shift: int = 0
    text: list[int] = field(default_factory=list)
    pending: list[int] = field(default_factory=list)
    shown: str = ""
    done: bool = False

    @property
    def drawing(self) -> bool:
        return self.state is not None and self.state.drawing


@dataclass
class Session:
    """Replies made together: those unfinished, in a batch of `rows` rows (then as many twins where
    it is guided) whose past the cache holds."""

    live: list[Reply]
    rows: int
    guided: bool
    cache: Any
    sampling: Sampling
    random: torch.Generator

    def drop_finished(self) -> None:
        """Forget finished replies; their rows leave the batch once they are the majority."""
        self.live = [s for s in self.live if not s.done]
        used = sorted({s.row for s in self.live})
        if not used or len(used) > self.rows // 2:
            return
        keep = used + [row + self.rows for row in used] if self.guided else used
        self.cache.select(torch.tensor(keep, device=self.random.device))
        for s in self.live:
            s.row = used.index(s.row)
        self.rows = len(used)


def next_batch(
    live: Sequence[Reply], rows: int, guided: bool
) -> tuple[Batch, tuple[Tensor, Tensor]]:
    """The pending tokens of each sequence, side by side where they share a row, and where its last
    one stands."""
    used: dict[int, int] = {}
    told: list[tuple[int, int, int, int, int]] = []
    last = []
    for s in live:
        start = used.get(s.row, 0)
        used[s.row] = start + len(s.pending)
        first = s.position - len(s.pending)
        told += [
            (s.row, start + i, token, s.branch, first + i) for i, token in enumerate(s.pending)
        ]
        last.append((s.row, used[s.row] - 1))
    if guided:  # the twins are told the same, each at its own position
        shifts = [s.shift for s in live for _ in s.pending]
        told += [
            (row + rows, column, token, branch, position + shift)
            for (row, column, token, branch, position), shift in zip(told, shifts, strict=True)
        ]
        last += [(row + rows, column) for row, column in last]
    row, column, token, branch, position = torch.tensor(told).unbind(1)
    blank = torch.zeros(2 * rows if guided else rows, max(used.values()), dtype=torch.long)

    def spread(values: Tensor, filling: int = 0) -> Tensor:
        return (blank + filling).index_put((row, column), values)

    ids, branches, at = spread(token), spread(branch), spread(position)
    segment = spread(torch.zeros_like(position), -1)
    places = torch.tensor(last)
    batch = Batch(ids, torch.full_like(ids, IGNORE), segment, at, branches, at)
    return batch, (places[:, 0], places[:, 1])
