"""The one attention seam: who sees whom, said by segment, block and branch (core/batch.py).

segment  0 0 0 0 0 1 1        rows: the token that looks, columns: the token looked at
block    0 0 0 1 2 0 1
                              1 1 1 . . . .
an image of three tokens      1 1 1 . . . .
that see each other, two      1 1 1 . . . .
causal text tokens, then      1 1 1 1 . . .
another sample                1 1 1 1 1 . .
                              . . . . . 1 .
                              . . . . . 1 1

How rows attend is chosen by the type of device (nn/kernels.py) and by the layout, once a batch: in
groups of segments that are masked by themselves, or by kernels that need no [B 1 T T] mask.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from chiasm.core import moved
from chiasm.core.batch import Packing, round_up
from chiasm.core.device import moved_tensor
from chiasm.nn.kernels import BLOCK, block_mask, flex, kernels_of, repeat_heads, varlen

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

EVEN = 16
"""Long segments of several lengths are filled up to a multiple of this many tokens, so that few
shapes occur: kernels for bfloat16 on a CPU are made anew for every shape (LOG.md)."""


@dataclass(frozen=True)
class TokenIndex:
    """segment, block and branch of a row of tokens, each [B T] int64; position [B T] within the
    segment is needed only where layers look back through a window."""

    segment: Tensor
    block: Tensor
    branch: Tensor
    position: Tensor | None = None

    def map(self, act: Callable[[Tensor], Tensor]) -> TokenIndex:
        """The same act on every column."""
        position = None if self.position is None else act(self.position)
        return TokenIndex(act(self.segment), act(self.block), act(self.branch), position)


def visible(query: TokenIndex, key: TokenIndex, window: int | None = None) -> Tensor:
    """[B Tq Tk] bool: the rule of core/batch.py. Padding (segment -1) is seen by padding only.

    window w hides what stands w or more positions back, but nothing in the token's own block
    (transformers' rule for Gemma 3's images and PaliGemma 2's prefix).
    """
    same = query.segment[:, :, None] == key.segment[:, None, :]
    earlier = key.block[:, None, :] <= query.block[:, :, None]
    kin = (key.branch[:, None, :] == 0) | (key.branch[:, None, :] == query.branch[:, :, None])
    seen = same & earlier & kin
    if window is None:
        return seen
    start, stop = _positions(query, key)
    own = key.block[:, None, :] == query.block[:, :, None]
    return seen & (own | (stop[:, :, None] - start[:, None, :] < window))


def _positions(query: TokenIndex, key: TokenIndex) -> tuple[Tensor, Tensor]:
    if key.position is None or query.position is None:
        raise ValueError("a window is measured in positions; make the TokenIndex with them")
    return key.position, query.position


@dataclass(frozen=True)
class Group:
    """Segments of similar length that attend together: place [S L] in the flattened [B T] tokens,
    their index (segment 0, -1 where there is filling and no token), and how they attend. on_host:
    place, and where there is a token, as arrays; reach: the largest difference of positions in a
    segment, where positions are known."""

    place: Tensor
    index: TokenIndex
    mask: Tensor | None
    causal: bool
    on_host: tuple[np.ndarray, np.ndarray]
    reach: int | None


@dataclass(frozen=True)
class Permutation:
    """From rows [B T H] of tokens' heads to groups one after another, [S H L] each, and back.
    place: the row of every one there, back: of every one here; filled, padding: numbers of those
    that have none and are zeros."""

    place: Tensor
    filled: Tensor
    back: Tensor
    padding: Tensor

    @staticmethod
    def of(groups: tuple[Group, ...], tokens: int, heads: int) -> Permutation:
        """Of tokens in groups with so many heads each, worked out on the host."""
        head = np.arange(heads)[:, None]
        place = np.concatenate([(g.on_host[0][:, None] * heads + head).ravel() for g in groups])
        real = np.concatenate([g.on_host[1][:, None].repeat(heads, 1).ravel() for g in groups])
        back = np.full(tokens * heads, -1)
        back[place[real]] = np.flatnonzero(real)
        columns = (place, np.flatnonzero(~real), back.clip(min=0), np.flatnonzero(back < 0))
        return Permutation(*(on_device(column, groups[0].place.device) for column in columns))

    def sort(self, x: Tensor) -> Tensor:
        """x [B H T D] -> [groups' S·H·L, D]"""
        rows = x.transpose(1, 2).reshape(-1, x.shape[-1])
        return _Moved.apply(rows, self.place, self.filled, self.back, self.padding)  # type: ignore

    def unsort(self, rows: Tensor) -> Tensor:
        """The inverse, [B·T·H, D]"""
        return _Moved.apply(rows, self.back, self.padding, self.place, self.filled)  # type: ignore


class _Moved(torch.autograd.Function):
    """Rows of x [N D] at other places, zeros where none goes. What autograd knows of index_select
    adds gradients up, one after another; as each row goes to one place, moving them back is all."""

    @staticmethod
    def forward(ctx, x: Tensor, *places: Tensor) -> Tensor:
        ctx.save_for_backward(*places)
        place, none, *_ = places
        return x.index_select(0, place).index_fill_(0, none, 0.0)

    @staticmethod
    def backward(ctx, *gradients: Tensor):
        place, none, back, no_more = ctx.saved_tensors
        return _Moved.apply(gradients[0], back, no_more, place, none), None, None, None, None


@dataclass(frozen=True)
class Rows:
    """Rows that an accelerator's kernels take as they are. query and key: who attends; packing: of
    the rows, which are the queries and the keys; None where queries look at other keys, or where
    only the device knows. window: see visible."""

    query: TokenIndex
    key: TokenIndex
    packing: Packing | None = None
    window: int | None = None

    @property
    def causal(self) -> bool:
        """Whether every segment is known to be causal, so that a window counts tokens."""
        packing = self.packing
        known = packing is not None and bool(packing.causal.all())
        return known and (self.window is None or bool(packing.consecutive.all()))  # type: ignore

    @property
    def bidirectional(self) -> bool:
        """Whether every segment is known to be one block, which no window cuts."""
        return self.packing is not None and bool(self.packing.bidirectional.all())

    @property
    def alone(self) -> bool:
        """Whether every row is known to be one segment without padding."""
        packing = self.packing
        return packing is not None and len(packing.first) == packing.shape[0] == sum(
            packing.lengths == packing.shape[1]
        )

    @cached_property
    def cu_seqlens(self) -> tuple[Tensor, int]:
        """Where segments begin in the rows laid flat and, last, where the rows end, [N + 1] int32;
        and the length of the longest. Padding is cut into segments of at most BLOCK tokens."""
        assert self.packing is not None
        first, end = self.packing.first, self.packing.first + self.packing.lengths
        total = self.packing.shape[0] * self.packing.shape[1]
        cut = np.arange(0, total, BLOCK)
        before = np.searchsorted(first, cut, side="right") - 1
        cut = cut[(before < 0) | (cut >= end[before])]
        edges = np.unique(np.concatenate([first, end, cut, [0, total]]))
        cu_seqlens = on_device(edges.astype(np.int32), self.query.segment.device)
        return cu_seqlens, int(np.diff(edges).max())

    @cached_property
    def block_mask(self) -> BlockMask:
        """For flex attention."""
        return block_mask(self.query, self.key, self.window)

    @cached_property
    def dense(self) -> AttentionPlan:
        """With a mask [B 1 Tq Tk]: for rows shorter than a block of a block mask."""
        return AttentionPlan(_mask(self.query, self.key, self.window))


@dataclass(frozen=True)
class AttentionPlan:
    """How one forward pass attends; made once, used by every layer.

    mask: [B 1 Tq Tk] bool or None, causal: plain causal attention without a mask. With groups the
    packed rows are taken apart instead: each segment attends by itself. query and key: who attends,
    to cut windows from; narrower: the layouts of windows already cut. whole: the layout of more
    keys, of which the mask is the beginning. orders: of tokens with so many heads. rows: what an
    accelerator's kernels need instead of all this.
    """

    mask: Tensor | None = None
    causal: bool = False
    groups: tuple[Group, ...] = ()
    query: TokenIndex | None = None
    key: TokenIndex | None = None
    narrower: dict[int, AttentionPlan] = field(default_factory=dict, compare=False, repr=False)
    biases: dict[torch.dtype, Tensor] = field(default_factory=dict, compare=False, repr=False)
    whole: AttentionPlan | None = None
    orders: dict[int, Permutation] = field(default_factory=dict, compare=False, repr=False)
    rows: Rows | None = None

    def order(self, tokens: int, heads: int) -> Permutation:
        """How so many tokens with so many heads are sorted into groups. Made on first use, then
        kept for the other layers."""
        if heads not in self.orders:
            self.orders[heads] = Permutation.of(self.groups, tokens, heads)
        return self.orders[heads]

    def bias(self, dtype: torch.dtype) -> Tensor:
        """What is added to logits [B 1 Tq Tk]: 0 where the mask is true, else -inf. Made on first
        use, then kept for the other layers."""
        if dtype not in self.biases:
            assert self.mask is not None
            if self.whole is None:
                self.biases[dtype] = additive(self.mask, dtype)
            else:
                self.biases[dtype] = self.whole.bias(dtype)[..., : self.mask.shape[-1]]
        return self.biases[dtype]


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where the mask is true, else -inf."""
    return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, float("-inf"))


def full_layout() -> AttentionPlan:
    """Every token of a row sees every other."""
    return AttentionPlan()


def on_device(values: np.ndarray, device: torch.device) -> Tensor:
    """A tensor of what the host has worked out, which waits for no device."""
    return moved_tensor(torch.from_numpy(values), device)


def packed_layout(index: TokenIndex, packing: Packing | None = None) -> AttentionPlan:
    """The layout of packed rows: each segment attends by itself, so that isolation is exact and
    the cost is the sum of the segments' squares, not the square of the sum.

    packing: of the index, from the host. Without it, what is needed of an index on a device is read
    back from there, or kernels are used that need nothing.
    """
    device = index.segment.device
    if kernels_of(device).flex is not None:
        return AttentionPlan(query=index, key=index, rows=Rows(index, index, packing))
    packing = _packing_of(index) if packing is None else packing
    groups = tuple(_group(index, packing, chosen) for chosen in _similar(packing.lengths.tolist()))
    only = groups[0]
    if len(groups) == 1 and only.place.shape == packing.shape and only.on_host[1].all():
        # Rows are segments already: nothing to take apart.
        return AttentionPlan(only.mask, only.causal, query=only.index, key=only.index)
    return AttentionPlan(groups=groups)


def causal_layout(tokens: int, device: torch.device) -> AttentionPlan:
    """Of one row that is one causal segment."""
    order = np.arange(tokens)[None]
    packing = Packing.of(0 * order, order, 0 * order, order)
    position = torch.arange(tokens, device=device)[None]
    zero = torch.zeros_like(position)
    return packed_layout(TokenIndex(zero, position, zero, position), packing)


def images_layout(tokens: Sequence[int], device: torch.device) -> AttentionPlan:
    """Of one row of images with so many tokens each, which see their own image."""
    packing = Packing.bidirectional_row(tokens)
    segment = on_device(np.repeat(np.arange(len(tokens)), packing.lengths)[None], device)
    zero = torch.zeros_like(segment)
    return packed_layout(TokenIndex(segment, zero, zero), packing)


def _packing_of(index: TokenIndex) -> Packing:
    columns = (index.segment, index.block, index.branch, index.position)
    return Packing.of(*(c if c is None else c.cpu().numpy() for c in columns))  # type: ignore


def _similar(lengths: list[int]) -> list[list[int]]:
    """Numbers of segments grouped so that none is filled up to more than 1.3 times its length."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    groups: list[list[int]] = []
    for i in order:
        if groups and lengths[groups[-1][0]] <= 1.3 * lengths[i] + 8:
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


def _group(index: TokenIndex, packing: Packing, chosen: Sequence[int]) -> Group:
    """Of the segments with these numbers."""
    first, length = packing.first[chosen], packing.lengths[chosen]
    longest = int(length.max())
    if longest > 4 * EVEN and (len(length) == 1 or int(length.min()) < longest):
        longest = round_up(longest, EVEN)
    offset = np.arange(longest)
    valid = offset < length[:, None]
    place = np.where(valid, first[:, None] + offset, first[:, None])
    device = index.segment.device
    at, segment = (on_device(x, device) for x in (place, np.where(valid, 0, -1)))
    inner = replace(index.map(lambda column: column.reshape(-1)[at]), segment=segment)
    reach = None if packing.reach is None else int(packing.reach[chosen].max())
    # Filling stands right of every segment, so causal order alone hides it.
    causal = bool(packing.causal[chosen].all())
    mask = None if causal else _mask(inner, inner)
    return Group(at, inner, mask, causal, (place, valid), reach)


def _mask(query: TokenIndex, key: TokenIndex, window: int | None = None) -> Tensor:
    """[B 1 Tq Tk]. Padding sees everything: its rows are nobody's, but a row of the softmax without
    any key would be NaN."""
    return (visible(query, key, window) | (query.segment < 0)[:, :, None])[:, None]


def cached_layout(query: TokenIndex, key: TokenIndex) -> AttentionPlan:
    """The layout of new tokens [B Tq] over a cache's [B Tk], the new ones included."""
    return AttentionPlan(_mask(query, key), query=query, key=key)


def prefill_layout(
    query: TokenIndex, key: TokenIndex, packing: Packing | None = None
) -> AttentionPlan:
    """cached_layout, of which an accelerator makes no mask for a whole prompt. packing: of the
    queries, where the cache holds nothing else."""
    if kernels_of(query.segment.device).flex is None or query.segment.shape[1] < BLOCK:
        return cached_layout(query, key)
    return AttentionPlan(query=query, key=key, rows=Rows(query, key, packing))


def within(layout: AttentionPlan, window: int) -> AttentionPlan:
    """The layout in which a token sees what stands less than `window` positions back, and its own
    block. Cut on first use, then kept. Raises ValueError without positions."""
    if window not in layout.narrower:
        layout.narrower[window] = _narrow(layout, window)
    return layout.narrower[window]


def _narrow(layout: AttentionPlan, window: int) -> AttentionPlan:
    if layout.groups:
        groups = (
            replace(g, mask=_mask(g.index, g.index, window), causal=False)
            if _reaches(g.index, g.index, window, g.reach)
            else g
            for g in layout.groups
        )
        return AttentionPlan(groups=tuple(groups))
    if layout.query is None or layout.key is None:
        raise ValueError("this layout does not say who attends, so no window can be cut from it")
    if layout.rows is not None:
        packing = layout.rows.packing
        reach = None if packing is None or packing.reach is None else int(packing.reach.max())
        if not _reaches(layout.query, layout.key, window, reach) or layout.rows.bidirectional:
            return layout
        return replace(layout, rows=replace(layout.rows, window=window), narrower={})
    if not _reaches(layout.query, layout.key, window):
        return layout
    return AttentionPlan(_mask(layout.query, layout.key, window))


def _reaches(query: TokenIndex, key: TokenIndex, window: int, reach: int | None = None) -> bool:
    """Whether anybody could look back `window` positions or more; where only a device knows, yes.
    reach: how far anybody looks back, if the host knows."""
    start, stop = _positions(query, key)
    if reach is not None:
        return reach >= window
    if start.device.type != "cpu":
        return True
    return int((stop.amax(1) - start.amin(1)).max()) >= window


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: AttentionPlan,
    scale: float | None = None,
    softcap: float | None = None,
    window: int | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Softmax attention under a layout.

    q [B H Tq D], k and v [B Hkv Tk D] with Hkv a divisor of H -> [B H Tq D]. scale defaults to
    D^-1/2. softcap c replaces a logit x by c·tanh(x/c) (Gemma 2, section 2). window: see visible.
    sinks [H]: a logit a head that takes its share of the softmax and gives nothing (gpt-oss). Rows
    that are padding come back as zeros when the layout has groups, unspecified but finite
    otherwise.
    """
    layout = layout if window is None else within(layout, window)
    if layout.rows is not None:
        return _attend_by_kernel(q, k, v, layout.rows, scale, softcap, sinks)
    if not layout.groups:
        return _softmax_attention(q, k, v, layout, scale, softcap, sinks)
    B, H, T, D = q.shape
    taken = (_by_group(x, layout) for x in (q, k, v))
    mixed = [
        _softmax_attention(q, k, v, AttentionPlan(group.mask, group.causal), scale, softcap, sinks)
        for q, k, v, group in zip(*taken, layout.groups, strict=True)
    ]
    rows = torch.cat([x.reshape(-1, D) for x in mixed])
    return layout.order(B * T, H).unsort(rows).view(B, T, H, D).transpose(1, 2)


def _attend_by_kernel(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rows: Rows,
    scale: float | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """Variable-length attention where its kernels do what the rows need, else flex attention."""
    kernels, plain = kernels_of(q.device), softcap is None and sinks is None
    if plain and (rows.causal or rows.bidirectional):
        function = kernels.varlen(q)
        if function is not None:
            causal = not rows.bidirectional
            mixed = varlen(function, q, k, v, *rows.cu_seqlens, causal, scale, rows.window)
            if mixed is not None:
                return mixed
        if rows.alone and rows.window is None:
            layout = AttentionPlan(causal=not rows.bidirectional)
            return _softmax_attention(q, k, v, layout, scale, None, None)
    if kernels.flex is None or max(q.shape[2], k.shape[2]) < BLOCK:
        return _softmax_attention(q, k, v, rows.dense, scale, softcap, sinks)
    return flex(kernels.flex, q, k, v, rows.block_mask, scale, softcap, sinks)


def _by_group(x: Tensor, layout: AttentionPlan) -> list[Tensor]:
    """x [B H T D] -> [S H L D] of every group."""
    B, H, T, D = x.shape
    sizes = [group.place.numel() * H for group in layout.groups]
    rows = layout.order(B * T, H).sort(x).split(sizes)
    shapes = [group.place.shape for group in layout.groups]
    return [own.view(S, H, L, D) for own, (S, L) in zip(rows, shapes, strict=True)]


@torch.no_grad()
def largest_logit(
    q: Tensor, k: Tensor, layout: AttentionPlan, scale: float | None = None
) -> Tensor:
    """The largest logit [] of attention's softmax under a layout, before any softcap; shapes as its
    own. It takes the memory and about the time of attention itself."""
    if layout.rows is not None:
        return _largest_of_rows(q, k, layout.rows, scale)
    if not layout.groups:
        return _largest(q, k, layout.mask, layout.causal, scale)
    flat_q, flat_k = (x.transpose(1, 2).flatten(0, 1) for x in (q, k))
    found = []
    for group in layout.groups:
        own_q, own_k = (x[group.place].transpose(1, 2) for x in (flat_q, flat_k))
        keep = (group.index.segment == 0)[:, None, None, :] & (group.index.segment == 0)[
            :, None, :, None
        ]
        mask = keep if group.mask is None else keep & group.mask
        found.append(_largest(own_q, own_k, mask, group.causal, scale))
    return torch.stack(found).max()


def _largest_of_rows(q: Tensor, k: Tensor, rows: Rows, scale: float | None) -> Tensor:
    """A block of queries at a time, so that no mask of all pairs is made."""
    found = []
    for start in range(0, q.shape[2], BLOCK):
        part = slice(start, start + BLOCK)
        query = rows.query.map(lambda column, part=part: column[:, part])
        mask = visible(query, rows.key, rows.window) & (query.segment >= 0)[:, :, None]
        found.append(_largest(q[:, :, part], k, mask[:, None], False, scale))
    return torch.stack(found).max()


def _largest(
    q: Tensor, k: Tensor, mask: Tensor | None, causal: bool, scale: float | None
) -> Tensor:
    k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    logits = (q * (q.shape[-1] ** -0.5 if scale is None else scale)) @ k.transpose(-1, -2)
    if causal:
        later = torch.ones(logits.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        logits = logits.masked_fill(later, float("-inf"))
    if mask is not None:
        logits = logits.masked_fill(~mask, float("-inf"))
    return logits.max()


# Up to so many keys plain products beat torch's fused kernel on a CPU, whose backward takes six
# times as long in bfloat16 (LOG.md). Beyond it the matrix of logits no longer fits a cache.
SHORT, SHORT_FP32 = 512, 256


def _softmax_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: AttentionPlan,
    scale: float | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    plain = softcap is not None or sinks is not None
    short = SHORT_FP32 if q.dtype == torch.float32 else SHORT
    if not plain and not (kernels_of(q.device).products and k.shape[2] <= short):
        if q.device.type != "cpu" and layout.mask is not None and k.shape[1] != q.shape[1]:
            return _folded(q, k, v, layout.bias(q.dtype), scale)
        k, v = repeat_heads(k, q.shape[1]), repeat_heads(v, q.shape[1])
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=layout.mask, is_causal=layout.causal, scale=scale
        )
    logits = _shared(q * (q.shape[-1] ** -0.5 if scale is None else scale), k.transpose(-1, -2))
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    if layout.causal:
        mask = torch.ones(logits.shape[-2:], dtype=torch.bool, device=q.device).tril()
        logits = logits + additive(mask, q.dtype)
    elif layout.mask is not None:
        logits = logits + layout.bias(q.dtype)
    if sinks is not None:
        drain = sinks.to(logits.dtype)[:, None, None].expand(*logits.shape[:-1], 1)
        return _shared(_softmax(torch.cat([logits, drain], -1))[..., :-1].to(v.dtype), v)
    return _shared(_softmax(logits).to(v.dtype), v)


def _folded(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float | None) -> Tensor:
    """Heads that share keys as tokens of one head: fused kernels take a mask or grouped heads, not
    both (torch 2.13), and repeated keys of a long cache would be read several times."""
    B, H, T, D = q.shape
    shared = H // k.shape[1]
    mask = bias if T == 1 else bias.repeat(1, 1, shared, 1)
    q = q.reshape(B, k.shape[1], shared * T, D)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale).view(B, H, T, -1)


def _softmax(logits: Tensor) -> Tensor:
    """Over the last dimension, in the logits' precision. Inside it is fp32 always; autocast would
    make a copy of the logits for that, and another of what it gives."""
    with torch.autocast(logits.device.type, enabled=False):
        return logits.softmax(dim=-1)


def _shared(x: Tensor, y: Tensor) -> Tensor:
    """x [B H T E] @ y [B Hkv E F] -> [B H T F]: the heads that share one of y multiply as one."""
    B, H, T, E = x.shape
    kept = y.shape[1]
    return (x.reshape(B, kept, H // kept * T, E) @ y).view(B, H, T, y.shape[-1])


if not TYPE_CHECKING:  # names of earlier versions
    __getattr__ = moved.names(__name__)
