"""Products with few rows on a CPU: decoding reads every matrix for a handful of tokens.

torch gives them to MKL, which for 2 to 20 rows takes two to three times as long as oneDNN does with
the matrix in its own layout, or, on processors with AVX-512, as MKL itself does with a matrix of
middling size turned over (LOG.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SMALLEST = 2**16
"""Numbers of a matrix below which the layout gains nothing."""

MOST = 2**30
"""Numbers of all matrices beyond which the copies would take too much memory (4 GB)."""

TURNED = 2**20
"""Numbers of a matrix up to which turning it over is the faster with AVX-512."""

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
"""x [N in] -> [N out]; by fp32 and bf16 x may have more dimensions."""


Weights = Literal["fp32", "bf16", "int8", "int4"]
"""What a matrix is held in: as it is; rounded; a byte a number, with a scale a row; or half a byte,
with a scale and a zero a group. What is told of one row of x does not depend on how many there are
but, in fp32, by the last bits of sums."""

GROUP = 32
"""Neighbours in a row that share a scale in int4."""


def narrow(held: Weights) -> torch.dtype:
    """What products by such a matrix take and give."""
    return torch.float32 if held == "fp32" else torch.bfloat16


def product(weight: Tensor, held: Weights = "fp32") -> Product:
    """By a matrix [out in] that changes no more, laid out for few rows where that gains."""
    weight = weight.detach()
    if held in ("int8", "int4"):
        # torch's kernels read whole blocks: beyond the end of a row that is none.
        if weight.shape[0] % 16 or weight.shape[1] % GROUP:
            return product(weight, "bf16")
        return _by_bytes(weight) if held == "int8" else _by_halves(weight)
    if held == "fp32":
        return _exact(weight, None)
    return _laid_out(weight.to(narrow(held)), None)


def scores(weight: Tensor, held: Weights = "fp32") -> Product:
    """A language model's head: x [N in] and logits [N out] are in fp32. Which word comes next hangs
    on small differences, so it is never in half bytes."""
    if held in ("int8", "int4") and _whole(weight):
        return _by_whole_numbers(weight.detach())
    multiply, dtype = product(weight, "int8" if held == "int4" else held), narrow(held)
    return lambda x: multiply(x.to(dtype)).float()


def _exact(weight: Tensor, bias: Tensor | None) -> Product:
    """In the layout that is read fastest here."""
    wide = torch.backends.cpu.get_cpu_capability() == "AVX512"
    if wide and weight.device.type == "cpu" and weight.numel() <= TURNED:
        turned = weight.t().contiguous()
        return lambda x: F.linear(x, turned.t(), bias)
    if not _suits(weight):
        return partial(F.linear, weight=weight, bias=bias)
    return _laid_out(weight, bias)


def _laid_out(weight: Tensor, bias: Tensor | None) -> Product:
    matrix = torch.ops.mkldnn._reorder_linear_weight(weight, ROWS)
    multiply = torch.ops.mkldnn._linear_pointwise.default
    return lambda x: multiply(x, matrix, bias, "none", [], "")


def _by_bytes(weight: Tensor) -> Product:
    """The bytes are widened as they are read."""
    whole, scale = _in_bytes(weight)
    scale = scale.bfloat16()
    return lambda x: torch.ops.aten._weight_int8pack_mm.default(x, whole, scale)


def _in_bytes(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Whole numbers [out in] and the scale [out] of each row."""
    scale = weight.abs().amax(1).clamp_min(torch.finfo(torch.float32).tiny) / 127
    return (weight / scale[:, None]).round().to(torch.int8), scale


def _whole(weight: Tensor) -> bool:
    """Whether this processor multiplies bytes without overflow in between."""
    return weight.device.type == "cpu" and torch.cpu._is_vnni_supported()


def _by_whole_numbers(weight: Tensor) -> Product:
    """The matrix in bytes and x in two bytes a number, a scale a row: all sums are of whole
    numbers, so exact. For a large matrix quicker than _by_bytes, four times with eight rows; for
    others what is around it is not worth it (LOG.md)."""
    whole, scale = _in_bytes(weight)
    packed = torch.ops.onednn.qlinear_prepack(whole, [2, weight.shape[1]])
    zeros = torch.zeros(len(weight), dtype=torch.int32)
    multiply = torch.ops.onednn.qlinear_pointwise.default

    def act(x: Tensor) -> Tensor:
        step = x.abs().amax(1, keepdim=True).clamp_min_(torch.finfo(x.dtype).tiny) / 127
        steps = x / step
        high = steps.round()
        low = ((steps - high) * 254).round()
        rows = torch.cat([high, low]).to(torch.int8)
        told = multiply(
            rows, 1.0, 0, packed, scale, zeros, None, 1.0, 0, torch.float32, "none", [], ""
        )
        return torch.add(*told.chunk(2), alpha=1 / 254).mul_(step)

    return act


def _by_halves(weight: Tensor) -> Product:
    """Each group between its least and its largest number, in 15 steps."""
    groups = weight.unflatten(1, (-1, GROUP))
    low, high = groups.amin(-1), groups.amax(-1)
    scale = ((high - low) / 15).clamp_min(torch.finfo(torch.float32).tiny)
    steps = ((groups - low[..., None]) / scale[..., None]).round().clamp(0, 15).flatten(1).int()
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(steps, 1)
    # The operator wants what step 8 stands for, groups first.
    told = torch.stack([scale, low + 8 * scale], -1).transpose(0, 1).contiguous().bfloat16()
    multiply = torch.ops.aten._weight_int4pack_mm_for_cpu.default
    return lambda x: multiply(x, packed, GROUP, told)


def normed(matrix: Tensor, gain: Tensor, eps: float, held: Weights = "fp32") -> Product:
    """x [N in] in fp32 -> matrix · RMSNorm(x) in few operations: x / sqrt(|x|² + in·eps) times
    the matrix with the norm's gain and sqrt(in) in it."""
    size = matrix.shape[1]
    floor = torch.tensor(math.sqrt(size * eps))
    multiply, dtype = product(matrix * (gain * math.sqrt(size)), held), narrow(held)

    def act(x: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        told = torch.div(x, torch.hypot(length, floor))
        return multiply(told if held == "fp32" else told.to(dtype))

    return act


def state_of(tensors: Iterable[Tensor | None]) -> list[tuple[int, int]]:
    """What is another where tensors are others or have been written into since."""
    held = (tensor for tensor in tensors if tensor is not None)
    return [(each.data_ptr(), 0 if each.is_inference() else each._version) for each in held]


def _suits(weight: Tensor) -> bool:
    return (
        torch.backends.mkldnn.is_available()
        and weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and weight.numel() >= SMALLEST
    )


def _multiply(layer: nn.Linear, held: dict[str, Any], x: Tensor) -> Tensor:
    """x [... in] -> [... out]; held: the product and what it was made of."""
    weight = layer.weight
    plain = x.dtype == weight.dtype == torch.float32 and x.device.type == "cpu"
    if torch.is_grad_enabled() or torch.is_autocast_enabled("cpu") or not plain:
        return F.linear(x, weight, layer.bias)
    made_of = state_of((weight, layer.bias))
    if held.get("of") != made_of:
        held["product"], held["of"] = _exact(weight.detach(), layer.bias), made_of
    return held["product"](x)
