"""A key-value cache of fixed shapes: what decode steps on an accelerator compute by.

Every step of so many rows, tokens a row and entries reads and writes the same memory and makes no
decision by values, so that it can be captured as a CUDA graph and run again. Where its tokens go is
an input on the device like their ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from chiasm.core.batch import Packing, round_up
from chiasm.core.device import moved_tensor, pinned
from chiasm.nn.attention import AttentionPlan, TokenIndex, cached_layout
from chiasm.nn.batched_cache import Seat, SlotCache, index_columns
from chiasm.nn.cache import KVCache

ROWS = (1, 2, 4, 8, 16, 32, 64)
"""Batch sizes that steps are made for; larger ones are multiples of the last."""

WIDTHS = (1, 2, 4, 8)
"""Tokens a row that steps are made for; more are rounded up to a multiple of 16."""

ENTRIES = 256
"""Entries of the cache that the smallest step reads."""


def padded_rows(rows: int) -> int:
    """The batch size of the step for so many rows."""
    return next((size for size in ROWS if size >= rows), round_up(rows, ROWS[-1]))


def padded_width(width: int) -> int:
    """The tokens a row of the step for so many."""
    return next((size for size in WIDTHS if size >= width), round_up(width, 16))


def padded_entries(length: int) -> int:
    """The entries that a step for so many reads: a power of two or one and a half of it."""
    size = ENTRIES
    while size < length:
        if 3 * size // 2 >= length:
            return 3 * size // 2
        size *= 2
    return size


class StaticCache(SlotCache):
    """A SlotCache with rows for a whole padded batch, whose steps append any number of tokens to
    each row: through a `StaticView`, after `place` has said where.

    steps: what callers keep that is bound to the buffers' memory; emptied when that changes. room:
    entries a row to begin with.
    """

    def __init__(self, slots: int, room: int = ENTRIES):
        super().__init__(slots)
        self.capacity = padded_rows(slots)
        self.first_room = padded_entries(room)
        self.steps: dict[Any, Any] = {}

    @property
    def room(self) -> int:
        """Entries that a row can hold."""
        return self._columns["segment"].shape[1] if self._columns else 0

    def place(self, counts: Sequence[int], width: int, steps: int = 1) -> tuple[list[int], int]:
        """Make room for `steps` steps of so many tokens in each row in use, of which the last
        writes padding up to `width`: where the first one's go, an entry a row, and how many
        entries the steps have to read."""
        starts = list(self._lengths)
        ends = [n + steps * c for n, c in zip(starts, counts, strict=True)]
        entries = padded_entries(max(ends) + width)
        self._grow(entries)
        return starts, entries

    def advance(self, counts: Sequence[int]) -> None:
        """Count so many tokens of each row in use as written."""
        self._lengths = [n + c for n, c in zip(self._lengths, counts, strict=True)]

    def keep(self, rows: Sequence[int]) -> None:
        """Keep these rows, in this order, and free all others."""
        held = len(rows)
        if self._columns:
            order = self._moved(rows)
            stores = (self._columns, self._keys, self._values)
            for buffer in (buffer for store in stores for buffer in store.values()):
                buffer[:held] = buffer[order]
            self._columns["segment"][held:] = -1
            if self.beside is not None:
                self.beside = self.beside.select(order)
        self._lengths = [self._lengths[row] for row in rows]
        self.held = [Seat(number) for number in range(held)]

    def clear(self) -> None:
        """Free all rows; the buffers stay."""
        if self._columns:
            self._columns["segment"].fill_(-1)
        self._lengths, self.held, self.beside = [], [], None

    def drop_unplaced(self) -> None:
        """Hide what steps have written without its being counted by `advance`."""
        segment = self._columns["segment"]
        late = torch.arange(segment.shape[1], device=segment.device)
        late = late >= self._moved(self._lengths)[:, None]
        segment[: len(self._lengths)].masked_fill_(late, -1)

    def _moved(self, numbers: Sequence[int]) -> Tensor:
        device = self._columns["segment"].device
        return moved_tensor(pinned(torch.tensor(numbers), device), device)

    def extend(
        self, new: TokenIndex, packing: Packing | None = None, **further: Tensor
    ) -> AttentionPlan:
        raise NotImplementedError("tokens of a StaticCache are appended through a StaticView")

    def _forget_buffers(self) -> None:
        """They are kept, as steps are bound to them."""

    def _grow(self, length: int) -> None:
        if length > self.room:
            self.steps.clear()
        super()._grow(length)


class StaticView(KVCache):
    """The first `rows` rows and `entries` entries of a StaticCache during one forward pass, whose
    tokens [rows T] go to the entries `at` [rows T] on the device. Tokens that are padding have
    entries too, which later tokens overwrite."""

    def __init__(self, cache: StaticCache, at: Tensor, entries: int):
        super().__init__()
        self.cache, self.at, self.entries = cache, at, entries
        self._flat: dict[tuple[int, int], Tensor] = {}
        missing = len(at) - len(cache.held)
        if cache.beside is not None:
            beside = cache.beside
            self.beside = beside.joined(beside.blank(missing)) if missing else beside

    def __len__(self) -> int:
        return self.entries

    def extend(
        self, new: TokenIndex, packing: Packing | None = None, **further: Tensor
    ) -> AttentionPlan:
        rows, held = len(self.at), {}
        for name, column in (index_columns(new) | further).items():
            buffer = self.cache._columns[name][:rows]
            buffer.scatter_(1, self.at, column)
            held[name] = buffer[:, : self.entries]
        self.further = {name: held[name] for name in further}
        self.index = TokenIndex(
            held["segment"], held["block"], held["branch"], held.get("position")
        )
        return cached_layout(new, self.index)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.entries - self.at.shape[1]

    def _write(self, store: dict[int, Tensor], new: Tensor, layer: int) -> Tensor:
        buffer = self.cache.buffer_of(store is self._keys, layer)
        _, H, size, D = buffer.shape
        if (H, size) not in self._flat:  # the same in all layers, of nearly all models
            device, rows = self.at.device, len(self.at)
            rows = torch.arange(rows, device=device)[:, None, None] * H
            heads = rows + torch.arange(H, device=device)[:, None]
            self._flat[H, size] = (heads * size + self.at[:, None]).flatten()
        buffer.view(-1, D).index_copy_(0, self._flat[H, size], new.reshape(-1, D).to(buffer.dtype))
        return buffer[: len(new), :, : self.entries]
