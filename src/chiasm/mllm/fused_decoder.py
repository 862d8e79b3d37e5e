"""A language model of the Llama kind with as few operations as it can be had for: replies.

A step of a few rows reads every matrix for a handful of tokens, and costs as many operations as it
has besides. So queries, keys and values are one product here, as are gate and up, heads that share
keys are rows of one product, and matrices lie as they are read fastest (nn/cpu_linear.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from chiasm.mllm.hf_attention import run
from chiasm.nn.attention import AttentionPlan, TokenIndex, attention, cached_layout, packed_layout
from chiasm.nn.autotune import fastest_name
from chiasm.nn.cache import KVCache
from chiasm.nn.cpu_linear import (
    MOST,
    TIMED_ROWS,
    Product,
    Weights,
    narrow,
    normed,
    product,
    scores,
    state_of,
)
from chiasm.nn.norm import RMSNorm
from chiasm.nn.precision import working_dtype
from chiasm.nn.rope import signed

PROBE = 6
"""Tokens on which a backbone and its copy must agree."""

PROMPT = 64
"""Tokens of the prompt that the ways to compute one are timed with."""

TRIES = 5
"""Steps that are timed, of which the quickest counts: others may be computing."""


class Decoder:
    """Runs a causal language model of transformers by joined matrices. weights: what they are held
    in (nn/cpu_linear.py); they take memory beside the model's own.

    In bytes or less steps are faster, but not whole prompts: those are computed in bf16, where that
    is faster than fp32. Models of other families, with adapters, on other devices or in other
    dtypes go the common way; so do steps and prompts for which this machine is faster by it, timed
    at first use (nn/autotune.py).
    """

    def __init__(self, language: Any, weights: Weights = "fp32"):
        self.language = language
        self.weights: Weights = weights
        self._made_of: list[tuple[int, int]] = []
        self._layers: list[_Layer] = []
        self._head: Product
        self._by_matrix = True

    def of(self, step: bool) -> Decoder | None:
        """What to use here, for a step or else a prompt; None for the common way. Lays the matrices
        out before a prompt, if the weights are not those that they were made of."""
        if torch.is_grad_enabled() or torch.is_autocast_enabled("cpu") or not self._suits:
            return None
        if not (step and self._layers):  # looking at all weights is a fortieth of a step
            self._refresh()
        if self.weights in ("int8", "int4") and not step:
            return self._of_prompts and self._of_prompts.of(step)
        return self if (self._gains_steps if step else self._gains_prompts) else None

    @cached_property
    def _gains_steps(self) -> bool:
        return self._gains("step", 1)

    @cached_property
    def _gains_prompts(self) -> bool:
        return self._gains("prompt", PROMPT)

    def _gains(self, what: str, tokens: int) -> bool:
        """Whether the joined matrices are faster than the common way for so many tokens."""
        config = self.language.config
        shape = [config.hidden_size, config.vocab_size, len(self._layers)]
        if self._layers:
            gate = self.language.base_model.layers[0].mlp.gate_proj
            shape += [self._layers[0].heads, self._layers[0].kv_heads, gate.out_features]
        makers = {
            "joined": lambda: partial(_joined, self),
            "plain": lambda: partial(_common, self.language),
        }
        choice = f"{type(self.language).__name__} {self.weights} {what} {shape}"
        # From ids on, so that all that the two differ in is timed.
        return fastest_name(choice, makers, [(torch.zeros(1, tokens).long(),)]) == "joined"

    @cached_property
    def _of_prompts(self) -> Decoder | None:
        fast = working_dtype("auto", torch.device("cpu")) == torch.bfloat16
        return Decoder(self.language, "bf16") if fast else None

    @cached_property
    def _suits(self) -> bool:
        """Asked of the model itself, as no list of architectures stays complete: whether the same
        layers with these matrices give what it gives of a few tokens."""
        parameters = list(self.language.parameters())
        plain = all(p.dtype == torch.float32 and p.device.type == "cpu" for p in parameters)
        small = sum(p.numel() for p in parameters) <= MOST
        if not (plain and small and _built_alike(self.language)):
            return False
        exact = Decoder(self.language)
        exact._refresh()
        at = torch.arange(PROBE)[None]
        x = self.language.get_input_embeddings()(at * 7919 % self.language.config.vocab_size)
        layout = packed_layout(TokenIndex(torch.zeros_like(at), at, torch.zeros_like(at)))
        ours, theirs = exact(x, at, layout, None, {}), run(self.language, x, at, layout)
        return bool(torch.dist(ours, theirs) <= 1e-3 * theirs.norm())

    def _refresh(self) -> None:
        made_of = state_of(part._parameters["weight"] for part in self._parts)
        if made_of == self._made_of:
            return
        config, head = self.language.config, self.language.get_output_embeddings()
        layers = self.language.base_model.layers
        self._layers = [_layer(layer, config, self.weights) for layer in layers]
        self._head = scores(head.weight, self.weights)
        self._by_matrix = _turns_by_matrix(self._layers)
        self._made_of = made_of

    @cached_property
    def _parts(self) -> list[nn.Module]:
        """Listed once: walking a model at every step takes as long as a tenth of it."""
        modules = self.language.modules()
        return [module for module in modules if module._parameters.get("weight") is not None]

    def __call__(
        self,
        x: Tensor,
        position: Tensor,
        layout: AttentionPlan,
        cache: KVCache | None,
        steps: Mapping[int, Callable[[Tensor], Tensor]],
    ) -> Tensor:
        """Hidden states [B T D] after the last norm, of embeddings [B T D] at positions [B T];
        steps: what x passes through before it enters the layer of that number."""
        base = self.language.base_model
        B, T, D = x.shape
        cos, sin = (each.flatten(0, 1) for each in base.rotary_emb(x, position))
        turn = _turning(cos, sin, T == 1 and self._by_matrix)
        x = x.flatten(0, 1)
        for number, layer in enumerate(self._layers):
            if number in steps:
                x = steps[number](x.view(B, T, D)).flatten(0, 1)
            x = layer(x, turn, (B, T), layout, cache, number)
        return base.norm(x).view(B, T, D)

    def head(self, hidden: Tensor) -> Tensor:
        """[... D] -> [... V]"""
        return self._head(hidden.flatten(0, -2)).unflatten(0, hidden.shape[:-1])


@torch.inference_mode()
def fastest(language: Any) -> Weights:
    """What single steps of a model take the least time in on this machine, of what changes its
    words little; "fp32" for models that a Decoder does not suit."""
    seconds: dict[Weights, float] = {}
    for weights in ("fp32", "bf16", "int8"):
        decoder = Decoder(language, weights)
        if decoder.of(step=True) is None:
            return "fp32"
        seconds[weights] = min(_timed(decoder) for _ in range(TRIES))
    return min(seconds, key=lambda weights: seconds[weights])


def _timed(decoder: Decoder) -> float:
    """Seconds of one step that sees nothing but itself."""
    began = time.perf_counter()
    _joined(decoder, torch.zeros(1, 1, dtype=torch.long))
    return time.perf_counter() - began


def _joined(decoder: Decoder, ids: Tensor) -> Tensor:
    """The last token's logits, of ids [1 T]."""
    x, at, layout = _alone(decoder.language, ids)
    return decoder.head(decoder(x, at, layout, None, {})[:, -1])


