"""Attention kernels of accelerators, and which type of device uses which (KERNELS).

Packed rows are never masked by a [B 1 T T] tensor there:

layout of the rows                                          kernel
every segment causal, or every segment bidirectional        variable-length (flash) attention
branches, prefixes, bidirectional images, softcaps, sinks   flex attention with a block mask

A block mask says of every pair of BLOCK queries and BLOCK keys whether all, some or none of them
attend; mask_mod decides inside those of which some do. It is made of the segments' and blocks'
extremes, so it takes (T / BLOCK)^2 numbers and nothing is read back from the device.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

    from chiasm.nn.attention import TokenIndex

BLOCK = 128
"""Queries, and keys, of a block of a block mask: the size that flex attention's kernels expect."""

SMALLEST_HEAD = 16
"""Smaller heads are padded with zeros for flex attention: Triton multiplies nothing narrower."""

COMPILATIONS = 256
"""Variants of flex attention (dtype, head size, softcap, gradients, one row or several, ...) that
may be compiled in a process. Beyond it torch raises an error, as flex attention is compiled whole:
run eagerly it would hold all logits."""


@dataclass(frozen=True)
class Kernels:
    """How a type of device attends.

    varlen: given queries [... D], a function with torch's varlen_attn's interface that serves their
    dtype and head size, or None. flex: flex attention (torch's interface), or None; without it each
    segment attends by itself, grouped with those of like length. products: short rows are
    multiplied out instead of calling scaled_dot_product_attention.
    """

    varlen: Callable[[Tensor], Callable[..., Any] | None] = lambda _: None
    flex: Callable[..., Any] | None = None
    products: bool = False


def kernels_of(device: torch.device) -> Kernels:
    """Of a device; those of types that KERNELS does not name use scaled_dot_product_attention for
    groups of segments."""
    return KERNELS.get(device.type, Kernels())


def flash_varlen(query: Tensor) -> Callable[..., Any] | None:
    """torch's varlen_attn where its flash kernels run: fp16 and bf16 heads of a multiple of 8 up to
    256 on NVIDIA GPUs from Ampere on, in torch >= 2.10."""
    size = query.shape[-1]
    if query.dtype not in (torch.float16, torch.bfloat16) or size % 8 or size > 256:
        return None
    return _varlen_attn() if _has_flash(query.device) else None


@lru_cache(maxsize=1)
def _varlen_attn() -> Callable[..., Any] | None:
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:  # torch 2.9
        return None
    return varlen_attn


@lru_cache(maxsize=64)
def _has_flash(device: torch.device) -> bool:
    if device.type != "cuda" or torch.version.cuda is None:
        return False
    return torch.cuda.get_device_capability(device) >= (8, 0)


def compiled_flex(*args: Any, **kwargs: Any) -> Any:
    """torch's flex_attention, compiled once a process: the second shape makes lengths symbolic."""
    with torch._dynamo.config.patch(recompile_limit=COMPILATIONS):  # type: ignore[attr-defined]
        return _compiled_flex()(*args, **kwargs)


@lru_cache(maxsize=1)
def _compiled_flex() -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, fullgraph=True)


KERNELS: dict[str, Kernels] = {
    "cpu": Kernels(products=True),
    "cuda": Kernels(flash_varlen, compiled_flex),
    # flex attention has no backward pass there (torch 2.13), varlen_attn no kernel.
    "mps": Kernels(),
}


@contextmanager
def planned_kernels() -> Iterator[None]:
    """While inside, tensors of a CPU attend as a GPU's do, so that a plan counts what its kernels
    keep for the backward pass: queries, keys, values, outputs and a number a row of the softmax.
    Only shapes are right: it is for tensors without storage."""
    own, KERNELS["cpu"] = KERNELS["cpu"], Kernels(_planned_varlen, _planned_flex)
    try:
        yield
    finally:
        KERNELS["cpu"] = own


def _planned_varlen(query: Tensor) -> Callable[..., Any] | None:
    suits = query.dtype in (torch.float16, torch.bfloat16) and query.shape[-1] % 8 == 0
    return _varlen_attn() if suits else None


def _planned_flex(q: Tensor, k: Tensor, v: Tensor, return_aux: Any = None, **_unused: Any) -> Any:
    """It keeps what variable-length attention keeps."""
    B, H, T, _ = q.shape
    function = _varlen_attn()
    if function is None or q.shape[2] != k.shape[2]:
        mixed = F.scaled_dot_product_attention(q, repeat_heads(k, H), repeat_heads(v, H))
    else:
        ends = torch.arange(B + 1, dtype=torch.int32, device=q.device) * T
        mixed = varlen(function, q, k, v, ends, T, False)
    sums = Sums(q.new_zeros(B, H, T, dtype=torch.float32))
    return mixed if return_aux is None else (mixed, sums)


