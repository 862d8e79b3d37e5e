"""What several projectors are made of."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from chiasm.core.errors import ConfigError
from chiasm.nn.attention import attention, full_layout


def by_shape(project: Callable[[Tensor], Tensor], features: Tensor, grids: Tensor) -> Tensor:
    """project [n h w D] -> [n t E] applied to all images of one shape at a time.

    features [P D] of images with grids [N 2] -> [sum of t, E] in the images' order. No shape
    needs filling up to another, so no mask can be wrong.
    """
    shapes = [(int(h), int(w)) for h, w in grids.tolist()]
    if len(set(shapes)) == 1:
        return project(features.view(len(shapes), *shapes[0], -1)).flatten(0, 1)
    parts = features.split([h * w for h, w in shapes])
    tokens: dict[int, Tensor] = {}
    for shape in dict.fromkeys(shapes):
        members = [i for i, other in enumerate(shapes) if other == shape]
        rows = torch.stack([parts[i] for i in members]).unflatten(1, shape)
        tokens.update(zip(members, project(rows), strict=True))
    return torch.cat([tokens[i] for i in range(len(shapes))])


def merge(x: Tensor, size: int) -> Tensor:
    """Neighbours concatenated: [N h w D] -> [N, h/s · w/s, s·s·D] in reading order, also inside a
    token. Sides that s does not divide are padded with zeros. Idefics3 calls it pixel shuffle."""
    x = F.pad(x, (0, 0, 0, -x.shape[2] % size, 0, -x.shape[1] % size))
    N, H, W, D = x.shape
    x = x.view(N, H // size, size, W // size, size, D).transpose(2, 3)
    return x.reshape(N, -1, size * size * D)


def merged_shape(grid: tuple[int, int], size: int) -> tuple[int, int]:
    """Rows and columns of the size × size squares that cover a grid."""
    return -(-grid[0] // size), -(-grid[1] // size)


def start_at(scale: float, layer: nn.Module, incoming: float = 1.0) -> None:
    """Initialise a linear layer: inputs of root mean square `incoming` leave it at `scale`."""
    assert isinstance(layer, nn.Linear)
    nn.init.normal_(layer.weight, std=scale / (incoming * layer.in_features**0.5))
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


class Layers(nn.ModuleList):
    """Linear layers of these sizes with an activation between; [... sizes[0]] -> [... sizes[-1]]
    that starts at `scale` for unit inputs."""

    def __init__(
        self, sizes: list[int], scale: float, activation: Callable[[Tensor], Tensor] = F.gelu
    ):
        super().__init__(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.activation = activation
        # Of unit inputs, torch's own start makes 0.58, and GELU of that 0.4: so all along the way.
        for layer in list(self)[1:-1]:
            start_at(0.58, layer, 0.4)
        start_at(scale, self[-1], 0.4 if len(self) > 1 else 1.0)

    def forward(self, x: Tensor) -> Tensor:
        for number, layer in enumerate(self):
            x = layer(x if number == 0 else self.activation(x))
        return x


class Attention(nn.Module):
    """Multi-head attention of x [B T D] to a source [B S E] -> [B T D].

    Raises ConfigError if heads do not divide the width D.
    """

    def __init__(self, width: int, source: int, heads: int, bias: bool = True):
        super().__init__()
        check_heads(width, heads)
        self.heads = heads
        self.q_proj = nn.Linear(width, width, bias=bias)
        self.k_proj = nn.Linear(source, width, bias=bias)
        self.v_proj = nn.Linear(source, width, bias=bias)
        self.out_proj = nn.Linear(width, width, bias=bias)

    def forward(self, x: Tensor, source: Tensor, values: Tensor | None = None) -> Tensor:
        """values [B S E]: what is mixed, if not the source itself."""
        q, k, v = (
            project(y).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for project, y in (
                (self.q_proj, x),
                (self.k_proj, source),
                (self.v_proj, source if values is None else values),
            )
        )
        return self.out_proj(attention(q, k, v, full_layout()).transpose(1, 2).flatten(2))


def check_heads(width: int, heads: int) -> None:
    """Raise ConfigError if a width cannot be split over these heads."""
    if width % heads:
        raise ConfigError(
            f"model.projector: {heads} heads cannot share a width of {width}; "
            "choose heads that divide it"
        )
