"""An image's codes one after the other, with as few operations as they can be had for.

Between the first and the last code of an image nothing changes but ids and positions, and a step
of a few rows costs as many operations as it has, not as many numbers (LOG.md). So queries, keys and
values are one product here, the norms' weights lie in the matrices behind them, the head has rows
for codes only, and masks and rotations of all steps are made beforehand.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from chiasm.core.batch import IGNORE, Batch
from chiasm.nn.attention import TokenIndex
from chiasm.nn.autotune import fastest_name
from chiasm.nn.block import Block
from chiasm.nn.cache import KVCache
from chiasm.nn.cpu_linear import MOST, Product, normed, product, state_of
from chiasm.nn.norm import RMSNorm
from chiasm.nn.rope import rotation, signed

if TYPE_CHECKING:
    from chiasm.unified.model import Unified

PROBE = 8
"""Codes that both ways are timed with."""

Step = Callable[[int, Tensor], Tensor]
"""(number of the step, ids [B]) -> logits [B codes] of what comes next."""


class Stepper:
    """What a Generator asks a Unified model for. The joined matrices take the memory of the model
    once more; they are made on first use, and again when the weights have changed."""

    def __init__(self, model: Unified):
        self.model = model
        self._made_of: list[tuple[int, int]] = []
        self._layers: list[_Layer] = []
        self._head: Product

    def begin(self, batch: Batch, cache: KVCache, steps: int) -> Step | None:
        """For so many steps of one token a row, the first where `batch` [B 1] says: their function.
        The cache counts them all as said at once. None where the model or the machine needs the
        common way, or this machine is faster by it (nn/autotune.py)."""
        if not self._applies(batch):
            return None
        self._refresh()
        if not self._gains:
            return None
        return self._steps(batch, cache, steps)

    @cached_property
    def _gains(self) -> bool:
        """Whether this machine is faster by the joined matrices than by the common way."""
        config = self.model.config
        shape = [
            config.hidden_size,
            config.layers,
            config.heads,
            config.kv_heads,
            config.intermediate_size,
        ]
        makers = {"joined": lambda: self._joined, "plain": lambda: self._common}
        first = torch.zeros(1, 1, dtype=torch.long)
        code = first + self.model.vocabulary.first_code
        batches = [
            Batch(code, first + IGNORE, first, first + number, first, first + number)
            for number in range(PROBE)
        ]
        choice = f"codes of an image {self.model.vocabulary.size} {shape}"
        return fastest_name(choice, makers, [(batches,)]) == "joined"

    def _joined(self, batches: Sequence[Batch]) -> None:
        cache = self.model.new_cache()
        self.model(batches[0], cache)
        step = self._steps(batches[1], cache, len(batches) - 1)
        for number, batch in enumerate(batches[1:]):
            step(number, batch.input_ids[:, 0])

    def _common(self, batches: Sequence[Batch]) -> None:
        cache = self.model.new_cache()
        for batch in batches:
            self.model.logits(self.model(batch, cache))

    def _steps(self, batch: Batch, cache: KVCache, steps: int) -> Step:
        model, config, start = self.model, self.model.config, len(cache)
        layout = cache.reserve(
            TokenIndex(batch.segment_ids, batch.block_ids, batch.branch_ids), steps
        )
        bias = layout.bias(torch.float32)[:, 0].repeat_interleave(config.kv_heads, 0)
        at, size = batch.position_ids + torch.arange(steps), config.hidden_size // config.heads
        cos, sin = rotation(at, size, config.rope_theta)
        turns = [turn.unbind(1) for turn in (cos, signed(sin))]
        table = model.embed_tokens.weight
        layers = [(layer, *cache.buffers(number)) for number, layer in enumerate(self._layers)]

        def step(number: int, ids: Tensor) -> Tensor:
            cos, sin = (turn[number] for turn in turns)
            place, mask = start + number, bias[:, :, : start + number + 1]
            x = F.embedding(ids, table)
            for layer, keys, values in layers:
                x = layer(x, cos, sin, keys, values, place, mask)
            return model.scaled(self._head(x))

        return step

    def _applies(self, batch: Batch) -> bool:
        config, weight = self.model.config, self.model.embed_tokens.weight
        usual = config.rope == "1d" and not config.post_norm and not config.attention_softcap
        plain = weight.device.type == "cpu" and weight.dtype == torch.float32
        plain &= not torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")
        small = sum(p.numel() for p in self.model.parameters()) <= MOST
        return usual and plain and small and batch.input_ids.shape[1] == 1

    def _refresh(self) -> None:
        made_of = state_of(self.model.parameters())
        if made_of == self._made_of:
            return
        model = self.model
        head = model.embed_tokens if model.lm_head is None else model.lm_head
        codes = head.weight[model.vocabulary.first_code :]
        self._layers = [_layer(block) for block in model.layers]  # type: ignore[arg-type]
        self._head = _after(model.norm, codes)
        self._made_of = made_of


@dataclass(frozen=True)
class _Layer:
    """A block's matrices, joined. x [B D], cos and sin [B 1 size], keys and values [B Hkv room
    size], which get this token's at `place`; mask [B·Hkv 1 place + 1] is added to the logits."""

    heads: int
    kv_heads: int
    norm: nn.Module
    into: Product
    out: Product
    gate_up: Product
    down: Product

    def __call__(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        keys: Tensor,
        values: Tensor,
        place: int,
        mask: Tensor,
    ) -> Tensor:
        B, size, turned = len(x), cos.shape[-1], self.heads + self.kv_heads
        told = self.into(x).view(B, -1, size)
        qk = self.norm(told[:, :turned])
        qk = torch.addcmul(qk * cos, qk.roll(size // 2, -1), sin)
        keys.select(2, place).copy_(qk[:, self.heads :])
        values.select(2, place).copy_(told[:, turned:])
        # Heads that share keys are rows of one product.
        q = qk[:, : self.heads].reshape(B * self.kv_heads, -1, size)
        k, v = (held.flatten(0, 1).narrow(1, 0, place + 1) for held in (keys, values))
        logits = torch.baddbmm(mask, q, k.transpose(1, 2), alpha=size**-0.5)
        mixed = torch.bmm(logits.softmax(-1), v)
        x = x + self.out(mixed.view(B, -1))
        gate, up = self.gate_up(x).chunk(2, -1)
        return x + self.down(F.silu(gate).mul_(up))


def _layer(block: Block) -> _Layer:
    own, mlp = block.self_attn, block.mlp
    qkv = torch.cat([own.q_proj.weight, own.k_proj.weight, own.v_proj.weight])
    gate_up = torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight])
    return _Layer(
        own.q_proj.out_features // own.size,
        own.k_proj.out_features // own.size,
        _one_norm(own.q_norm, own.k_norm),
        _after(block.input_layernorm, qkv),
        product(own.o_proj.weight),
        _after(block.post_attention_layernorm, gate_up),
        product(mlp.down_proj.weight),
    )


def _after(norm: RMSNorm, matrix: Tensor) -> Product:
    assert norm.eps is not None
    return normed(matrix, norm.weight, norm.eps)


def _one_norm(q: Any, k: Any) -> nn.Module:
    """The norm of the heads of queries and of keys, side by side."""
    if isinstance(q, nn.Identity):
        return q
    heads, size = q.weight.shape
    both = type(q)(heads + len(k.weight), size, q.eps)
    # Not state_dict(), at which FSDP would shard a model that is whole for a while.
    other = dict(k.named_parameters())
    both.load_state_dict({n: torch.cat([own, other[n]]) for n, own in q.named_parameters()})
    return both
