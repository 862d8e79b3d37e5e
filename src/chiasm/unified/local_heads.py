"""Attention heads that begin by looking at neighbours.

A transformer from scratch first has to find out that images have two dimensions. Here some heads
start with a preference for the code to the left, above and beside that, which is all a convolution
knows (ConViT, 2103.10697, section 3, gives heads the same start by other means). The preference
lives in the biases of the QK-norm: a constant query and key, turned by RoPE, score by distance
alone. It is a start, not a constraint, and what is saved has the published layout.
"""

from __future__ import annotations

import torch
from torch import Tensor

from chiasm.nn.norm import HeadNorm
from chiasm.nn.rope import rotate, rotation, rotation_2d
from chiasm.unified.config import UnifiedConfig
from chiasm.unified.model import Unified


@torch.no_grad()
def look_nearby(model: Unified, columns: int, strength: float = 2.5, frequencies: int = 10) -> None:
    """Turn heads of the first half of the layers towards the tokens 1, columns, columns - 1 and
    columns + 1 back, one head each and in every layer; columns: codes in a row of an image. With
    masked diffusion, which sees both sides, 1 and columns back and ahead.

    strength: length of the constant query and key in each of the `frequencies` fastest rotations;
    with a rope_theta of 100 the wanted token stands about 1.5 nats above its neighbours.
    """
    config = model.config
    size = config.hidden_size // config.heads
    distances = (1, columns, columns - 1, columns + 1)
    if config.image_objective == "masked":
        distances = (1, columns, -1, -columns)
    for layer in list(model.layers)[: (config.layers + 1) // 2]:
        q_norm, k_norm = layer.self_attn.q_norm, layer.self_attn.k_norm  # type: ignore[union-attr]
        if not (isinstance(q_norm, HeadNorm) and isinstance(k_norm, HeadNorm)):
            return  # without QK-norm there is no bias to hold it
        for head, distance in enumerate(distances[: config.kv_heads]):
            key = torch.zeros(1, 1, 1, size)
            key[..., : min(frequencies, size // 2)] = strength
            query = rotate(key, *_back(distance, columns, size, config))
            k_norm.bias[head] = key[0, 0, 0]
            for sharer in range(config.heads // config.kv_heads):
                row = head * (config.heads // config.kv_heads) + sharer
                q_norm.bias[row] = query[0, 0, 0]


def _back(distance: int, columns: int, size: int, config: UnifiedConfig) -> tuple[Tensor, Tensor]:
    """The rotation to the token `distance` before (negative: after), in one dimension or two."""
    if config.rope == "1d":
        return rotation(torch.tensor([[-distance]]), size, config.rope_theta)
    up = (distance + 1) // columns  # the neighbour above on the right is one row up, not one less
    aside = up * columns - distance
    return rotation_2d(torch.tensor([[-up]]), torch.tensor([[aside]]), size, config.rope_theta)
