"""BLIP-2's querying transformer (2301.12597, section 3.1), its image side."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from chiasm.mllm.config import QFormerConfig
from chiasm.mllm.projectors.base import Projector
from chiasm.mllm.projectors.parts import Attention, by_shape, start_at


class QFormerProjector(Projector):
    """Learned queries through a BERT (post-norm, start at 0.02) that looks at the features in
    layers 0, 2, 4, …, then a linear layer to the language model's width; as many tokens an image
    as there are queries. Without BERT's dropout. Raises ConfigError if heads do not divide the
    width."""

    def __init__(self, config: QFormerConfig, vision: int, language: int, scale: float):
        super().__init__()
        self.config = config
        width = config.width or vision
        self.queries = nn.Parameter(torch.randn(config.queries, width) * 0.02)
        self.norm = nn.LayerNorm(width, eps=1e-12)
        self.layers = nn.ModuleList(
            Layer(width, config.heads, None if number % 2 else vision)
            for number in range(config.layers)
        )
        self.out = nn.Linear(width, language)
        for module in self.layers.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        start_at(scale, self.out)

    def tokens(self, grid: tuple[int, int]) -> int:
        return self.config.queries

    def forward(self, features: Tensor, grids: Tensor) -> Tensor:
        return by_shape(self._query, features, grids)

    def _query(self, x: Tensor) -> Tensor:
        """[n h w D] -> [n queries, language]"""
        queries = self.norm(self.queries).expand(len(x), -1, -1)
        for layer in self.layers:
            queries = layer(queries, x.flatten(1, 2))
        return self.out(queries)


class Layer(nn.Module):
    """Queries [n Q D] look at each other, at features [n T vision] (with vision None: not), then an
    MLP; a norm after each."""

    def __init__(self, width: int, heads: int, vision: int | None):
        super().__init__()
        self.self_attention = Attention(width, width, heads)
        self.self_norm = nn.LayerNorm(width, eps=1e-12)
        if vision is not None:
            self.cross_attention = Attention(width, vision, heads)
            self.cross_norm = nn.LayerNorm(width, eps=1e-12)
        self.looks = vision is not None
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)
        self.mlp_norm = nn.LayerNorm(width, eps=1e-12)

    def forward(self, x: Tensor, features: Tensor) -> Tensor:
        x = self.self_norm(x + self.self_attention(x, x))
        if self.looks:
            x = self.cross_norm(x + self.cross_attention(x, features))
        return self.mlp_norm(x + self.down(F.gelu(self.up(x))))
