"""Keys and values of the tokens already seen, and which of them a new token may see."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from chiasm.core.batch import Packing
from chiasm.nn.attention import AttentionPlan, TokenIndex, cached_layout, prefill_layout


class KVCache:
    """A growing cache of [rows, heads, tokens, head size] a layer.

    All rows grow by the same number of entries; a row with less to say is padded with segment -1,
    which nobody sees. `extend` comes first in a forward pass and gives the layout, then each layer
    calls `update` (the method transformers' attention modules call, so their backbones use this
    cache too).
    """

    def __init__(self) -> None:
        self.index: TokenIndex | None = None
        self.further: dict[str, Tensor] = {}
        """What else a model keeps of the tokens, [B T] each."""
        self.beside: Any = None
        """What else a model keeps of the rows; has select(rows), blank(rows), joined(other)."""
        self._keys: dict[int, Tensor] = {}
        self._values: dict[int, Tensor] = {}
        self._length = 0
        self._before = 0
        self._foreseen: AttentionPlan | None = None

    def __len__(self) -> int:
        return self._length

    def extend(
        self, new: TokenIndex, packing: Packing | None = None, **further: Tensor
    ) -> AttentionPlan:
        """Append tokens [B T]; the layout in which they see the cache and each other. packing: of
        the tokens, if the host knows it; further: other columns of theirs to keep."""
        for name, column in further.items():
            held = self.further.get(name)
            self.further[name] = column if held is None else torch.cat([held, column], 1)
        if self._foreseen is not None:
            return self._next(self._foreseen, new.segment.shape[1])
        if self.index is not None:
            packing = None
        self.index = new if self.index is None else _join(self.index, new)
        self._before, self._length = self._length, self.index.segment.shape[1]
        return prefill_layout(new, self.index, packing)

    def foresee(self, first: TokenIndex, steps: int) -> None:
        """Say what the next `steps` calls of extend will append: tokens like `first` each time,
        their blocks one higher at every step. Who sees whom is then worked out once."""
        assert self.index is not None
        rise = torch.arange(steps, device=first.block.device)
        ahead = first.map(lambda column: column.repeat(1, steps))
        rise = rise.repeat_interleave(first.block.shape[1])
        self.index = _join(self.index, replace(ahead, block=ahead.block + rise))
        last = replace(first, block=first.block + steps - 1)
        self._foreseen = cached_layout(last, self.index)

    def reserve(self, first: TokenIndex, steps: int) -> AttentionPlan:
        """foresee, all steps counted at once: whoever calls this writes their keys and values into
        `buffers` himself. What the last of them sees, of which each sees the beginning."""
        self.foresee(first, steps)
        layout, self._foreseen = self._foreseen, None
        assert layout is not None
        assert self.index is not None
        self._before, self._length = self._length, self.index.segment.shape[1]
        return layout

    def buffers(self, layer: int) -> tuple[Tensor, Tensor]:
        """A layer's keys and values [B H room D] with room for all tokens."""
        keys, values = self._keys[layer], self._values[layer]
        return self._roomy(self._keys, keys, layer), self._roomy(self._values, values, layer)

    def _next(self, whole: AttentionPlan, count: int) -> AttentionPlan:
        """What the last step sees, up to now: everything later has a higher block."""
        assert whole.mask is not None
        self._before, self._length = self._length, self._length + count
        if self._length == whole.mask.shape[-1]:
            self._foreseen = None
        return AttentionPlan(whole.mask[..., : self._length], whole=whole)

    def update(
        self, key: Tensor, value: Tensor, layer_idx: int, *_args, **_kwargs
    ) -> tuple[Tensor, Tensor]:
        """Store a layer's new keys and values [B H T D]; all of its keys and values so far."""
        key = self._write(self._keys, key, layer_idx)
        value = self._write(self._values, value, layer_idx)
        return key, value

    def select(self, rows: Tensor) -> None:
        """Keep (or repeat) these rows: finished ones leave the batch."""
        assert self.index is not None
        self.index = self.index.map(lambda column: column[rows])
        self.further = {name: column[rows] for name, column in self.further.items()}
        if self.beside is not None:
            self.beside = self.beside.select(rows)
        for store in (self._keys, self._values):
            for layer in store:
                store[layer] = store[layer][rows]

    def keep(self, rows: Sequence[int]) -> None:
        """select, by numbers in main memory."""
        assert self.index is not None
        self.select(torch.tensor(rows, device=self.index.segment.device))

    def forget(self, length: int) -> None:
        """Keep the first `length` tokens of every row: what was tried after them does not count."""
        assert self.index is not None
        self._foreseen = None
        self.index = self.index.map(lambda column: column[:, :length])
        self.further = {name: column[:, :length] for name, column in self.further.items()}
        self._length = length

    def fork(self, length: int) -> KVCache:
        """A cache of its own with the first `length` tokens of every row; it has nothing beside."""
        assert self.index is not None
        other = KVCache()
        other.index = self.index.map(lambda column: column[:, :length])
        other.further = {name: column[:, :length] for name, column in self.further.items()}
        other._length = other._before = length
        for mine, theirs in ((self._keys, other._keys), (self._values, other._values)):
            for layer, buffer in mine.items():
                theirs[layer] = buffer[:, :, :length].clone()
        return other

    @property
    def nbytes(self) -> int:
        """Of keys and values."""
        stores = (*self._keys.values(), *self._values.values())
        return sum(buffer.nbytes for buffer in stores)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens held (transformers asks by this name)."""
        return self._before

    def _write(self, store: dict[int, Tensor], new: Tensor, layer: int) -> Tensor:
        buffer = self._roomy(store, new, layer)
        buffer[:, :, self._before : self._length] = new
        return buffer[:, :, : self._length]

    def _roomy(self, store: dict[int, Tensor], like: Tensor, layer: int) -> Tensor:
        """A layer's buffer with room for all tokens."""
        buffer = store.get(layer)
        if buffer is None or buffer.shape[2] < self._length:
            # Doubling: appending one token at a time must not copy the whole cache every step.
            B, H, _, D = like.shape
            assert self.index is not None
            room = max(64, 2 * self._length, self.index.segment.shape[1])
            grown = like.new_empty(B, H, room, D)
            if buffer is not None:
                grown[:, :, : self._before] = buffer[:, :, : self._before]
            buffer = store[layer] = grown
        return buffer


def _join(old: TokenIndex, new: TokenIndex) -> TokenIndex:
    position = None
    if old.position is not None and new.position is not None:
        position = torch.cat([old.position, new.position], 1)
    return TokenIndex(
        torch.cat([old.segment, new.segment], 1),
        torch.cat([old.block, new.block], 1),
        torch.cat([old.branch, new.branch], 1),
        position,
    )
