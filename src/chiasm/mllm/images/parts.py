"""What ways of showing images need of the model: a learned end of row, words of their own."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from chiasm.core.errors import ConfigError
from chiasm.mllm.config import AnyResConfig, CustomImages, ImagesConfig, SplitConfig
from chiasm.mllm.images import build_mode
from chiasm.mllm.images.split import words_needed
from chiasm.mllm.projectors import Projector
from chiasm.mllm.vocabulary import add_tokens
from chiasm.vision.config import EncoderConfig


def add_image_parts(
    config: ImagesConfig, encoder: EncoderConfig, projector: Projector, language: Any, words: Any
) -> None:
    """Give the projector an `image_newline` (AnyRes), the language model and its tokenizer the
    special tokens that say where a tile is (Idefics3), each where it is used and not there yet.
    Raises ConfigError for a class token that the projector would resample as an image."""
    if encoder.class_token and projector.shape((1, 1)) != (1, 1):
        raise ConfigError(
            "model.vision.class_token: this projector makes other than one token of one feature; "
            "choose one that works feature by feature (LinearConfig, MLPConfig)"
        )
    if isinstance(config, AnyResConfig):
        width = language.config.hidden_size
        projector.image_newline = nn.Parameter(torch.randn(width) * width**-0.5)  # LLaVA-NeXT's
    add_tokens(language, words, image_words(config, encoder, projector))


def image_words(config: ImagesConfig, encoder: EncoderConfig, projector: Projector) -> list[str]:
    """The special tokens that a way of showing images puts between tiles."""
    if isinstance(config, CustomImages):
        return config.special_tokens(encoder)
    if not isinstance(config, SplitConfig):
        return []
    return words_needed(config, build_mode(config, encoder, projector, 0, lambda _: []).side)