def _common(language: Any, ids: Tensor) -> Tensor:
    """The same by the model itself."""
    return language.get_output_embeddings()(run(language, *_alone(language, ids))[:, -1])


def _alone(language: Any, ids: Tensor) -> tuple[Tensor, Tensor, AttentionPlan]:
    """Embeddings, positions and layout of ids [1 T] that see nothing before them."""
    at = torch.arange(ids.shape[1])[None]
    index = TokenIndex(torch.zeros_like(at), at, torch.zeros_like(at))
    layout = packed_layout(index) if at.shape[1] > 1 else cached_layout(index, index)
    return language.get_input_embeddings()(ids), at, layout


@dataclass(frozen=True)
class _Layer:
    """A layer's matrices, joined; x [N D] in fp32 are the tokens of B rows, N = B·T. turn: heads
    [N heads size] by the positions of their tokens."""

    heads: int
    kv_heads: int
    size: int
    into: Product
    out: Product
    gate_up: Product
    down: Product
    dtype: torch.dtype

    def __call__(
        self,
        x: Tensor,
        turn: Callable[[Tensor], Tensor],
        shape: tuple[int, int],
        layout: AttentionPlan,
        cache: KVCache | None,
        number: int,
    ) -> Tensor:
        told = self.into(x).float().view(len(x), -1, self.size)
        turned, value = told.split([self.heads + self.kv_heads, self.kv_heads], 1)
        turned = turn(turned).view(*shape, -1, self.size).transpose(1, 2)
        query, key = turned.split([self.heads, self.kv_heads], 1)
        value = value.view(*shape, -1, self.size).transpose(1, 2)
        if cache is not None:
            key, value = cache.update(key, value, number)
        x = x + self.out(self._mix(query, key, value, layout).to(self.dtype))
        gate, up = self.gate_up(x).chunk(2, -1)
        return x + self.down(F.silu(gate).mul_(up))

    def _mix(self, query: Tensor, key: Tensor, value: Tensor, layout: AttentionPlan) -> Tensor:
        """query [B H T size], key and value [B Hkv L size] -> [B·T H·size]"""
        B, H, T, D = query.shape
        if T > 1:
            mixed = attention(query, key, value, layout).transpose(1, 2)
        else:  # heads that share keys are tokens of one
            query = query.view(B, self.kv_heads, -1, D)
            bias = layout.bias(query.dtype)
            mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        return mixed.reshape(B * T, H * D)


