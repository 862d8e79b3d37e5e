"""How images are shown to the encoder: one file a way."""

from __future__ import annotations

from chiasm.mllm.config import (
    AnyResConfig,
    CustomImages,
    ImagesConfig,
    ResizeConfig,
    SplitConfig,
)
from chiasm.mllm.images.anyres import AnyResMode
from chiasm.mllm.images.base import ImageMode, Words
from chiasm.mllm.images.single import SingleMode
from chiasm.mllm.images.split import SplitMode
from chiasm.mllm.projectors import Projector
from chiasm.vision.config import EncoderConfig

__all__ = ["ImageMode", "Words", "build_mode", "for_frames"]

_KINDS = {AnyResConfig: AnyResMode, SplitConfig: SplitMode}


def build_mode(
    config: ImagesConfig,
    encoder: EncoderConfig,
    projector: Projector,
    image_token: int,
    words: Words | None = None,
) -> ImageMode:
    """What a configuration describes. Raises ConfigError for sizes that do not fit."""
    if isinstance(config, CustomImages):
        return config.build(encoder, projector, image_token, words)
    kind = _KINDS.get(type(config), SingleMode)
    return kind(config, encoder, projector, image_token, words)


def for_frames(config: ImagesConfig) -> ImagesConfig:
    """How the frames of a clip are shown: never in tiles."""
    if isinstance(config, CustomImages):
        return config.for_frames()
    if isinstance(config, AnyResConfig):
        return ResizeConfig()
    if isinstance(config, SplitConfig):
        return SplitConfig(config.longest_edge, config.max_image_size, False)
    return config
