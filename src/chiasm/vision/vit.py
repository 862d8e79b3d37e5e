"""A vision transformer over packed patches, the shape of SigLIP's tower (2303.15343, appendix)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from chiasm.core.device import moved_tensor
from chiasm.nn.attention import AttentionPlan, attention, full_layout, images_layout
from chiasm.nn.norm import lowered
from chiasm.vision.config import ViTConfig


class SelfAttention(nn.Module):
    """Bidirectional multi-head attention with biases. x [B T D] -> [B T D]."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor, layout: AttentionPlan, query: Tensor | None = None) -> Tensor:
        source = x if query is None else query
        B, T, D = source.shape
        q, k, v = (
            project(y).view(B, y.shape[1], self.heads, -1).transpose(1, 2)
            for project, y in ((self.q_proj, source), (self.k_proj, x), (self.v_proj, x))
        )
        return self.out_proj(attention(q, k, v, layout).transpose(1, 2).reshape(B, T, D))


class MLP(nn.Module):
    """Two layers with tanh-GELU."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class EncoderBlock(nn.Module):
    """Pre-norm attention and MLP."""

    def __init__(self, width: int, heads: int, hidden: int):
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(width, eps=1e-6)
        self.self_attn = SelfAttention(width, heads)
        self.layer_norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = MLP(width, hidden)

    def forward(self, x: Tensor, layout: AttentionPlan) -> Tensor:
        x = x + self.self_attn(lowered(self.layer_norm1(x)), layout)
        return x + self.mlp(self.layer_norm2(x))


class ViT(nn.Module):
    """patches [P, 3·p·p] of N images with grids [N 2] -> features [P, width], or as many widths
    as blocks are chosen, each through the last norm."""

    def __init__(self, config: ViTConfig):
        super().__init__()
        self.config = config
        side = config.image_size // config.patch_size
        self.patch_embedding = nn.Linear(3 * config.patch_size**2, config.width)
        self.position_embedding = nn.Parameter(torch.randn(side * side, config.width) * 0.02)
        self.layers = nn.ModuleList(
            EncoderBlock(config.width, config.heads, config.width * config.mlp_ratio)
            for _ in range(config.layers)
        )
        self.post_layernorm = nn.LayerNorm(config.width, eps=1e-6)

    special = 0
    """Tokens of an image that are no patches."""

    @property
    def towers(self) -> list[ViT]:
        """The encoders it is made of."""
        return [self]

    def forward(self, patches: Tensor, grids: Tensor) -> Tensor:
        x = self.patch_embedding(patches)
        shapes = [(int(h), int(w)) for h, w in grids.tolist()]
        if len(set(shapes)) == 1:  # one resolution: rows are images, nothing to gather
            x = x.view(len(shapes), -1, x.shape[-1]) + self._positions(shapes[0])
            layout = full_layout()
        else:
            x = (x + torch.cat([self._positions(shape) for shape in shapes]))[None]
            layout = images_layout([h * w for h, w in shapes], x.device)
        chosen = self.config.chosen or (len(self.layers),)
        states = {0: x}
        for number, layer in enumerate(self.layers, 1):
            x = layer(x, layout)
            if number in chosen:
                states[number] = x
        features = [self.post_layernorm(states[number]) for number in chosen]
        return torch.cat(features, -1).flatten(0, 1)

    def _positions(self, shape: tuple[int, int]) -> Tensor:
        """Learned positions, interpolated where the grid differs from the trained one."""
        side = self.config.image_size // self.config.patch_size
        if shape == (side, side):
            return self.position_embedding
        # In fp32: on a CPU torch resizes nothing in bfloat16, which frozen weights are held in.
        grid = self.position_embedding.float().view(1, side, side, -1).permute(0, 3, 1, 2)
        grid = F.interpolate(grid, size=shape, mode="bilinear", align_corners=False, antialias=True)
        positions = grid.permute(0, 2, 3, 1).reshape(shape[0] * shape[1], -1)
        return positions.to(self.position_embedding.dtype)


class AttentionPool(nn.Module):
    """SigLIP's head: one learned query attends to an image's patches, then an MLP.

    features [P D] with grids [N 2] -> [N D]
    """

    def __init__(self, config: ViTConfig):
        super().__init__()
        self.probe = nn.Parameter(torch.randn(1, 1, config.width) * 0.02)
        self.attention = SelfAttention(config.width, config.heads)
        self.layernorm = nn.LayerNorm(config.width, eps=1e-6)
        self.mlp = MLP(config.width, config.width * config.mlp_ratio)

    def forward(self, features: Tensor, grids: Tensor) -> Tensor:
        counts = grids.prod(dim=1).tolist()
        rows = nn.utils.rnn.pad_sequence(list(features.split(counts)), batch_first=True)
        layout = full_layout()
        if len(set(counts)) > 1:
            real = torch.arange(rows.shape[1]) < torch.tensor(counts)[:, None]
            layout = AttentionPlan(moved_tensor(real[:, None, None], rows.device))
        x = self.attention(rows, layout, self.probe.expand(len(rows), -1, -1))[:, 0]
        return x + self.mlp(self.layernorm(x))
