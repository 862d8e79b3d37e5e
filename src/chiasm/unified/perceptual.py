"""Distance between what a frozen encoder sees in two images (Johnson et al., 1603.08155,
section 3.2; with unit features as LPIPS, 1801.03924, equation 1, without learned weights)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Perceptual(nn.Module):
    """encoder: one of ours or of transformers (vision.vit.ViT, vision.pretrained), taking patches
    [P, 3·p·p] in [-1, 1] with grids [N 2] to features [P width]. It never trains."""

    def __init__(self, encoder: Any):
        super().__init__()
        self.encoder = encoder.requires_grad_(False)
        self.patch = encoder.config.patch_size
        self.side = encoder.config.image_size // self.patch * self.patch
        self.train(False)

    def train(self, mode: bool = True) -> Perceptual:
        """As in evaluation always: it is a measure."""
        return super().train(False)

    def forward(self, drawn: Tensor, pixels: Tensor) -> Tensor:
        """drawn and pixels [N 3 H W] in [-1, 1] -> [N], the squared distance of their unit
        features, mean over the patches: 0 to 4. Gradients reach `drawn` only."""
        with torch.no_grad():
            wanted = self._features(pixels)
        return (self._features(drawn) - wanted).square().sum(-1).mean(1)

    def _features(self, pixels: Tensor) -> Tensor:
        """[N P width] at the encoder's own resolution."""
        if pixels.shape[-2:] != (self.side, self.side):
            size = (self.side, self.side)
            pixels = F.interpolate(pixels.float(), size=size, mode="bilinear", antialias=True)
        tiles = F.pixel_unshuffle(pixels, self.patch)
        N, C, h, w = tiles.shape
        patches = tiles.movedim(1, -1).reshape(-1, C)
        features = self.encoder(patches, torch.tensor([[h, w]]).expand(N, 2))
        return F.normalize(features.float().view(N, h * w, -1), dim=-1)
