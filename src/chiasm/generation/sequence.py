"""Replies in the making, and the batch that tells a model what was added to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from chiasm.core.batch import IGNORE, Batch
from chiasm.core.device import moved_tensor, pinned
from chiasm.core.protocols import SamplingParams
from chiasm.generation.image_token_fsm import Row


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
    sampling: SamplingParams
    random: torch.Generator

    def drop_finished(self) -> None:
        """Forget finished replies; their rows leave the batch once they are the majority."""
        self.live = [s for s in self.live if not s.done]
        used = sorted({s.row for s in self.live})
        if not used or len(used) > self.rows // 2:
            return
        self.cache.keep([*used, *(row + self.rows for row in used)] if self.guided else used)
        for s in self.live:
            s.row = used.index(s.row)
        self.rows = len(used)


@dataclass
class Asked:
    """What the grammar says of the next tokens of N replies.

    ahead: the marks [N] of the next one, and of those after it as far as they are certain for all.
    drawing: which of them are inside an image. On the device once `on` was told: marks [S N] of
    `ahead`, of_images [N] bool of `drawing`.
    """

    ahead: list[tuple[int, ...]]
    drawing: list[bool]
    marks: Tensor = field(default_factory=lambda: torch.empty(0))
    of_images: Tensor = field(default_factory=lambda: torch.empty(0))

    @property
    def arrays(self) -> list[np.ndarray]:
        """What a device needs to know of it."""
        return [np.array(self.ahead, np.int64), np.array(self.drawing, np.int64)]

    def on(self, told: Sequence[Tensor]) -> Asked:
        """With its arrays on the device."""
        self.marks, self.of_images = told[0], told[1].bool()
        return self


@dataclass(frozen=True)
class Feed:
    """Tokens that a step adds to the rows of a batch, as arrays in main memory.

    columns [4 B T] int64: ids, segment (-1 is padding), branch and position, which is the block
    too. place [N 2] int64: row and column of the last token of each sequence.
    """

    columns: np.ndarray
    place: np.ndarray

    @property
    def counts(self) -> list[int]:
        """Tokens of each row that are not padding."""
        return (self.columns[1] >= 0).sum(1).tolist()

    @property
    def straight(self) -> bool:
        """Whether every row has one token, the last of a sequence, in the sequences' order."""
        return self.flat().tolist() == list(range(self.columns[0].size))

    def flat(self, width: int | None = None) -> np.ndarray:
        """[N] `place` as numbers of the tokens laid flat, `width` a row where rows are padded."""
        return self.place[:, 0] * (width or self.columns.shape[2]) + self.place[:, 1]


def next_feed(live: Sequence[Reply], rows: int, guided: bool) -> Feed:
    """The pending tokens of each sequence, side by side where they share a row; with guidance the
    twins get the same, each at its own position."""
    used = [0] * rows
    spans = []
    for s in live:
        spans.append((s, used[s.row], used[s.row] + len(s.pending)))
        used[s.row] += len(s.pending)
    columns = np.zeros((4, 2 * rows if guided else rows, max(used)), np.int64)
    columns[1] = -1
    for twins in range(1 + guided):
        for s, start, end in spans:
            span = columns[:, s.row + twins * rows, start:end]
            span[0], span[1], span[2] = s.pending, 0, s.branch
            span[3] = np.arange(s.position - len(s.pending), s.position) + twins * s.shift
    place = [(s.row + t * rows, end - 1) for t in range(1 + guided) for s, _, end in spans]
    return Feed(columns, np.array(place, np.int64))


def batch_of(columns: Tensor, host: Batch | None = None) -> Batch:
    """The batch of a Feed's columns, of which more than four may be there."""
    ids, segment, branch, position = columns[:4].unbind()
    return Batch(ids, torch.full_like(ids, IGNORE), segment, position, branch, position, host=host)


def moved(arrays: Sequence[np.ndarray], device: torch.device) -> list[Tensor]:
    """Arrays of integers as tensors on a device, by a single copy."""
    if device.type == "cpu":
        return [torch.from_numpy(array) for array in arrays]
    flat = torch.from_numpy(np.concatenate([array.reshape(-1) for array in arrays]))
    parts = moved_tensor(pinned(flat, device), device).split([array.size for array in arrays])
    return [part.view(array.shape) for part, array in zip(parts, arrays, strict=True)]
