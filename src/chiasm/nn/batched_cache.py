"""A cache whose rows come and go: continuous batching."""

from __future__ import annotations

import torch
from torch import Tensor

from chiasm.core.batch import Packing
from chiasm.nn.attention import AttentionPlan, TokenIndex, cached_layout
from chiasm.nn.cache import KVCache

FIRST = 256
"""Tokens a slot has room for at first; doubled when one row needs more."""


class Seat:
    """A row of the cache for as long as it is held. `number` is where it stands now."""

    def __init__(self, number: int):
        self.number = number


class SlotCache(KVCache):
    """Room for `slots` rows, each with its own length.

    Rows in use are the first ones, so that what a step reads is a view: a row that leaves is
    replaced by the last. Every step appends one token to every row in use.

    slot 0  a b c d e . .      rows in use: 0, 1, 2; the next tokens go to 5, 2 and 4
    slot 1  f g . . . . .      what stands right of them is old and has segment -1
    slot 2  h i j k . . .
    slot 3  . . . . . . .
    """

    def __init__(self, slots: int):
        super().__init__()
        self.slots = self.capacity = slots
        self.first_room = FIRST
        self.held: list[Seat] = []
        self._lengths: list[int] = []
        self._columns: dict[str, Tensor] = {}
        self._at: tuple[Tensor, Tensor]
        self._flat: dict[tuple[int, int], Tensor] = {}

    def __len__(self) -> int:
        return max(self._lengths, default=0)

    @property
    def free(self) -> int:
        return self.slots - len(self.held)

    def admit(self, cache: KVCache) -> list[Seat]:
        """Take over the rows of a cache (their padding is left behind): a slot each. Raises
        ValueError if there are not as many free."""
        assert cache.index is not None
        rows = len(cache.index.segment)
        if rows > self.free:
            raise ValueError(f"{rows} rows to admit, but {self.free} of {self.slots} slots free")
        columns = index_columns(cache.index) | cache.further
        there = columns["segment"] >= 0
        lengths = there.sum(1).tolist()
        longest, first = max(lengths), len(self.held)
        self._make_room(columns, cache, longest)
        self._admit_beside(cache, rows)
        # Tokens first, each row's padding last.
        order = (~there).byte().argsort(dim=1, stable=True)[:, :longest]
        for name, column in columns.items():
            self._columns[name][first : first + rows, :longest] = column.gather(1, order)
        for mine, theirs in ((self._keys, cache._keys), (self._values, cache._values)):
            for layer, buffer in theirs.items():
                _, H, _, D = buffer.shape
                kept = buffer.gather(2, order[:, None, :, None].expand(-1, H, -1, D))
                mine[layer][first : first + rows, :, :longest] = kept
        new = [Seat(first + row) for row in range(rows)]
        self.held += new
        self._lengths += lengths
        return new

    def release(self, slot: Seat) -> None:
        """Free a slot; the last row in use moves there."""
        last = len(self.held) - 1
        if slot.number != last:
            for buffer in (*self._columns.values(), *self._keys.values(), *self._values.values()):
                buffer[slot.number] = buffer[last]
            self._lengths[slot.number] = self._lengths[last]
            self.held[slot.number] = self.held[last]
        if self.beside is not None:
            order = list(range(last))
            if slot.number != last:
                order[slot.number] = last
            self.beside = self.beside.select(torch.tensor(order)) if order else None
        self._columns["segment"][last] = -1
        self.held[slot.number].number = slot.number
        self.held.pop()
        self._lengths.pop()
        if not self.held:
            self._forget_buffers()

    def buffer_of(self, keys: bool, layer: int) -> Tensor:
        """A layer's keys or values [slots H room D]."""
        return (self._keys if keys else self._values)[layer]

    def _forget_buffers(self) -> None:
        """A long prompt must not hold its memory for ever."""
        self._columns, self._keys, self._values = {}, {}, {}

    def extend(
        self, new: TokenIndex, packing: Packing | None = None, **further: Tensor
    ) -> AttentionPlan:
        """Append one token [B 1] to each of the B rows in use."""
        rows = len(self.held)
        if new.segment.shape != (rows, 1):
            raise ValueError(
                f"tokens of shape {list(new.segment.shape)} for {rows} rows; give one a row"
            )
        device = new.segment.device
        self._at = (torch.arange(rows, device=device), torch.tensor(self._lengths, device=device))
        self._flat = {}
        self._lengths = [length + 1 for length in self._lengths]
        self._grow(len(self))
        for name, column in (index_columns(new) | further).items():
            self._columns[name][self._at] = column[:, 0]
        held = {name: c[:rows, : len(self)] for name, c in self._columns.items()}
        self.further = {name: held[name] for name in further}
        self.index = TokenIndex(
            held["segment"], held["block"], held["branch"], held.get("position")
        )
        return cached_layout(new, self.index)

    def select(self, rows: Tensor) -> None:
        raise NotImplementedError("rows of a SlotCache leave by release")

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return len(self) - 1

    def _write(self, store: dict[int, Tensor], new: Tensor, layer: int) -> Tensor:
        buffer = store[layer]
        _, H, size, D = buffer.shape
        if (H, size) not in self._flat:  # the same in all layers, of nearly all models
            rows, columns = self._at
            heads = torch.arange(H, device=rows.device)
            places = (rows[:, None] * H + heads) * size + columns[:, None]
            self._flat[H, size] = places.flatten()
        # A write by three indices takes twice as long.
        buffer.view(-1, D).index_copy_(0, self._flat[H, size], new.reshape(-1, D))
        return buffer[: len(new), :, : len(self)]

    def _make_room(self, columns: dict[str, Tensor], like: KVCache, length: int) -> None:
        """Buffers as those of a cache, where there are none yet, long enough."""
        size = max(self.first_room, length)
        for name, column in columns.items():
            if name not in self._columns:
                filling = -1 if name == "segment" else 0
                self._columns[name] = column.new_full((self.capacity, size), filling)
        for mine, theirs in ((self._keys, like._keys), (self._values, like._values)):
            for layer, buffer in theirs.items():
                if layer not in mine:
                    _, H, _, D = buffer.shape
                    # Zeros: what is hidden by -inf must still be finite.
                    mine[layer] = buffer.new_zeros(self.capacity, H, size, D)
        self._grow(length)

    def _grow(self, length: int) -> None:
        room = self._columns["segment"].shape[1]
        if length <= room:
            return
        extra = max(length, 2 * room) - room
        for name, column in self._columns.items():
            filling = column.new_full((self.capacity, extra), -1 if name == "segment" else 0)
            self._columns[name] = torch.cat([column, filling], 1)
        for store in (self._keys, self._values):
            for layer, buffer in store.items():
                S, H, _, D = buffer.shape
                store[layer] = torch.cat([buffer, buffer.new_zeros(S, H, extra, D)], 2)

    def _admit_beside(self, cache: KVCache, rows: int) -> None:
        if self.beside is None and cache.beside is None:
            return
        if self.beside is None:
            self.beside = cache.beside.blank(len(self.held)) if self.held else None
        new = cache.beside if cache.beside is not None else self.beside.blank(rows)
        self.beside = new if self.beside is None else self.beside.joined(new)


def index_columns(index: TokenIndex) -> dict[str, Tensor]:
    """A TokenIndex by the names of its columns."""
    columns = {"segment": index.segment, "block": index.block, "branch": index.branch}
    return columns if index.position is None else columns | {"position": index.position}
