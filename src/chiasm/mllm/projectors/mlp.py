"""LLaVA-1.5's MLP projector (2310.03744, section 3.2), with optional merging of patches."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from chiasm.mllm.config import MLPConfig


class MLPProjector(nn.Module):
    """features [P, vision] of pictures with grids [N 2] -> tokens [sum of tokens, language].

    Tokens of a picture come in reading order of its merged grid; sides that merge does not divide
    are padded with zeros.
    """

    def __init__(self, config: MLPConfig, vision: int, language: int, scale: float):
        super().__init__()
        self.config = config
        hidden = config.hidden or language
        sizes = [vision * config.merge**2, *[hidden] * (config.layers - 1), language]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        # Visual tokens start as large as the language model's own embeddings: `scale` is their
        # root mean square; the last hidden activation's is about 0.6 of a unit normal's.
        last = self.layers[-1]
        assert isinstance(last, nn.Linear)
        nn.init.normal_(last.weight, std=scale / (0.4 * last.in_features**0.5))
        nn.init.zeros_(last.bias)

    def tokens(self, grid: tuple[int, int]) -> int:
        """How many tokens a picture of this grid becomes."""
        merge = self.config.merge
        return -(-grid[0] // merge) * -(-grid[1] // merge)

    def forward(self, features: Tensor, grids: Tensor) -> Tensor:
        x = self._merged(features, grids) if self.config.merge > 1 else features
        for number, layer in enumerate(self.layers):
            x = layer(x if number == 0 else F.gelu(x))
        return x

    def _merged(self, features: Tensor, grids: Tensor) -> Tensor:
        merge, rows = self.config.merge, []
        shapes = [(int(h), int(w)) for h, w in grids.tolist()]
        if len(set(shapes)) == 1:
            return _merge(features.view(len(shapes), *shapes[0], -1), merge)
        for part, (h, w) in zip(features.split([h * w for h, w in shapes]), shapes, strict=True):
            rows.append(_merge(part.view(1, h, w, -1), merge))
        return torch.cat(rows)


def _merge(x: Tensor, merge: int) -> Tensor:
    """[N h w D] -> [N · h/m · w/m, m·m·D]"""
    x = F.pad(x, (0, 0, 0, -x.shape[2] % merge, 0, -x.shape[1] % merge))
    N, H, W, D = x.shape
    x = x.view(N, H // merge, merge, W // merge, merge, D).transpose(2, 3)
    return x.reshape(-1, merge * merge * D)
