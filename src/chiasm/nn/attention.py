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
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from chiasm.core.batch import round_up

EVEN = 16
"""Long segments of several lengths are filled up to a multiple of this many tokens, so that few
shapes occur: kernels for bfloat16 on a CPU are made anew for every shape (LOG.md)."""


@dataclass(frozen=True)
class Index:
    """segment, block and branch of a row of tokens, each [B T] int64; position [B T] within the
    segment is needed only where layers look back through a window."""

    segment: Tensor
    block: Tensor
    branch: Tensor
    position: Tensor | None = None

    def map(self, act: Callable[[Tensor], Tensor]) -> Index:
        """The same act on every column."""
        position = None if self.position is None else act(self.position)
        return Index(act(self.segment), act(self.block), act(self.branch), position)


def visible(query: Index, key: Index, window: int | None = None) -> Tensor:
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


def _positions(query: Index, key: Index) -> tuple[Tensor, Tensor]:
    if key.position is None or query.position is None:
        raise ValueError("a window is measured in positions; make the Index with them")
    return key.position, query.position


@dataclass(frozen=True)
class Group:
    """Segments of similar length that attend together: place [S L] in the flattened [B T] tokens,
    their index (segment 0, -1 where there is filling and no token), and how they attend."""

    place: Tensor
    index: Index
    mask: Tensor | None
    causal: bool


@dataclass(frozen=True)
class Order:
    """From rows [B T H] of tokens' heads to groups one after another, [S H L] each, and back.
    place: the row of every one there, back: of every one here; filled, padding: numbers of those
    that have none and are zeros."""

    place: Tensor
    filled: Tensor
    back: Tensor
    padding: Tensor

    @staticmethod
    def of(groups: tuple[Group, ...], tokens: int, heads: int) -> Order:
        """Of tokens in groups with so many heads each."""
        head = torch.arange(heads, device=groups[0].place.device)[:, None]
        place = torch.cat([(g.place[:, None] * heads + head).reshape(-1) for g in groups])
        real = torch.cat(
            [(g.index.segment == 0)[:, None].expand(-1, heads, -1).reshape(-1) for g in groups]
        )
        back = torch.full((tokens * heads,), -1, device=place.device)
        back[place[real]] = torch.nonzero(real)[:, 0]
        return Order(
            place, torch.nonzero(~real)[:, 0], back.clamp(min=0), torch.nonzero(back < 0)[:, 0]
        )

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
class Layout:
    """How one forward pass attends; made once, used by every layer.

    mask: [B 1 Tq Tk] bool or None, causal: plain causal attention without a mask. With groups the
    packed rows are taken apart instead: each segment attends by itself. query and key: who attends,
    to cut windows from; narrower: the layouts of windows already cut. whole: the layout of more
    keys, of which the mask is the beginning. orders: of tokens with so many heads.
    """

    mask: Tensor | None = None
    causal: bool = False
    groups: tuple[Group, ...] = ()
    query: Index | None = None
    key: Index | None = None
    narrower: dict[int, Layout] = field(default_factory=dict, compare=False, repr=False)
    biases: dict[torch.dtype, Tensor] = field(default_factory=dict, compare=False, repr=False)
    whole: Layout | None = None
    orders: dict[int, Order] = field(default_factory=dict, compare=False, repr=False)

    def order(self, tokens: int, heads: int) -> Order:
        """How so many tokens with so many heads are sorted into groups. Made on first use, then
        kept for the other layers."""
        if heads not in self.orders:
            self.orders[heads] = Order.of(self.groups, tokens, heads)
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


def full_layout() -> Layout:
    """Every token of a row sees every other."""
    return Layout()


def packed_layout(index: Index) -> Layout:
    """The layout of packed rows: each segment attends by itself, so that isolation is exact and
    the cost is the sum of the segments' squares, not the square of the sum."""
    B, T = index.segment.shape
    flat = index.segment.reshape(-1)
    edge = torch.ones(B * T + 1, dtype=torch.bool, device=flat.device)
    edge[1:-1] = flat[1:] != flat[:-1]
    edge[:-1:T] = True
    first = torch.nonzero(edge[:-1] & (flat >= 0))[:, 0]
    length = torch.nonzero(edge[1:] & (flat >= 0))[:, 0] + 1 - first
    groups = tuple(
        _group(index, first[chosen], length[chosen]) for chosen in _similar(length.tolist())
    )
    only = groups[0]
    if len(groups) == 1 and only.place.shape == (B, T) and bool((only.index.segment == 0).all()):
        # Rows are segments already: nothing to take apart.
        return Layout(only.mask, only.causal, query=only.index, key=only.index)
    return Layout(groups=groups)


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


