"""Encoders as transformers' configuration and tensors, and what of them a layout cannot say."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from chiasm.vision.config import TowerConfig
from chiasm.vision.pretrained import Encoder, Tower
from chiasm.vision.vit import ViT

CLIP, SIGLIP = "clip_vision_model", "siglip_vision_model"
PLACED = {CLIP: 1, SIGLIP: 0}
"""Encoders with a place in the published layouts, and their tokens beside the patches."""


def vision_obstacles(encoder: Encoder, families: tuple[str, ...]) -> list[str]:
    """Why an encoder has no place in a layout that knows these families."""
    if isinstance(encoder, ViT):
        naflex = encoder.config.max_patches is not None
        return ["an encoder that takes a variable number of patches (max_patches)"] * naflex
    config = encoder.config
    if not isinstance(encoder, Tower) or not isinstance(config, TowerConfig):
        return ["two encoders fused"]
    if config.family not in families:
        return [f"an encoder of the family {config.family} (only {', '.join(families)})"]
    own = encoder.model.config.image_size
    if config.image_size != own:
        return [f"images of {config.image_size} pixels (the encoder was trained at {own})"]
    return []


def vision_parts(encoder: Encoder) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """transformers' configuration and tensors, under the names of its vision model, of an encoder
    without obstacles."""
    if isinstance(encoder, ViT):
        return _siglip_config(encoder), _siglip_tensors(encoder)
    assert isinstance(encoder, Tower)
    config = encoder.model.config.to_dict()
    return {k: v for k, v in config.items() if not k.startswith("_")}, encoder.model.state_dict()


def feature_layers(config: TowerConfig, blocks: int) -> int | list[int]:
    """The hidden states that are features, counted from the end of `blocks` blocks as LLaVA
    does."""
    layers = [chosen - blocks - 1 for chosen in config.chosen]
    return layers[0] if len(layers) == 1 else layers


def _siglip_config(encoder: ViT) -> dict[str, Any]:
    c = encoder.config
    return {
        "model_type": SIGLIP,
        "image_size": c.image_size,
        "patch_size": c.patch_size,
        "hidden_size": c.width,
        "intermediate_size": c.width * c.mlp_ratio,
        "num_hidden_layers": c.layers,
        "num_attention_heads": c.heads,
        "vision_use_head": False,
    }


def _siglip_tensors(encoder: ViT) -> dict[str, Tensor]:
    tensors = {}
    for name, value in encoder.state_dict().items():
        if name.startswith("layers."):
            tensors[f"encoder.{name}"] = value
        elif name == "position_embedding":
            tensors["embeddings.position_embedding.weight"] = value
        elif name.startswith("patch_embedding."):
            size = encoder.config.patch_size
            value = value.unflatten(1, (3, size, size)) if value.dim() == 2 else value
            tensors[f"embeddings.{name}"] = value
        else:
            tensors[name] = value
    return tensors
