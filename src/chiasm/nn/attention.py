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

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Index:
    """segment, block and branch of a row of tokens, each [B T] int64."""

    segment: Tensor
    block: Tensor
    branch: Tensor


def visible(query: Index, key: Index) -> Tensor:
    """[B Tq Tk] bool: the rule of core/batch.py. Padding (segment -1) is seen by padding only."""
    same = query.segment[:, :, None] == key.segment[:, None, :]
    earlier = key.block[:, None, :] <= query.block[:, :, None]
    kin = (key.branch[:, None, :] == 0) | (key.branch[:, None, :] == query.branch[:, :, None])
    return same & earlier & kin


@dataclass(frozen=True)
class Group:
    """Segments of similar length that attend together: index [S L] into the flattened [B T]
    tokens, valid [S L] where that is a token and not filling, and how they attend."""

    index: Tensor
    valid: Tensor
    mask: Tensor | None
    causal: bool


@dataclass(frozen=True)
class Layout:
    """How one forward pass attends; made once, used by every layer.

    mask: [B 1 Tq Tk] bool or None, causal: plain causal attention without a mask. With groups the
    packed rows are taken apart instead: each segment attends by itself.
    """

    mask: Tensor | None = None
    causal: bool = False
    groups: tuple[Group, ...] = ()


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
    if len(groups) == 1 and only.index.shape == (B, T) and bool(only.valid.all()):
        return Layout(only.mask, only.causal)  # rows are segments already: nothing to take apart
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
    offset = torch.arange(int(length.max()), device=first.device)
    valid = offset < length[:, None]
    place = torch.where(valid, first[:, None] + offset, first[:, None])
    block = index.block.reshape(-1)[place]
    branch = index.branch.reshape(-1)[place]
    rising = bool((block.diff(dim=1) > 0)[valid[:, 1:]].all())
    if rising and not bool(branch[valid].any()):
        # Filling stands right of every segment, so causal order alone hides it.
        return Group(place, valid, None, True)
    inner = Index(torch.where(valid, 0, -1), block, branch)
    # Filling sees filling: a row of the softmax without any key would be NaN.
    mask = visible(inner, inner) | (~valid[:, :, None] & ~valid[:, None, :])
    return Group(place, valid, mask[:, None], False)


def cached_layout(query: Index, key: Index) -> Layout:
    """The layout of new tokens [B Tq] over a cache's [B Tk], the new ones included."""
    mask = visible(query, key)
    mask = mask | (query.segment < 0)[:, :, None]  # padded queries: any finite row will do
    return Layout(mask[:, None])


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: Layout,
    scale: float | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Softmax attention under a layout.

    q [B H Tq D], k and v [B Hkv Tk D] with Hkv a divisor of H -> [B H Tq D]. scale defaults to
    D^-1/2. softcap c replaces a logit x by c·tanh(x/c) (Gemma 2, section 2). Rows that are padding
    come back as zeros when the layout has groups, unspecified but finite otherwise.
    """
    if not layout.groups:
        return _softmax_attention(q, k, v, layout.mask, layout.causal, scale, softcap)
    B, H, T, D = q.shape
    rows = torch.cat([x.transpose(1, 2).reshape(B * T, -1, D) for x in (q, k, v)], 1)
    sizes = [H, k.shape[1], v.shape[1]]
    out = q.new_zeros(B * T, H, D)
    for group in layout.groups:
        S, L = group.index.shape
        own = rows.index_select(0, group.index.reshape(-1)).view(S, L, -1, D).transpose(1, 2)
        q, k, v = own.split(sizes, dim=1)
        mixed = _softmax_attention(q, k, v, group.mask, group.causal, scale, softcap)
        keep = group.valid.reshape(-1)
        out = out.index_copy(
            0, group.index.reshape(-1)[keep], mixed.transpose(1, 2).reshape(S * L, H, D)[keep]
        )
    return out.view(B, T, H, D).transpose(1, 2)


# Up to this many keys plain products beat torch's fused kernel on a CPU, whose backward takes six
# times as long in bfloat16 (LOG.md). Beyond it the matrix of logits no longer fits a cache.
SHORT = 512


def _softmax_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    causal: bool,
    scale: float | None,
    softcap: float | None,
) -> Tensor:
    if k.shape[1] != q.shape[1]:
        k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
        v = v.repeat_interleave(q.shape[1] // v.shape[1], dim=1)
    if softcap is None and not (q.device.type == "cpu" and k.shape[2] <= SHORT):
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=causal, scale=scale
        )
    logits = (q * (q.shape[-1] ** -0.5 if scale is None else scale)) @ k.transpose(-1, -2)
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    if causal:
        mask = torch.ones(logits.shape[-2:], dtype=torch.bool, device=q.device).tril()
    if mask is not None:
        logits = logits + torch.zeros_like(mask, dtype=q.dtype).masked_fill(~mask, float("-inf"))
    return logits.softmax(dim=-1).to(v.dtype) @ v
