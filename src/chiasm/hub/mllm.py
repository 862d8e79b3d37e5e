"""MLLMs on disk: encoder and projector in model.safetensors, the language model (adapters merged)
as a standard transformers checkpoint in `language/`, or its adapters alone in `adapter/`; an
encoder of transformers in `vision/`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from chiasm.core.errors import CheckpointError, ConfigError
from chiasm.data.pictures import PictureProcessor
from chiasm.data.processor import Processor
from chiasm.data.template import ChatTemplate
from chiasm.hub import folder as files
from chiasm.mllm.adapter import (
    add_adapters,
    load_adapters,
    merge_adapters,
    quantisation,
    require_gpu,
    save_adapters,
)
from chiasm.mllm.codec import MLLMCodec
from chiasm.mllm.config import DeepStackConfig, MLLMConfig, SavedMLLM
from chiasm.mllm.language import load_language, quiet
from chiasm.mllm.model import MLLM
from chiasm.mllm.projectors import build_projector
from chiasm.vision.config import ViTConfig, feature_levels, feature_width
from chiasm.vision.pretrained import Encoder, restore_encoder, save_encoder
from chiasm.vision.vit import ViT


def build(config: MLLMConfig, vision: Encoder) -> tuple[MLLM, Processor]:
    """A model to train: a trained encoder, a fresh projector, a pretrained language model."""
    if config.lora is not None and config.lora.quantised:
        require_gpu()
    language, tokenizer = _base(config)
    with torch.no_grad():
        table = language.get_input_embeddings().weight
        scale = table.square().mean().sqrt().item()
    model, processor = _assemble(config, vision, language, tokenizer, scale)
    if config.lora is not None:
        add_adapters(model.language, config.lora)
    _freeze(model, config.frozen_layers)
    return model, processor


def _base(config: MLLMConfig) -> tuple[Any, Any]:
    """The language model that adapters are put on, in 4 bits where they want it so."""
    quantised = config.lora is not None and config.lora.quantised
    return load_language(config.language, quantisation() if quantised else None)


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
    """Merges the adapters into the matrices, unless the configuration keeps them apart: afterwards
    the model has none."""
    files.write(path, SavedMLLM(config, model.vision.config), _ours(model))
    if not isinstance(model.vision, ViT):
        save_encoder(path / "vision", model.vision)
    if config.lora is not None and config.lora.apart:
        save_adapters(path / "adapter", model.language, config.language)
        return
    merge_adapters(model.language)
    with quiet():
        model.language.save_pretrained(path / "language")
        processor.template.tokenizer.save_pretrained(path / "language")  # type: ignore[attr-defined]


def merge(path: Path, out: Path) -> None:
    """A run whose adapters were saved alone, as one whose language model holds them. Raises
    CheckpointError if they are merged already. Matrices of 4 bits are widened to what they stand
    for, so that adapters trained over them mean the same."""
    config = files.read_config(path, SavedMLLM).model
    if config.lora is None or not config.lora.apart:
        raise CheckpointError(f"{path}: its adapters are merged already, or it never had any")
    if (out / "model.json").exists():
        raise CheckpointError(f"{out}: holds a model already; choose another folder")
    model, processor = load(path)
    lora = replace(config.lora, merged=True, quantised=False)
    save(out, model, processor, replace(config, lora=lora))


def load(path: Path) -> tuple[MLLM, Processor]:
    saved = files.read_config(path, SavedMLLM)
    if saved.model.lora is not None and saved.model.lora.apart:
        language, tokenizer = _base(saved.model)
        if saved.model.lora.quantised:
            language.dequantize()
        add_adapters(language, saved.model.lora)
        load_adapters(path / "adapter", language)
    else:
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
    levels = feature_levels(vision.config)
    if isinstance(config.projector, DeepStackConfig) and config.projector.levels != levels:
        raise ConfigError(
            f"model.projector.levels: {config.projector.levels}, but the features are of {levels} "
            "layers of one encoder; set model.tower.layer to as many layers"
        )
    projector = build_projector(
        config.projector, feature_width(vision.config), language.config.hidden_size, scale
    )
    model = MLLM(vision, projector, language, template.marker)
    codec = MLLMCodec(vision.config, projector, template.marker)
    return model, Processor(template, codec, config.max_length)
