"""Products with few rows on a CPU: decoding reads every matrix for a handful of tokens.

torch gives them to MKL, which for 2 to 20 rows can take two to three times as long as oneDNN does
with the matrix in its own layout, or as MKL itself does with the matrix transposed (LOG.md). Which
is the fastest is timed on this machine for each shape (nn/autotune.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import lru_cache, partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from chiasm.nn.autotune import Makers, fastest_kernel

SMALLEST = 2**16
"""Numbers of a matrix below which the layout gains nothing."""

MOST = 2**30
"""Numbers of all matrices beyond which the copies would take too much memory (4 GB)."""

ROWS = 16
"""What oneDNN's layout is chosen for; it is as good for 1 and for 200."""

TIMED_ROWS = (1, 4, 16)
"""Rows that kernels are timed with: one reply alone, and several at a time, which count more: of 1
and 8 the transposed matrix won by what it gains for one row, and four replies at a time took a
fifth longer (LOG.md)."""


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
    """Multiplies by a matrix [out in] that changes no more: the kernel is the fastest of those for
    `held` and of the exact ones, so where int4, int8 or bf16 gains no time on this machine the
    product is that of the next wider kind."""
    weight = weight.detach()
    return _fastest(weight, f"{held} product", _kernels(weight, held), narrow(held))


def scores(weight: Tensor, held: Weights = "fp32") -> Product:
    """A language model's head: x [N in] and logits [N out] are in fp32. Which word comes next hangs
    on small differences, so it is never in half bytes."""
    weight = weight.detach()
    if held == "fp32":
        return product(weight)
    kernels = dict(_kernels(weight, "bf16" if held == "bf16" else "int8"))
    kernels = {name: _in_fp32(make) for name, make in kernels.items()}
    if held != "bf16":
        kernels = {
            "bytes by signed bytes": lambda: _by_whole_numbers(weight, signed=True),
            "bytes by unsigned bytes": lambda: _by_whole_numbers(weight, signed=False),
            **kernels,
        }
    return _fastest(weight, f"{held} head", kernels, torch.float32)


def _fastest(weight: Tensor, what: str, kernels: Makers, dtype: torch.dtype) -> Product:
    """Of kernels that take x in dtype, on this machine."""
    out, size = weight.shape
    # The values do not matter to the time.
    calls = [(torch.ones(rows, size, dtype=dtype, device=weight.device),) for rows in TIMED_ROWS]
    return fastest_kernel(f"{what} {out}x{size}, rows {TIMED_ROWS}", kernels, calls)


def _kernels(weight: Tensor, held: Weights) -> Makers:
    """From the narrowest that `held` allows to the plain product."""
    if held == "fp32":
        return _exact_kernels(weight, None)
    kernels: dict[str, Callable[[], Product | None]] = {}
    # torch's kernels read whole blocks: beyond the end of a row that is none.
    blocks = weight.shape[0] % 16 == 0 and weight.shape[1] % GROUP == 0
    if held == "int4" and blocks:
        kernels["int4"] = lambda: _by_halves(weight)
    if held in ("int4", "int8") and blocks:
        kernels["int8"] = lambda: _by_bytes(weight)
    if torch.backends.mkldnn.is_available():  # refuses processors without bf16's instructions
        kernels["bf16 oneDNN"] = lambda: _laid_out(weight.bfloat16(), None)
    kernels["fp32"] = lambda: _widened(_exact(weight, None))
    return kernels


def _exact(weight: Tensor, bias: Tensor | None) -> Product:
    """In fp32."""
    what = "fp32 product" if bias is None else "fp32 product and bias"
    return _fastest(weight, what, _exact_kernels(weight, bias), weight.dtype)


def _exact_kernels(weight: Tensor, bias: Tensor | None) -> Makers:
    plain = partial(F.linear, weight=weight, bias=bias)
    if weight.device.type != "cpu" or weight.dtype != torch.float32:
        return {"plain": lambda: plain}
    kernels: dict[str, Callable[[], Product | None]] = {}
    if torch.backends.mkldnn.is_available():
        kernels["oneDNN"] = lambda: _laid_out(weight, bias)
    return {**kernels, "transposed": lambda: _transposed(weight, bias), "plain": lambda: plain}