def _turns_by_matrix(layers: Sequence[_Layer]) -> bool:
    """Whether a step's heads are rotated faster by a matrix for each token."""
    if not layers:
        return False
    heads, size = layers[0].heads + layers[0].kv_heads, layers[0].size

    def turned(matrix: bool, x: Tensor, cos: Tensor) -> None:
        turn = _turning(cos, cos, matrix)
        for _ in layers:
            turn(x)

    makers = {"matrix": lambda: partial(turned, True), "plain": lambda: partial(turned, False)}
    calls = [(torch.ones(rows, heads, size), torch.ones(rows, size)) for rows in TIMED_ROWS]
    choice = f"rotation of {heads} heads of {size} in {len(layers)} layers"
    return fastest_name(choice, makers, calls) == "matrix"


def _turning(cos: Tensor, sin: Tensor, matrix: bool) -> Callable[[Tensor], Tensor]:
    """What turns heads [N heads size] of tokens by their angles' cos and sin [N size], the few of a
    step by a matrix each: one operation instead of five."""
    half, sin = cos.shape[-1] // 2, signed(sin)
    if matrix:
        matrices = cos.diag_embed() + sin.diag_embed().roll(half, -2)
        return lambda heads: torch.bmm(heads, matrices)
    cos, sin = cos[:, None], sin[:, None]
    return lambda heads: torch.addcmul(heads * cos, heads.roll(half, -1), sin)


def _layer(layer: Any, config: Any, weights: Weights) -> _Layer:
    own, mlp = layer.self_attn, layer.mlp
    size = own.q_proj.out_features // config.num_attention_heads
    return _Layer(
        config.num_attention_heads,
        own.k_proj.out_features // size,
        size,
        _after(layer.input_layernorm, [own.q_proj, own.k_proj, own.v_proj], weights),
        product(own.o_proj.weight, weights),
        _after(layer.post_attention_layernorm, [mlp.gate_proj, mlp.up_proj], weights),
        product(mlp.down_proj.weight, weights),
        narrow(weights),
    )


def _after(norm: Any, layers: Sequence[nn.Linear], weights: Weights) -> Product:
    joined = torch.cat([layer.weight for layer in layers])
    return normed(joined, norm.weight, _epsilon(norm), weights)


def _epsilon(norm: Any) -> Any:
    """Of ours (nn/fuse_norms.py) or of transformers' RMS norm; None for any other."""
    return norm.eps if isinstance(norm, RMSNorm) else getattr(norm, "variance_epsilon", None)


_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
_MLP = ("gate_proj", "up_proj", "down_proj")
_NORMS = ("input_layernorm", "post_attention_layernorm")


def _built_alike(language: Any) -> bool:
    """Whether a model has the parts that a Llama has, none of them with a bias, and looks back
    through no window, which a probe of a few tokens would not see."""
    config, base = language.config, language.base_model
    kinds = getattr(config, "layer_types", None) or ()
    if getattr(config, "sliding_window", None) or "sliding_attention" in kinds:
        return False
    layers = list(getattr(base, "layers", ()))
    matrices = [language.get_output_embeddings()]
    for layer in layers:
        own, mlp = getattr(layer, "self_attn", None), getattr(layer, "mlp", None)
        matrices += [getattr(own, name, None) for name in _ATTENTION]
        matrices += [getattr(mlp, name, None) for name in _MLP]
    alike = all(type(matrix) is nn.Linear and matrix.bias is None for matrix in matrices)
    norms = [getattr(layer, name, None) for layer in layers for name in _NORMS]
    alike &= all(_epsilon(norm) is not None for norm in norms)
    return alike and hasattr(base, "rotary_emb") and hasattr(base, "norm")
