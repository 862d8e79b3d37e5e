"""Norms that torch does not ship, and the way from a norm into products."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


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
        return x * self.weight + self.bias


def lowered(x: Tensor) -> Tensor:
    """x in autocast's dtype where it is on: several layers that read it then share one cast."""
    device = x.device.type
    return x.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else x
