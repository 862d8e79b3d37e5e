"""The cost model: floating-point operations counted from shapes, two a multiply-add.

Forward costs 2 operations a parameter and token, backward to the inputs as much again, backward to
the weights as much again. A part that is trained costs 3 forwards, a frozen part that gradients
pass through 2, a frozen part with nothing trained before it 1. Attention has no weights: its
scores and mixing cost 3 forwards wherever a gradient passes. The data itself gets no gradient, so
the first matrix of all costs 2 where it is trained.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd


def matrix_parameters(module: nn.Module, experts: int = 0) -> int:
    """Parameters that multiply a token's activations: matrices and convolutions, no embedding
    table, norm or bias. Of a layer of experts, as many experts as a token is sent to."""
    total = 0
    for m in module.modules():
        if isinstance(m, nn.Linear):  # of 4 bits too, whose weight holds two values a byte
            total += m.in_features * m.out_features
        elif isinstance(m, _ConvNd) or type(m).__name__ == "Conv1D":  # transformers', of GPT-2
            total += m.weight.numel()  # type: ignore[union-attr]
        elif count := getattr(m, "num_experts", 0):
            total += _of_experts(m, int(count), experts)
    return total


def _of_experts(module: nn.Module, count: int, chosen: int) -> int:
    """Of matrices [experts, in, out] those that are chosen; of a router [experts, in] all."""
    total = 0
    for name, p in module.named_parameters(recurse=False):
        if p.dim() == 3:
            total += p.numel() * (chosen or count) // count
        elif p.dim() == 2 and "bias" not in name:
            total += p.numel()
    return total


def segment_lengths(segment: Tensor) -> Tensor:
    """Tokens of every packed sample: segment [B T] as core.batch.Batch -> [samples], no padding."""
    rows = torch.arange(len(segment), device=segment.device)[:, None]
    numbered = segment + rows * (segment.max() + 1)
    return torch.unique(numbered[segment >= 0], return_counts=True)[1]


def attention_flops(lengths: Tensor, width: int, layers: int) -> float:
    """Scores and mixing of segments of these lengths: 4·L·d·Σl² forward (masked half included)."""
    return 4.0 * layers * width * float((lengths.double() ** 2).sum())


def encoder_flops(encoder: Any, counts: Tensor, trained: bool, adapted: bool = False) -> float:
    """A vision transformer on images of these numbers of patches [N]. Class and register tokens
    take part in its blocks; what makes patches into tokens is the first matrix of all. adapted:
    gradients pass through it to adapters, which count among its matrices."""
    blocks = sum(map(matrix_parameters, encoder.layers))
    first = 2.0 * (matrix_parameters(encoder) - blocks) * int(counts.sum())
    seen = counts + encoder.special
    rest = 2.0 * blocks * int(seen.sum()) + attention_flops(seen, encoder.config.mixing, 1)
    forwards = passes(trained, adapted)
    return forwards * rest + min(forwards, 2) * first


def passes(trained: bool, upstream: bool) -> int:
    """How many forwards a part with weights costs in a training step."""
    return 3 if trained else 2 if upstream else 1


def mixing_passes(passed: bool) -> int:
    """How many forwards attention costs; passed: its queries or keys have gradients."""
    return 3 if passed else 1


def is_trained(module: nn.Module) -> bool:
    """Whether a stage trains any of it."""
    return any(p.requires_grad for p in module.parameters())
