"""MLLMs on disk: encoder and projector in model.safetensors, the language model (adapters merged)
as a standard transformers checkpoint in `language/`; an encoder of transformers likewise in
`vision/`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from chiasm.core.errors import ConfigError
from chiasm.data.clips import Clips
from chiasm.data.pictures import PictureProcessor
from chiasm.data.processor import Processor
from chiasm.data.template import ChatTemplate
from chiasm.hub import folder as files
from chiasm.mllm.adapter import add_adapters, merge_adapters
from chiasm.mllm.codec import MLLMCodec
from chiasm.mllm.config import MLLMConfig, SavedMLLM
from chiasm.mllm.images.parts import add_picture_parts
from chiasm.mllm.language import load_language, quiet
from chiasm.mllm.model import MLLM
from chiasm.mllm.projectors import build_projector
from chiasm.vision.config import ViTConfig
from chiasm.vision.pretrained import Encoder, restore_encoder, save_encoder
from chiasm.vision.vit import ViT


def build(config: MLLMConfig, vision: Encoder) -> tuple[MLLM, Processor]:
    """A model to train: a trained encoder, a fresh projector, a pretrained language model."""
    language, tokenizer = load_language(config.language)
    with torch.no_grad():
        table = language.get_input_embeddings().weight
        scale = table.square().mean().sqrt().item()
    model, processor = _assemble(config, vision, language, tokenizer, scale)
    if config.lora is not None:
        add_adapters(model.language, config.lora)
    _freeze(model, config.frozen_layers)
    return model, processor


def word_processor(model: MLLM, processor: Processor, context: int = 64) -> PictureProcessor:
    """Pictures with their captions in the language model's own words, for the alignment of visual
    tokens with them; captions are cut at `context` tokens."""
    vit = model.vision.config
    words = processor.template.tokenizer.backend_tokenizer  # type: ignore[attr-defined]
    return PictureProcessor(
        vit.image_size, vit.patch_size, vit.max_patches, words, context, vit.resample
    )


def _freeze(model: MLLM, count: int) -> None:
    """Hold the language model's embedding and first `count` layers in every stage (train.optim)."""
    if count > len(model.layers()):
        raise ConfigError(
            f"model.frozen_layers: {count}, but the language model has {len(model.layers())} layers"
        )
    held = [model.language.get_input_embeddings(), *model.layers()[:count]] if count else []
    for module in held:
        for parameter in module.parameters():
            parameter.frozen = True  # type: ignore[attr-defined]


def save(path: Path, model: MLLM, processor: Processor, config: MLLMConfig) -> None:
    """Merges the adapters into the matrices: afterwards the model has none."""
    merge_adapters(model.language)
    files.write(path, SavedMLLM(config, model.vision.config), _ours(model))
    if not isinstance(model.vision, ViT):
        save_encoder(path / "vision", model.vision)
    with quiet():
        model.language.save_pretrained(path / "language")
        processor.template.tokenizer.save_pretrained(path / "language")  # type: ignore[attr-defined]


def load(path: Path) -> tuple[MLLM, Processor]:
    saved = files.read_config(path, SavedMLLM)
    language, tokenizer = load_language(str(path / "language"))
    vision = (
        ViT(saved.vision)
        if isinstance(saved.vision, ViTConfig)
        else restore_encoder(path / "vision", saved.vision)
    )
    model, processor = _assemble(saved.model, vision, language, tokenizer, 1.0)
    files.read_weights(path, _ours(model))
    return model.eval(), processor


def _ours(model: MLLM) -> nn.ModuleDict:
    ours: dict[str, nn.Module] = {"projector": model.projector}
    return nn.ModuleDict(ours | {"vision": model.vision} if isinstance(model.vision, ViT) else ours)


def _assemble(
    config: MLLMConfig, vision: Encoder, language: Any, tokenizer: Any, scale: float
) -> tuple[MLLM, Processor]:
    template = ChatTemplate(tokenizer, system=config.system)
    width = language.config.hidden_size
    projector = build_projector(config.projector, vision.config.width, width, scale)
    add_picture_parts(config.images, vision.config, projector, language, tokenizer)
    model = MLLM(vision, projector, language, template.marker)
    words = partial(_ids, tokenizer)
    codec = MLLMCodec(vision.config, projector, template.marker, config.images, words)
    clips = Clips(config.video, codec.frames)
    return model, Processor(template, codec, config.max_length, clips=clips)


def _ids(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]