def _transposed(weight: Tensor, bias: Tensor | None) -> Product:
    turned = weight.t().contiguous()
    return lambda x: F.linear(x, turned.t(), bias)


def _laid_out(weight: Tensor, bias: Tensor | None) -> Product:
    matrix = torch.ops.mkldnn._reorder_linear_weight(weight, ROWS)
    multiply = torch.ops.mkldnn._linear_pointwise.default
    return lambda x: multiply(x, matrix, bias, "none", [], "")


def _widened(multiply: Product) -> Product:
    """Takes and gives bf16 by a product in fp32."""
    return lambda x: multiply(x.float()).bfloat16()


def _in_fp32(make: Callable[[], Product | None]) -> Callable[[], Product | None]:
    """Makes a product that takes and gives fp32 of one that does so in bf16."""

    def made() -> Product | None:
        multiply = make()
        return None if multiply is None else lambda x: multiply(x.bfloat16()).float()

    return made


def _by_bytes(weight: Tensor) -> Product:
    """The bytes are widened as they are read."""
    whole, scale = _in_bytes(weight)
    scale = scale.bfloat16()
    return lambda x: torch.ops.aten._weight_int8pack_mm.default(x, whole, scale)


def _in_bytes(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Whole numbers [out in] and the scale [out] of each row."""
    scale = weight.abs().amax(1).clamp_min(torch.finfo(torch.float32).tiny) / 127
    return (weight / scale[:, None]).round().to(torch.int8), scale


def _by_whole_numbers(weight: Tensor, signed: bool) -> Product | None:
    """The matrix in bytes and x in two bytes a number, a scale a row: all sums are of whole
    numbers, so exact. None where this processor does not sum bytes exactly.

    Signed rows suit AMX; VNNI multiplies unsigned by signed bytes, and oneDNN has no kernel but its
    reference loop for signed ones there, so rows can be shifted by 128.
    """
    if weight.device.type != "cpu" or not _sums_exactly(*weight.shape, signed):
        return None
    whole, scale = _in_bytes(weight)
    multiply = _byte_product(whole, scale, signed)

    def act(x: Tensor) -> Tensor:
        step = x.abs().amax(1, keepdim=True).clamp_min_(torch.finfo(x.dtype).tiny) / 127
        steps = x / step
        high = steps.round()
        low = ((steps - high) * 254).round()
        told = multiply(torch.cat([high, low]))
        return torch.add(*told.chunk(2), alpha=1 / 254).mul_(step)

    return act


def _byte_product(whole: Tensor, scale: Tensor, signed: bool) -> Product:
    """Multiplies rows of whole numbers from -127 to 127, given in fp32, by a matrix of them."""
    packed = torch.ops.onednn.qlinear_prepack(whole, [2, whole.shape[1]])
    zeros = torch.zeros(len(whole), dtype=torch.int32)
    multiply = torch.ops.onednn.qlinear_pointwise.default
    shift, dtype = (0, torch.int8) if signed else (128, torch.uint8)

    def act(rows: Tensor) -> Tensor:
        rows = (rows + shift).to(dtype)
        return multiply(
            rows, 1.0, shift, packed, scale, zeros, None, 1.0, 0, torch.float32, "none", [], ""
        )

    return act


@lru_cache(maxsize=64)
def _sums_exactly(out: int, size: int, signed: bool) -> bool:
    """Whether sums of products of bytes do not saturate in between, as they do in 16 bits on
    processors without VNNI: asked of the largest numbers, the worst case."""
    try:
        whole = torch.full((out, size), 127, dtype=torch.int8)
        told = _byte_product(whole, torch.ones(out), signed)(torch.full((2, size), 127.0))
    except RuntimeError:
        return False
    exact = torch.full_like(told, 127.0 * 127.0 * size)
    return torch.allclose(told, exact, rtol=1e-5, atol=0)


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