class Sums(NamedTuple):
    """The logarithm of the softmax's sum [B H T]."""

    lse: Tensor


def varlen(
    function: Callable[..., Any],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    causal: bool,
    scale: float | None = None,
    window: int | None = None,
) -> Tensor | None:
    """Segments of rows laid flat by a function like torch's varlen_attn: q [B H T D], k and v
    [B Hkv T D], cu_seqlens [N + 1] int32 -> [B H T D].

    causal with a window w: a token attends to itself and the w - 1 before it. torch 2.10 has no
    scale, windows or grouped heads, 2.11 no grouped heads by its signature: what is missing is done
    here. None where a window cannot be.
    """
    B, H, T, D = q.shape
    parameters = _parameters(function)
    options: dict[str, Any] = {}
    if "window_size" in parameters:
        left = -1 if window is None else window - 1
        options["window_size"] = (left, 0) if causal else (-1, -1)
    elif causal and window is not None:
        return None
    else:
        options["is_causal"] = causal
    if "scale" in parameters:
        options["scale"] = scale
    elif scale is not None:
        q = q * (scale * D**0.5)
    if "enable_gqa" in parameters:
        options["enable_gqa"] = k.shape[1] != H
    else:
        k, v = repeat_heads(k, H), repeat_heads(v, H)
    rows = (x.transpose(1, 2).flatten(0, 1) for x in (q, k, v))
    mixed = function(*rows, cu_seqlens, cu_seqlens, max_seqlen, max_seqlen, **options)
    return mixed.view(B, T, H, D).transpose(1, 2)


@lru_cache(maxsize=8)
def _parameters(function: Callable[..., Any]) -> frozenset[str]:
    return frozenset(inspect.signature(function).parameters)


