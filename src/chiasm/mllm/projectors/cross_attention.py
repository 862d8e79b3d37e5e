"""Flamingo's gated cross-attention (2204.14198, section 2.2): text looks at images between the
language model's layers, and the sequence holds one placeholder an image."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from chiasm.core.device import moved_tensor
from chiasm.mllm.config import CrossAttentionConfig
from chiasm.mllm.projectors.inner import InnerProjector, Sight, Step
from chiasm.mllm.projectors.parts import check_heads
from chiasm.nn.attention import AttentionPlan, TokenIndex, attention, visible

Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Images:
    """The images of each row, as the blocks see them: index of their placeholders [B M], and keys
    and values [B M D] for every block. Rows are filled up with segment -1, which no text has."""

    index: TokenIndex
    pairs: tuple[Pair, ...]

    def select(self, rows: Tensor) -> Images:
        """Of these rows only."""
        return self._map(lambda tensor: tensor[rows])

    def followed_by(self, later: Images) -> Images:
        """With the images of later tokens of the same rows."""
        columns = (later.index.segment, later.index.block, later.index.branch)
        others = iter([*columns, *(t for pair in later.pairs for t in pair)])
        return self._map(lambda tensor: torch.cat([tensor, next(others)], 1))

    def blank(self, rows: int) -> Images:
        """As many rows without an image."""
        index = self.index.map(lambda column: column.new_full((rows, 1), -1))
        return Images(
            index,
            tuple(
                (k.new_zeros(rows, 1, *k.shape[2:]), v.new_zeros(rows, 1, *v.shape[2:]))
                for k, v in self.pairs
            ),
        )

    def joined(self, other: Images) -> Images:
        """These rows, then the other's."""
        length = max(self.index.segment.shape[1], other.index.segment.shape[1])
        one, two = self._filled(length), other._filled(length)
        columns = (two.index.segment, two.index.block, two.index.branch)
        others = iter([*columns, *(t for pair in two.pairs for t in pair)])
        return one._map(lambda tensor: torch.cat([tensor, next(others)]))

    def _filled(self, length: int) -> Images:
        missing = length - self.index.segment.shape[1]
        if not missing:
            return self

        def fill(tensor: Tensor) -> Tensor:
            # -1 is read in the index alone; of keys and values it hides any finite number.
            shape = (tensor.shape[0], missing, *tensor.shape[2:])
            return torch.cat([tensor, tensor.new_full(shape, -1)], 1)

        return self._map(fill)

    def _map(self, change: Any) -> Images:
        return Images(self.index.map(change), tuple((change(k), change(v)) for k, v in self.pairs))


class CrossAttentionProjector(InnerProjector):
    """Text sees all earlier images of its sample (Flamingo's the last one only). Where there is
    none the blocks do nothing, so text by itself is the language model's own, whatever it is packed
    with. Gates start at zero: so does everything else. Raises ConfigError if heads do not divide
    the language model's width."""

    def __init__(self, config: CrossAttentionConfig, vision: int, language: int, scale: float):
        from chiasm.mllm.projectors import build_projector  # it knows this class

        super().__init__()
        self.config, self.reach = config, max(config.before) + 1
        self.media = build_projector(config.media, vision, language, 1.0)
        self.media_norm = nn.LayerNorm(language)
        self.placeholder = nn.Parameter(torch.randn(language) * scale)
        self.blocks = nn.ModuleList(GatedBlock(language, config.heads) for _ in config.before)

    def tokens(self, grid: tuple[int, int]) -> int:
        return 1

    def forward(self, features: Tensor, grids: Tensor) -> Tensor:
        return self.placeholder.expand(len(grids), -1)

    def inner(self, features: Tensor, grids: Tensor) -> list[Pair]:
        media = self.media_norm(self.media(features, grids))
        return [(block.k_proj(media), block.v_proj(media)) for block in self.blocks]  # type: ignore

    def between(
        self, features: Tensor | None, grids: Tensor | None, sight: Sight
    ) -> dict[int, Step]:
        images = None if sight.cache is None else sight.cache.beside
        if features is not None and grids is not None:
            new = self._look(features, grids, sight)
            images = new if images is None else images.followed_by(new)
        if images is None:
            return {}
        if sight.cache is not None:
            sight.cache.beside = images
        mask = visible(sight.index, images.index) & (sight.index.segment >= 0)[:, :, None]
        parts = zip(self.config.before, self.blocks, images.pairs, strict=True)
        return {layer: partial(block, pair=pair, mask=mask) for layer, block, pair in parts}

    def token_flops(self, slots: Tensor, grids: Tensor) -> float:
        B, T = slots.shape
        counts = torch.tensor(self._counts(grids))
        held = torch.zeros(B, dtype=counts.dtype).index_add(0, slots.nonzero()[:, 0], counts)
        width = len(self.placeholder)
        matrices = 2.0 * 10 * width**2 + 4.0 * width * int(held.max())
        return len(self.blocks) * B * T * matrices

    def _look(self, features: Tensor, grids: Tensor, sight: Sight) -> Images:
        """Images laid out by the rows that their placeholders are in."""
        counts = torch.tensor(self._counts(grids))
        row = sight.slots.nonzero()[:, 0].repeat_interleave(counts)
        which = torch.arange(len(counts)).repeat_interleave(counts)
        B = len(sight.slots)
        length = torch.bincount(row, minlength=B)
        column = torch.arange(len(row)) - (length.cumsum(0) - length)[row]
        longest = int(length.max())
        row, column, which = (moved_tensor(t, features.device) for t in (row, column, which))

        def laid(values: Tensor, filling: int = 0) -> Tensor:
            shape = (B, longest, *values.shape[1:])
            return values.new_full(shape, filling).index_put((row, column), values)

        def of_slots(column: Tensor, filling: int = 0) -> Tensor:
            return laid(column.flatten()[sight.at][which], filling)

        own = sight.index
        index = TokenIndex(of_slots(own.segment, -1), of_slots(own.block), of_slots(own.branch))
        pairs = tuple((laid(k), laid(v)) for k, v in self.inner(features, grids))
        return Images(index, pairs)

    def _counts(self, grids: Tensor) -> list[int]:
        return [self.media.tokens((h, w)) for h, w in grids.tolist()]


class GatedBlock(nn.Module):
    """x [B T D] + tanh(a)·attention to keys and values [B M D], then + tanh(b)·MLP with squared
    ReLU, where mask [B T M] lets a token see anything at all; no biases but the norms'."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        check_heads(width, heads)
        self.heads = heads
        self.norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width, bias=False)
        self.out_proj = nn.Linear(width, width, bias=False)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)
        self.gate, self.mlp_gate = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, pair: Pair, mask: Tensor) -> Tensor:
        sees = mask.any(-1, keepdim=True)
        q, k, v = (
            y.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for y in (self.q_proj(self.norm(x)), *pair)
        )
        # A row of the softmax without any key would be NaN: it sees all, and is thrown away.
        seen = attention(q, k.to(q.dtype), v.to(q.dtype), AttentionPlan((mask | ~sees)[:, None]))
        y = x + sees * self.gate.tanh() * self.out_proj(seen.transpose(1, 2).flatten(2))
        mixed = self.down(F.relu(self.up(self.mlp_norm(y))).square())
        return (y + sees * self.mlp_gate.tanh() * mixed).to(x.dtype)