def _group(index: Index, first: Tensor, length: Tensor) -> Group:
    longest = int(length.max())
    if longest > 4 * EVEN and (len(length) == 1 or int(length.min()) < longest):
        longest = round_up(longest, EVEN)
    offset = torch.arange(longest, device=first.device)
    valid = offset < length[:, None]
    place = torch.where(valid, first[:, None] + offset, first[:, None])
    own = index.map(lambda column: column.reshape(-1)[place])
    inner = replace(own, segment=torch.where(valid, 0, -1))
    rising = bool((inner.block.diff(dim=1) > 0)[valid[:, 1:]].all())
    if rising and not bool(inner.branch[valid].any()):
        # Filling stands right of every segment, so causal order alone hides it.
        return Group(place, inner, None, True)
    return Group(place, inner, _mask(inner, inner), False)


def _mask(query: Index, key: Index, window: int | None = None) -> Tensor:
    """[B 1 Tq Tk]. Padding sees everything: its rows are nobody's, but a row of the softmax without
    any key would be NaN."""
    return (visible(query, key, window) | (query.segment < 0)[:, :, None])[:, None]


def cached_layout(query: Index, key: Index) -> Layout:
    """The layout of new tokens [B Tq] over a cache's [B Tk], the new ones included."""
    return Layout(_mask(query, key), query=query, key=key)


def within(layout: Layout, window: int) -> Layout:
    """The layout in which a token sees what stands less than `window` positions back, and its own
    block. Cut on first use, then kept. Raises ValueError without positions."""
    if window not in layout.narrower:
        layout.narrower[window] = _narrow(layout, window)
    return layout.narrower[window]


def _narrow(layout: Layout, window: int) -> Layout:
    if layout.groups:
        groups = (
            replace(g, mask=_mask(g.index, g.index, window), causal=False)
            if _reaches(g.index, g.index, window)
            else g
            for g in layout.groups
        )
        return Layout(groups=tuple(groups))
    if layout.query is None or layout.key is None:
        raise ValueError("this layout does not say who attends, so no window can be cut from it")
    if not _reaches(layout.query, layout.key, window):
        return layout
    return Layout(_mask(layout.query, layout.key, window))


def _reaches(query: Index, key: Index, window: int) -> bool:
    """Whether anybody could look back `window` positions or more."""
    start, stop = _positions(query, key)
    return int((stop.amax(1) - start.amin(1)).max()) >= window


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: Layout,
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
    if not layout.groups:
        return _softmax_attention(q, k, v, layout, scale, softcap, sinks)
    B, H, T, D = q.shape
    taken = (_by_group(x, layout) for x in (q, k, v))
    mixed = [
        _softmax_attention(q, k, v, Layout(group.mask, group.causal), scale, softcap, sinks)
        for q, k, v, group in zip(*taken, layout.groups, strict=True)
    ]
    rows = torch.cat([x.reshape(-1, D) for x in mixed])
    return layout.order(B * T, H).unsort(rows).view(B, T, H, D).transpose(1, 2)


def _by_group(x: Tensor, layout: Layout) -> list[Tensor]:
    """x [B H T D] -> [S H L D] of every group."""
    B, H, T, D = x.shape
    sizes = [group.place.numel() * H for group in layout.groups]
    rows = layout.order(B * T, H).sort(x).split(sizes)
    shapes = [group.place.shape for group in layout.groups]
    return [own.view(S, H, L, D) for own, (S, L) in zip(rows, shapes, strict=True)]


@torch.no_grad()
def largest_logit(q: Tensor, k: Tensor, layout: Layout, scale: float | None = None) -> Tensor:
    """The largest logit [] that attend's softmax sees under a layout, before any softcap; shapes as
    attend's. It takes the memory and about the time of attention itself."""
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
    layout: Layout,
    scale: float | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    plain = softcap is not None or sinks is not None
    short = SHORT_FP32 if q.dtype == torch.float32 else SHORT
    if not plain and not (q.device.type == "cpu" and k.shape[2] <= short):
        if k.shape[1] != q.shape[1]:
            k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
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