def repeat_heads(x: Tensor, heads: int) -> Tensor:
    """[B Hkv T D] -> [B heads T D], each of the Hkv for the query heads that share it."""
    return x if x.shape[1] == heads else x.repeat_interleave(heads // x.shape[1], dim=1)


def flex(
    function: Callable[..., Any],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: BlockMask,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Attention under a block mask by a function like torch's flex_attention; shapes, softcap and
    sinks as nn.attention.attention. Rows that see nothing come back as zeros."""
    D = q.shape[-1]
    size = max(D, SMALLEST_HEAD)
    # Given as a number it would be one more input to compile for; it is D^-1/2 nearly always.
    factor = 1.0 if scale is None else scale * D**0.5
    factor *= (size / D) ** 0.5
    if abs(factor - 1.0) > 1e-9:
        q = q * factor
    if size > D:
        q, k, v = (F.pad(x, (0, size - D)) for x in (q, k, v))
    options: dict[str, Any] = {"block_mask": mask, "enable_gqa": k.shape[1] != q.shape[1]}
    if softcap is not None:
        options["score_mod"] = _softcap(softcap, q.device)
    if sinks is None:
        return function(q, k, v, **options)[..., :D]
    from torch.nn.attention.flex_attention import AuxRequest

    mixed, aux = function(q, k, v, return_aux=AuxRequest(lse=True), **options)
    # Z / (Z + exp(sink)) of the softmax's sum Z remains beside a sink.
    rest = torch.sigmoid(aux.lse - sinks.to(aux.lse.dtype)[:, None])
    return (mixed * rest[..., None].to(mixed.dtype))[..., :D]


def _softcap(cap: float, device: torch.device) -> Callable[..., Tensor]:
    held = torch.full((), cap, device=device)  # a tensor, so that other caps compile nothing anew

    def score_mod(score: Tensor, _b: Tensor, _h: Tensor, _q: Tensor, _k: Tensor) -> Tensor:
        return held * torch.tanh(score / held)

    return score_mod


def mask_mod(
    query: TokenIndex, key: TokenIndex, window: int | None = None
) -> Callable[..., Tensor]:
    """The rule of nn.attention.visible for one query and one key: (row, head, query, key) -> bool
    []. Raises ValueError for a window without positions."""
    q_segment, q_block, q_branch = _columns(query)
    k_segment, k_block, k_branch = _columns(key)

    def rule(b: Tensor, _h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        same = q_segment[b, q] == k_segment[b, k]
        earlier = k_block[b, k] <= q_block[b, q]
        branch = k_branch[b, k]
        return same & earlier & ((branch == 0) | (branch == q_branch[b, q]))

    if window is None:
        return rule
    if query.position is None or key.position is None:
        raise ValueError("a window is measured in positions; make the TokenIndex with them")
    # As a number the window would be one more input to compile for.
    oldest, position = (query.position - window + 1).int(), key.position.int()

    def windowed(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        near = (k_block[b, k] == q_block[b, q]) | (position[b, k] >= oldest[b, q])
        return rule(b, h, q, k) & near

    return windowed


def _columns(index: TokenIndex) -> tuple[Tensor, Tensor, Tensor]:
    return index.segment.int(), index.block.int(), index.branch.int()


def block_mask(query: TokenIndex, key: TokenIndex, window: int | None = None) -> BlockMask:
    """The block mask of queries [B Tq] and keys [B Tk] under the rule of nn.attention.visible, made
    on their device. Blocks of padding alone attend to nothing."""
    from torch.nn.attention.flex_attention import BlockMask

    some, every = block_pairs(query, key, window)
    partial = _ordered(some & ~every)
    full = _ordered(every)
    lengths = (query.segment.shape[1], key.segment.shape[1])
    rule = mask_mod(query, key, window)
    return BlockMask.from_kv_blocks(
        *partial, *full, BLOCK_SIZE=BLOCK, mask_mod=rule, seq_lengths=lengths
    )


def _ordered(chosen: Tensor) -> tuple[Tensor, Tensor]:
    """[B n m] bool -> how many of every row [B 1 n], and which come first [B 1 n m], int32."""
    order = chosen.int().argsort(dim=-1, descending=True, stable=True)
    return chosen.sum(-1, dtype=torch.int32)[:, None], order.int()[:, None].contiguous()


def block_pairs(
    query: TokenIndex, key: TokenIndex, window: int | None = None
) -> tuple[Tensor, Tensor]:
    """Of blocks of queries and of keys [B n m] bool each: whether some of them may attend, which is
    never wrongly false, and whether all of them do, which is never wrongly true."""
    q, k = _Spans.of(query), _Spans.of(key)
    # A query attends to numbers from its segment's first to its own block's. Where segments and
    # blocks rise along the row, this says exactly which blocks hold none of them.
    some = _Span(q.start.low, q.number.high).meets(k.number)
    some &= (k.branch.low == 0)[:, None] | q.branch.meets(k.branch)
    every = q.segment.is_one_with(k.segment)
    every &= k.block.high[:, None] <= q.block.low[:, :, None]
    every &= (k.branch.high == 0)[:, None] | q.branch.is_one_with(k.branch)
    if window is not None:
        assert q.position is not None
        assert k.position is not None
        nearest = q.position.low[:, :, None] - k.position.high[:, None]
        some &= (nearest < window) | q.number.meets(k.number)
        every &= q.position.high[:, :, None] - k.position.low[:, None] < window
    return some, every


SEGMENT = 1 << 32
"""A token's number is its segment times this, plus its block: numbers rise along packed rows."""

BEYOND = 1 << 56
"""Above all numbers."""


@dataclass(frozen=True)
class _Span:
    """The lowest and the highest value of every block [B n]."""

    low: Tensor
    high: Tensor

    def meets(self, keys: _Span) -> Tensor:
        """[B n m] whether the spans of a block of queries and one of keys overlap."""
        return (keys.low[:, None] <= self.high[:, :, None]) & (
            keys.high[:, None] >= self.low[:, :, None]
        )

    def is_one_with(self, keys: _Span) -> Tensor:
        """[B n m] whether both blocks hold one value, the same."""
        one, other = (self.low == self.high)[:, :, None], (keys.low == keys.high)[:, None]
        return one & other & (self.low[:, :, None] == keys.low[:, None])


@dataclass(frozen=True)
class _Spans:
    """Of every BLOCK tokens, padding left out; start: the first number of tokens' segments. A block
    with any padding holds more than one segment; one of padding alone meets no other."""

    segment: _Span
    start: _Span
    number: _Span
    block: _Span
    branch: _Span
    position: _Span | None

    @staticmethod
    def of(index: TokenIndex) -> _Spans:
        missing = -index.segment.shape[1] % BLOCK

        def blocks(column: Tensor, filling: int = 0) -> Tensor:
            return F.pad(column, (0, missing), value=filling).unflatten(1, (-1, BLOCK))

        segment = blocks(index.segment, -1)
        padding = segment < 0

        def span(x: Tensor) -> _Span:
            low = x.masked_fill(padding, BEYOND).amin(-1)
            return _Span(low, x.masked_fill(padding, -1).amax(-1))

        block, start = blocks(index.block), segment * SEGMENT
        kept = span(segment)
        kept = _Span(kept.low, torch.where(padding.any(-1), BEYOND - 1, kept.high))
        position = None if index.position is None else span(blocks(index.position))
        return _Spans(
            kept,
            span(start),
            span(start + block),
            span(block),
            span(blocks(index.branch)),
            position,
        )
