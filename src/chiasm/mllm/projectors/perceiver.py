"""Flamingo's perceiver resampler (2204.14198, section 2.1 and appendix A.1.1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from chiasm.mllm.config import PerceiverConfig
from chiasm.mllm.projectors.base import Projector
from chiasm.mllm.projectors.parts import Attention, by_shape, start_at


class PerceiverProjector(Projector):
    """As many tokens an image as there are latents. Flamingo's positions in time have nothing to
    say about single images and are left out; a linear layer carries the latents to the language
    model's width. Raises ConfigError if heads do not divide the encoder's width."""

    def __init__(self, config: PerceiverConfig, vision: int, language: int, scale: float):
        super().__init__()
        self.config = config
        # Small beside the features: tokens start as what latents saw, not as what they are.
        self.latents = nn.Parameter(torch.randn(config.latents, vision) * 0.02)
        self.layers = nn.ModuleList(Layer(vision, config.heads) for _ in range(config.layers))
        self.norm = nn.LayerNorm(vision)
        self.out = nn.Linear(vision, language)
        start_at(scale, self.out)

    def tokens(self, grid: tuple[int, int]) -> int:
        return self.config.latents

    def forward(self, features: Tensor, grids: Tensor) -> Tensor:
        return by_shape(self._resample, features, grids)

    def _resample(self, x: Tensor) -> Tensor:
        """[n h w D] -> [n latents, language]"""
        latents = self.latents.expand(len(x), -1, -1)
        for layer in self.layers:
            latents = layer(latents, x.flatten(1, 2))
        return self.out(self.norm(latents))


class Layer(nn.Module):
    """Latents [n L D] look at features [n T D] and at themselves, then an MLP with squared ReLU;
    no biases but the norms'."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.feature_norm = nn.LayerNorm(width)
        self.latent_norm = nn.LayerNorm(width)
        self.attention = Attention(width, width, heads, bias=False)
        self.mlp_norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)

    def forward(self, latents: Tensor, features: Tensor) -> Tensor:
        query = self.latent_norm(latents)
        seen = torch.cat([self.feature_norm(features), query], dim=1)
        latents = latents + self.attention(query, seen)
        return latents + self.down(F.relu(self.up(self.mlp_norm(latents))).square())
