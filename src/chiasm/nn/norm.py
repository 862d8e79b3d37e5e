"""Norms that torch does not ship."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class HeadNorm(nn.Module):
    """LayerNorm over each head's vector, with a weight and bias a head.

    The QK-norm of Chameleon (2405.09818, section 2.3) in the layout of its published weights:
    weight and bias [heads, head size], eps 1e-5, applied to queries and keys before RoPE. It makes
    the attention logits independent of the scale of W_q and W_k. x [B H T D] -> same.
    """

    def __init__(self, heads: int, size: int, eps: float = 1e-5):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(heads, size))
        self.bias = nn.Parameter(torch.zeros(heads, size))

    def forward(self, x: Tensor) -> Tensor:
        x = F.layer_norm(x, x.shape[-1:], eps=self.eps)
        return x * self.weight[:, None] + self.bias[:, None]
