"""Functions with the interfaces of accelerators' attention kernels, for tests on a CPU."""

from __future__ import annotations

from contextlib import contextmanager
from unittest import mock

import torch
from torch.nn import functional as F

from chiasm.nn import attention, kernels
from chiasm.nn.kernels import KERNELS, Kernels

SIZE = 4
"""Tokens of a block of the block masks here, so that short rows have several."""


def varlen(
    query,
    key,
    value,
    cu_seq_q,
    cu_seq_k,
    max_q,
    max_k,
    *,
    return_aux=None,
    scale=None,
    window_size=(-1, -1),
    enable_gqa=False,
):
    """torch 2.13's varlen_attn, a segment at a time."""
    assert cu_seq_q.dtype == torch.int32
    assert return_aux is None
    assert enable_gqa or query.shape[1] == key.shape[1], "heads that share keys need enable_gqa"
    ends, lengths = cu_seq_q.tolist(), cu_seq_q.diff().tolist()
    assert (ends[0], ends[-1]) == (0, len(query))
    assert torch.equal(cu_seq_q, cu_seq_k)
    assert min(lengths) > 0
    assert max(lengths) <= min(max_q, max_k)
    parts = []
    for q, k, v in zip(*(x.split(lengths) for x in (query, key, value)), strict=True):
        back = torch.arange(len(q))[:, None] - torch.arange(len(q))
        left, right = window_size
        mask = (back <= left if left >= 0 else back == back) & (
            -back <= right if right >= 0 else back == back
        )
        q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
        mixed = F.scaled_dot_product_attention(q, k, v, mask, scale=scale, enable_gqa=enable_gqa)
        parts.append(mixed[0].transpose(0, 1))
    return torch.cat(parts)


def varlen_of_2_11(
    query,
    key,
    value,
    cu_seq_q,
    cu_seq_k,
    max_q,
    max_k,
    *,
    return_aux=None,
    scale=None,
    window_size=(-1, -1),
):
    columns = (query, key, value, cu_seq_q, cu_seq_k, max_q, max_k)
    return varlen(*columns, scale=scale, window_size=window_size)


def varlen_of_2_10(
    query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False, return_aux=None
):
    columns = (query, key, value, cu_seq_q, cu_seq_k, max_q, max_k)
    return varlen(*columns, window_size=(-1, 0) if is_causal else (-1, -1))


def flex(query, key, value, score_mod=None, block_mask=None, enable_gqa=False, return_aux=None):
    """torch's flex_attention by matrices: what a block mask leaves out is never seen."""
    assert enable_gqa or query.shape[1] == key.shape[1], "heads that share keys need enable_gqa"
    assert query.shape[-1] >= 16, "Triton multiplies nothing narrower"
    B, H, Tq, _ = query.shape
    Tk = key.shape[2]
    assert block_mask.seq_lengths == (Tq, Tk)
    key, value = (kernels.repeat_heads(x, H) for x in (key, value))
    logits = query @ key.mT * query.shape[-1] ** -0.5
    at = [torch.arange(n).view(shape) for n, shape in ((B, (-1, 1, 1)), (Tq, (-1, 1)), (Tk, (-1,)))]
    if score_mod is not None:
        logits = score_mod(logits, *at[:1], None, *at[1:])
    inside = block_mask.mask_mod(at[0], None, *at[1:])
    pairs = listed(block_mask.kv_num_blocks, block_mask.kv_indices)
    full = listed(block_mask.full_kv_num_blocks, block_mask.full_kv_indices)
    assert not (pairs & full).any()

    def tokens(blocks):
        wide = blocks.repeat_interleave(kernels.BLOCK, 1).repeat_interleave(kernels.BLOCK, 2)
        return wide[:, :Tq, :Tk]

    seen = (inside & tokens(pairs) | tokens(full))[:, None]
    logits = logits.masked_fill(~seen, -torch.inf)
    any_seen = seen.any(-1, keepdim=True)
    weights = logits.masked_fill(~any_seen, 0.0).softmax(-1) * any_seen
    lse = logits.masked_fill(~any_seen, 0.0).logsumexp(-1)
    return weights @ value if return_aux is None else (weights @ value, mock.Mock(lse=lse))


def listed(count, order):
    """[B n m] bool: which blocks a block mask lists."""
    listed = torch.arange(order.shape[-1]) < count[..., None]
    return torch.zeros(order.shape, dtype=torch.bool).scatter(-1, order.long(), listed)[:, 0]


@contextmanager
def blocks_of(size):
    """Block masks with blocks of so many tokens."""
    with mock.patch.object(attention, "BLOCK", size), mock.patch.object(kernels, "BLOCK", size):
        yield


def using(function=None, flexible=flex):
    """With a CPU taken for a device that has these."""
    return mock.patch.dict(KERNELS, cpu=Kernels(lambda _: function, flexible))
