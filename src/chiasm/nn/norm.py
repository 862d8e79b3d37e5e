"""Norms, and the way from a norm into products."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from chiasm.nn.autotune import fastest_kernel, fastest_name

ROWS = (1, 64)
"""Rows that kernels without gradients are timed with: of a decoding step and of a prompt."""

TRAINED_ROWS = 1024
"""And those with gradients: of a batch."""

Kernel = Callable[[Tensor, Tensor, float], Tensor]
"""(x [... size], weight [size] of x's dtype, eps) -> normalised x."""


class RMSNorm(nn.RMSNorm):
    """torch's RMSNorm with weight. On a CPU it can be computed in a third of torch's time (LOG.md);
    whether it is so here is timed once for a width (nn/autotune.py)."""

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or x.dtype not in (torch.float32, torch.float64):
            # Squares of bfloat16 are summed in fp32 there; weights in fp32 would cost the kernel.
            return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)
        eps = torch.finfo(x.dtype).eps if self.eps is None else self.eps
        trained = torch.is_grad_enabled()
        if not trained and self.weight.dtype != x.dtype:
            return _by_lengths(x, self.weight, eps)  # a frozen weight in less, promoted
        # A frozen weight may be held in less (nn/precision.py), which the kernel does not take.
        weight = self.weight if self.weight.requires_grad else self.weight.to(x.dtype)
        # A compiler makes kernels of its own, and a tensor without data has nothing to time.
        if torch.compiler.is_compiling() or type(x) is not Tensor:
            return _by_function(x, weight, eps) if trained else _by_lengths(x, weight, eps)
        return _kernel(x.shape[-1], x.dtype, trained)(x, weight, eps)


@cache
def _kernel(size: int, dtype: torch.dtype, trained: bool) -> Kernel:
    """The kernel for a width on this machine."""
    eps = torch.finfo(dtype).eps
    with torch.device("cpu"), torch.inference_mode(False):
        weight = torch.ones(size, dtype=dtype)
        xs = [torch.ones(rows, size, dtype=dtype) for rows in ROWS]
        if not trained:
            makers = {"vector norm": lambda: _by_lengths, "plain": lambda: _plain}
            return fastest_kernel(
                f"RMS norm {size} {dtype}", makers, [(x, weight, eps) for x in xs]
            )
        makers = {"own backward": lambda: _by_function, "plain": lambda: _plain}
        x = torch.ones(TRAINED_ROWS, size, dtype=dtype)
        passes = {name: lambda make=make: _both_passes(make()) for name, make in makers.items()}
        name = fastest_name(f"RMS norm {size} {dtype} trained", passes, [(x, weight, eps)])
    return makers[name]()


def _both_passes(kernel: Kernel) -> Kernel:
    def act(x: Tensor, weight: Tensor, eps: float) -> Tensor:
        with torch.enable_grad():
            x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
            return torch.autograd.grad(kernel(x, weight, eps), (x, weight), x.detach())[0]

    return act


def _plain(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return F.rms_norm(x, x.shape[-1:], weight, eps)


def _by_lengths(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x * _inverse(x, eps) * weight


def _by_function(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return _RMSNorm.apply(x, weight, eps)  # type: ignore[return-value]


def _inverse(x: Tensor, eps: float) -> Tensor:
    """r = (mean(x²) + eps)^-1/2 [... 1]."""
    r = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return r.square_().div_(x.shape[-1]).add_(eps).rsqrt_()


class _RMSNorm(torch.autograd.Function):
    """x·r·weight with r = (mean(x²) + eps)^-1/2 (Zhang & Sennrich, 1910.07467, section 4).

    The backward is LayerNorm's kernel told that the mean is 0; it subtracts mean(gradient · weight)
    · r for the mean's own dependence on x, which is added back.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        r = _inverse(x, eps)
        ctx.save_for_backward(x, weight, r)
        return x * r * weight

    @staticmethod
    def backward(ctx, *gradients: Tensor):
        x, weight, r = ctx.saved_tensors
        (gradient,) = gradients
        size = x.shape[-1]
        dx, dweight, _ = torch.ops.aten.native_layer_norm_backward(
            gradient, x, [size], torch.zeros_like(r), r, weight, None, [True, True, False]
        )
        return dx.add_((gradient @ weight)[..., None] * (r / size)), dweight, None


class GroupNorm(nn.GroupNorm):
    """Always in fp32: the bfloat16 kernel takes eight times as long on a CPU."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.float())


class HeadNorm(nn.Module):
    """LayerNorm over each head's vector, with a weight and bias a head.

    The QK-norm of Chameleon (2405.09818, section 2.3) in the layout of its published weights:
    weight and bias [heads, head size], eps 1e-5, applied to queries and keys before RoPE. It makes
    the attention logits independent of the scale of W_q and W_k. x [... heads size] -> same.
    """

    def __init__(self, heads: int, size: int, eps: float = 1e-5):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(heads, size))
        self.bias = nn.Parameter(torch.zeros(heads, size))

    def forward(self, x: Tensor) -> Tensor:
        x = F.layer_norm(x, x.shape[-1:], eps=self.eps)
        return torch.addcmul(self.bias, x, self.weight)


class HeadRMSNorm(nn.Module):
    """RMS norm over each head's vector, with a weight a head and no bias; as HeadNorm otherwise
    (the QK-norm of OLMo 2, 2501.00656, section 3.3.3, a head at a time)."""

    def __init__(self, heads: int, size: int, eps: float = 1e-5):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(heads, size))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], eps=self.eps) * self.weight


def lowered(x: Tensor) -> Tensor:
    """x in autocast's dtype where it is on: several layers that read it then share one cast."""
    device = x.device.type
    return x.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else x
