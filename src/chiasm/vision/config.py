"""Configurations of the visual encoders; importable without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class ViTConfig:
    """A vision transformer, by default layer for layer SigLIP's tower.

    image_size and patch_size in pixels. max_patches None squeezes every picture to image_size
    squared; a number keeps the aspect within that many patches (position embeddings are
    interpolated). layers, width, heads, mlp_ratio as usual.
    """

    image_size: int = 64
    patch_size: int = 8
    width: int = 128
    layers: int = 4
    heads: int = 4
    mlp_ratio: int = 4
    max_patches: int | None = None


@dataclass(frozen=True)
class ContrastiveConfig:
    """A visual and a text tower trained against each other.

    loss: SigLIP's sigmoid or CLIP's softmax. start_bias: the sigmoid's first bias, SigLIP's -10;
    few distinct captions have many more positives, for which it starts far too low. text_*: the
    text tower's shape; vocabulary is the size of its tokenizer, context the longest caption in
    tokens. shift: pixels of random translation; mirror: mirrored pictures are as likely (only for
    captions that do not speak of sides).
    """

    vision: ViTConfig = ViTConfig()
    loss: Literal["sigmoid", "softmax"] = "sigmoid"
    start_bias: float = -10.0
    embedding: int = 128
    text_width: int = 64
    text_layers: int = 2
    text_heads: int = 2
    vocabulary: int = 512
    context: int = 16
    shift: int = 0
    mirror: bool = True
