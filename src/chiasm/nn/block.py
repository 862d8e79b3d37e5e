"""The Llama-style block (RMSNorm, grouped-query attention with RoPE, SwiGLU)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn import functional as F

from chiasm.nn.attention import AttentionPlan, attention
from chiasm.nn.norm import HeadNorm, HeadRMSNorm, RMSNorm, lowered
from chiasm.nn.rope import rotate

QKNorm = bool | Literal["rms"]


class Attention(nn.Module):
    """Grouped-query attention with optional QK-norm. x [B T D] -> [B T D].

    qk_norm: LayerNorm over each head, "rms" that without mean and bias, False none. softcap: see
    attend. watch: given queries, keys and layout of every pass where it is set (train/monitor.py).
    """

    watch: Callable[[Tensor, Tensor, AttentionPlan], None] | None = None

    def __init__(
        self,
        width: int,
        heads: int,
        kv_heads: int,
        qk_norm: QKNorm,
        softcap: float | None = None,
    ):
        super().__init__()
        size = width // heads
        self.size, self.softcap = size, softcap
        self.q_proj = nn.Linear(width, heads * size, bias=False)
        self.k_proj = nn.Linear(width, kv_heads * size, bias=False)
        self.v_proj = nn.Linear(width, kv_heads * size, bias=False)
        self.o_proj = nn.Linear(heads * size, width, bias=False)
        norm = HeadRMSNorm if qk_norm == "rms" else HeadNorm
        self.q_norm = norm(heads, size) if qk_norm else nn.Identity()
        self.k_norm = norm(kv_heads, size) if qk_norm else nn.Identity()

    def forward(
        self,
        x: Tensor,
        turn: tuple[Tensor, Tensor],
        layout: AttentionPlan,
        cache: Any | None = None,
        layer: int = 0,
    ) -> Tensor:
        B, T, _ = x.shape
        q, k, v = (
            project(x).view(B, T, -1, self.size)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = (rotate(y, *turn).to(v.dtype) for y in (self.q_norm(q), self.k_norm(k)))
        q, k, v = (y.transpose(1, 2) for y in (q, k, v))
        if cache is not None:
            k, v = cache.update(k, v, layer)
        if self.watch is not None:
            self.watch(q, k, layout)
        mixed = attention(q, k, v, layout, softcap=self.softcap)
        return self.o_proj(mixed.transpose(1, 2).reshape(B, T, -1))


class SwiGLU(nn.Module):
    """down(silu(gate(x)) · up(x)) (Shazeer, 2002.05202)."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.gate_proj = nn.Linear(width, hidden, bias=False)
        self.up_proj = nn.Linear(width, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """x + attention(norm(x)), then + mlp(norm(·)), dropout after each branch.

    post_norm: x + norm(attention(x)), then + norm(mlp(·)) (Swin v2, 2111.09883, section 3.2;
    Chameleon, 2405.09818, section 2.3): what a branch adds then has the size of its norm's weight,
    however its matrices grow. The norms keep their names, as in Chameleon's weights.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        kv_heads: int,
        hidden: int,
        qk_norm: QKNorm,
        dropout: float,
        eps: float = 1e-5,
        post_norm: bool = False,
        softcap: float | None = None,
    ):
        super().__init__()
        self.post_norm = post_norm
        self.input_layernorm = RMSNorm(width, eps=eps)
        self.self_attn = Attention(width, heads, kv_heads, qk_norm, softcap)
        self.post_attention_layernorm = RMSNorm(width, eps=eps)
        self.mlp = SwiGLU(width, hidden)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        turn: tuple[Tensor, Tensor],
        layout: AttentionPlan,
        cache: Any | None = None,
        layer: int = 0,
    ) -> Tensor:
        if self.post_norm:
            mixed = self.self_attn(lowered(x), turn, layout, cache, layer)
            x = x + self.dropout(self.input_layernorm(mixed))
            return x + self.dropout(self.post_attention_layernorm(self.mlp(lowered(x))))
        seen = lowered(self.input_layernorm(x))
        x = x + self.dropout(self.self_attn(seen, turn, layout, cache, layer))
        return x + self.dropout(self.mlp(lowered(self.post_attention_layernorm(x))))
