"""Norms, and the way from a norm into products."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class RMSNorm(nn.RMSNorm):
    """torch's RMSNorm with weight, in a third of its time on a CPU (LOG.md)."""

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or x.dtype not in (torch.float32, torch.float64):
            # Squares of bfloat16 are summed in fp32 there; weights in fp32 would cost the kernel.
            return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)
        eps = torch.finfo(x.dtype).eps if self.eps is None else self.eps
        if not torch.is_grad_enabled():
            return x * _inverse(x, eps) * self.weight
        # A frozen weight may be held in less (nn/precision.py), which the kernel does not take.
        weight = self.weight if self.weight.requires_grad else self.weight.to(x.dtype)
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
