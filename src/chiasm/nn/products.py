"""Products with few rows on a CPU: decoding reads every matrix for a handful of tokens.

torch gives them to MKL, which for 2 to 20 rows takes two to three times as long as oneDNN does with
the matrix in its own layout (LOG.md).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SMALLEST = 2**16
"""Numbers of a matrix below which the layout gains nothing."""

MOST = 2**30
"""Numbers of all matrices beyond which the copies would take too much memory (4 GB)."""

ROWS = 16
"""What the layout is chosen for; it is as good for 1 and for 200."""


class FewRows:
    """Lets a model's fp32 linear layers on a CPU compute by matrices laid out anew, inside `with`
    and without gradients; otherwise everything is as it was.

    The copies take the memory of the matrices once more. They are made on first use, and again
    when the weights have changed.
    """

    def __init__(self, model: nn.Module):
        layers = [m for m in model.modules() if type(m) is nn.Linear and _suits(m.weight)]
        if sum(m.weight.numel() for m in layers) > MOST:
            layers = []
        self._forwards: list[tuple[nn.Linear, Callable[[Tensor], Tensor]]] = [
            (layer, partial(_multiply, layer, {})) for layer in layers
        ]

    def __enter__(self) -> None:
        for layer, forward in self._forwards:
            layer.__dict__["forward"] = forward

    def __exit__(self, *_error: object) -> None:
        for layer, _ in self._forwards:
            layer.__dict__.pop("forward", None)


Product = Callable[[Tensor], Tensor]
"""x [... in] -> [... out]"""


def product(weight: Tensor) -> Product:
    """By a matrix [out in] that changes no more, laid out for few rows where that gains."""
    weight = weight.detach()
    if not _suits(weight):
        return partial(F.linear, weight=weight)
    matrix = torch.ops.mkldnn._reorder_linear_weight(weight, ROWS)
    multiply = torch.ops.mkldnn._linear_pointwise.default
    return lambda x: multiply(x, matrix, None, "none", [], "")


def _suits(weight: Tensor) -> bool:
    return (
        torch.backends.mkldnn.is_available()
        and weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and weight.numel() >= SMALLEST
    )


def _multiply(layer: nn.Linear, held: dict[str, Any], x: Tensor) -> Tensor:
    """x [... in] -> [... out]; held: the layout and what it was made of."""
    weight = layer.weight
    plain = x.dtype == weight.dtype == torch.float32 and x.device.type == "cpu"
    if torch.is_grad_enabled() or torch.is_autocast_enabled("cpu") or not plain:
        return F.linear(x, weight, layer.bias)
    made_of = (weight.data_ptr(), 0 if weight.is_inference() else weight._version)
    if held.get("of") != made_of:
        held["matrix"] = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), ROWS)
        held["of"] = made_of
    return torch.ops.mkldnn._linear_pointwise(x, held["matrix"], layer.bias, "none", [], "")
