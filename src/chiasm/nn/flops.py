"""The cost model: floating-point operations counted from shapes, two a multiply-add.

Forward costs 2 operations a parameter and token, backward to the inputs as much again, backward to
the weights as much again. A part that is trained costs 3 forwards, a frozen part that gradients
pass through 2, a frozen part with nothing trained before it 1.
"""

from __future__ import annotations

from torch import Tensor, nn


def matrix_parameters(module: nn.Module) -> int:
    """Parameters that multiply activations: every matrix, no embedding table and no bias."""
    tables = {id(m.weight) for m in module.modules() if isinstance(m, nn.Embedding)}
    return sum(p.numel() for p in module.parameters() if p.dim() >= 2 and id(p) not in tables)


def attention_flops(lengths: Tensor, width: int, layers: int) -> float:
    """Scores and mixing of segments of these lengths: 4·L·d·Σl² forward (masked half included)."""
    return 4.0 * layers * width * float((lengths.double() ** 2).sum())


def passes(trained: bool, upstream: bool) -> int:
    """How many forwards a part costs in a training step."""
    return 3 if trained else 2 if upstream else 1


def is_trained(module: nn.Module) -> bool:
    """Whether a stage trains any of it."""
    return any(p.requires_grad for p in module.parameters())
