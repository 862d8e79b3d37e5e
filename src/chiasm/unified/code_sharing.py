"""What similar image codes have in common, shared by their rows of the embedding and the head.

With a row of its own, a code learns only from the images in which just that code occurs. Here a
row is its own part plus a linear map of the code's features, so that what is learned of one code
holds for its neighbours (an additive form of the token factorisation of MAGVIT-v2, 2310.05737).
It is a way to train: hub.folder writes the sums, and what is saved is a plain table.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from chiasm.unified.model import Unified


class SharedRows(nn.Module):
    """weight [V D] -> the same with features [codes F] mapped into D added to the last rows."""

    features: Tensor

    def __init__(self, features: Tensor, width: int, spread: float = 0.02):
        super().__init__()
        self.register_buffer("features", features, persistent=False)
        self.map = nn.Parameter(spread * torch.randn(features.shape[1], width))

    def forward(self, weight: Tensor) -> Tensor:
        text = len(weight) - len(self.features)
        return torch.cat([weight[:text], weight[text:] + self.features @ self.map])


def share_codes(model: Unified, features: Tensor, trained: bool = False) -> None:
    """Give the model's embedding and head shared rows for its image codes, features [codes F].
    trained: the model is trained already, and its function stays as it is: the maps start at 0."""
    for layer in filter(None, (model.embed_tokens, model.lm_head)):
        shared = SharedRows(features, model.config.hidden_size, 0.0 if trained else 0.02)
        parametrize.register_parametrization(layer, "weight", shared, unsafe=True)
