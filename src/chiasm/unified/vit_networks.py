"""Transformers on both sides of the bottleneck (ViT-VQGAN, 2110.04627, section 3.1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from chiasm.unified.config import TokenizerViT
from chiasm.vision.config import ViTConfig
from chiasm.vision.vit import ViT


class ViTEncoder(nn.Module):
    """[N 3 H W] -> [N latent H/patch W/patch]; learned positions, interpolated to other sizes."""

    def __init__(self, config: TokenizerViT, image_size: int, latent: int):
        super().__init__()
        self.patch = config.patch_size
        self.vit = _vit(config, image_size)
        self.out = nn.Linear(config.width, latent)

    def forward(self, pixels: Tensor) -> Tensor:
        return _over_places(self.vit, self.out, F.pixel_unshuffle(pixels, self.patch))


class ViTDecoder(nn.Module):
    """[N latent h w] -> [N 3 h·patch w·patch]"""

    def __init__(self, config: TokenizerViT, image_size: int, latent: int):
        super().__init__()
        self.patch = config.patch_size
        self.vit = _vit(config, image_size)
        self.vit.patch_embedding = nn.Linear(latent, config.width)  # it is given codes, not pixels
        self.out = nn.Linear(config.width, 3 * config.patch_size**2)

    @property
    def last(self) -> Tensor:
        """The weight that writes the pixels."""
        return self.out.weight

    def forward(self, z: Tensor) -> Tensor:
        return F.pixel_shuffle(_over_places(self.vit, self.out, z), self.patch)


def _vit(config: TokenizerViT, image_size: int) -> ViT:
    shape = (config.width, config.layers, config.heads, config.mlp_ratio)
    return ViT(ViTConfig(image_size, config.patch_size, *shape))


def _over_places(vit: ViT, out: nn.Linear, maps: Tensor) -> Tensor:
    """maps [N C h w] through both, place by place -> [N C' h w]."""
    N, C, h, w = maps.shape
    grids = torch.tensor([[h, w]]).expand(N, 2)
    rows = out(vit(maps.movedim(1, -1).reshape(-1, C), grids))
    return rows.view(N, h, w, -1).movedim(-1, 1)
