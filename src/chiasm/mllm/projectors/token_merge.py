"""Token merging (ToMe, 2210.09461, section 3), repeated on the encoder's features until few enough
are left, then an MLP."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from chiasm.mllm.config import TokenMergeConfig
from chiasm.mllm.projectors.base import Projector
from chiasm.mllm.projectors.parts import Layers, by_shape


class TokenMergeProjector(Projector):
    """Tokens come in the reading order of the patches that others were merged into. ToMe compares
    the keys of an encoder's layers; here only the features are at hand, so they are compared."""

    def __init__(self, config: TokenMergeConfig, vision: int, language: int, scale: float):
        super().__init__()
        self.config = config
        hidden = [config.hidden or language] * (config.layers - 1)
        self.layers = Layers([vision, *hidden, language], scale)

    def tokens(self, grid: tuple[int, int]) -> int:
        return min(self.config.tokens, grid[0] * grid[1])

    def forward(self, features: Tensor, grids: Tensor) -> Tensor:
        return self.layers(by_shape(self._merge, features, grids))

    def _merge(self, x: Tensor) -> Tensor:
        """[n h w D] -> [n t D]"""
        return merge_tokens(x.flatten(1, 2), self.config.tokens)


def merge_tokens(x: Tensor, count: int) -> Tensor:
    """[n T D] -> [n min(T, count) D]: each token the mean of the inputs merged into it.

    Bipartite soft matching: tokens are dealt in turn to two sets, each of the first set finds the
    most similar (cosine) of the second, and the best pairs are merged, at most half of all tokens
    in one round.
    """
    size = torch.ones_like(x[..., :1])
    while x.shape[1] > count:
        x, size = _round(x, size, min(x.shape[1] - count, x.shape[1] // 2))
    return x


def _round(x: Tensor, size: Tensor, pairs: int) -> tuple[Tensor, Tensor]:
    """One matching: x [n T D] of sizes [n T 1] -> the same with `pairs` tokens fewer."""
    n, T, D = x.shape
    unit = F.normalize(x.detach(), dim=-1)  # which ones merge has no gradient
    likeness, partner = (unit[:, 0::2] @ unit[:, 1::2].mT).max(-1)
    chosen = likeness.topk(pairs, dim=-1).indices
    source, target = 2 * chosen, 2 * partner.gather(1, chosen) + 1
    wide = (n, pairs, D)
    weighted = x * size
    leaving = weighted.gather(1, source[..., None].expand(wide))
    total = weighted.scatter_add(1, target[..., None].expand(wide), leaving)
    size = size.scatter_add(1, target[..., None], size.gather(1, source[..., None]))
    left = torch.ones_like(x[..., 0]).scatter(1, source, 0.0)
    kept = left.sort(dim=1, descending=True, stable=True).indices[:, : T - pairs, None]
    size = size.gather(1, kept)
    return total.gather(1, kept.expand(n, T - pairs, D)) / size, size
