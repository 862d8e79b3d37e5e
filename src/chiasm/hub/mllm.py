"""MLLMs on disk: encoder and projector in model.safetensors, the language model (adapters merged)
as a standard transformers checkpoint in `language/`, or its adapters alone in `adapter/`; an
encoder of transformers in `vision/`."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import nn

from chiasm.core.errors import CheckpointError, ConfigError
from chiasm.core.quiet import quiet
from chiasm.data.chat import chat_template
from chiasm.data.clips import Clips
from chiasm.data.images import ImageProcessor
from chiasm.data.processor import Processor
from chiasm.data.template import ChatTemplate
from chiasm.hub import folder as files
from chiasm.hub.versions import spell_language
from chiasm.mllm.adapter import (
    adapters_of,
    add_adapters,
    load_adapters,
    merge_adapters,
    quantisation,
    require_gpu,
    save_adapters,
)
from chiasm.mllm.codec import MLLMCodec
from chiasm.mllm.config import DeepStackConfig, MLLMConfig, ProjectorConfig, SavedMLLM
from chiasm.mllm.images.parts import add_image_parts, image_words
from chiasm.mllm.language import load_language
from chiasm.mllm.model import MLLM
from chiasm.mllm.projectors import Projector, build_projector
from chiasm.mllm.vocabulary import TokenRows, add_tokens, load_rows, save_rows
from chiasm.vision.config import ViTConfig, feature_levels, feature_width
from chiasm.vision.pretrained import Encoder, restore_encoder, save_encoder
from chiasm.vision.vit import ViT

ROWS = "token_rows.safetensors"
"""In `adapter/`: what was learnt of the tokens in model.extra_special_tokens."""


def build(config: MLLMConfig, vision: Encoder) -> tuple[MLLM, Processor]:
    """A model to train: a trained encoder, a fresh projector, a pretrained language model."""
    if config.lora is not None and config.lora.quantised:
        require_gpu()
    language, tokenizer = _base(config)
    words = language.get_input_embeddings()
    with torch.no_grad():
        scale = words.weight.square().mean().sqrt().item()
    # Gemma's embedding multiplies by sqrt(width): images enter behind it, as large as words are.
    scale *= getattr(words, "scalar_embed_scale", 1.0)
    model, processor = assemble(config, vision, language, tokenizer, scale)
    if config.lora is not None:
        add_adapters(model.language, config.lora)
    freeze(model, config.freeze_first_layers)
    model.rows = _new_rows(config, model, tokenizer)
    return model, processor


def _new_rows(config: MLLMConfig, model: MLLM, tokenizer: Any) -> TokenRows | None:
    """Rows of the special tokens to be learnt, where the tables that hold them are frozen."""
    if config.lora is None and not config.freeze_first_layers:
        return None
    names = _learnt(config, model)
    ids = tokenizer.convert_tokens_to_ids(names)
    # freeze_first_layers leaves a head of its own to the stages; under adapters it is frozen.
    return TokenRows(model.language, ids, config.lora is not None) if ids else None


def _learnt(config: MLLMConfig, model: MLLM) -> list[str]:
    words = image_words(config.image_processing, model.vision.config, model.projector)
    return list(dict.fromkeys([*config.extra_special_tokens, *words]))


def _base(config: MLLMConfig) -> tuple[Any, Any]:
    """The pretrained language model, in 4 bits where the adapters want it so, and its tokenizer
    with the tokens and the chat template wanted. The same whenever it is called."""
    quantised = config.lora is not None and config.lora.quantised
    language, tokenizer = load_language(
        config.language_model, quantisation() if quantised else None
    )
    add_tokens(language, tokenizer, config.extra_special_tokens)
    if config.chat_template is not None:
        tokenizer.chat_template = chat_template(config.chat_template)
    return language, tokenizer


def word_processor(model: MLLM, processor: Processor, context: int = 64) -> ImageProcessor:
    """Images with their captions in the language model's own words, for the alignment of visual
    tokens with them; captions are cut at `context` tokens."""
    vit = model.vision.config
    own = processor.template.tokenizer.backend_tokenizer  # type: ignore[attr-defined]
    words = Tokenizer.from_str(own.to_str())  # its copy is told to look for no control tokens
    return ImageProcessor(
        vit.image_size, vit.patch_size, vit.max_patches, words, context, vit.resample
    )


def freeze(model: MLLM, count: int) -> None:
    """Hold the language model's embedding and first `count` layers in every stage (train.optim)."""
    if count > len(model.layers()):
        raise ConfigError(
            f"model.freeze_first_layers: {count}, but the language model has "
            f"{len(model.layers())} layers"
        )
    held = [model.language.get_input_embeddings(), *model.layers()[:count]] if count else []
    for module in held:
        for parameter in module.parameters():
            parameter.frozen = True  # type: ignore[attr-defined]


def merged_copy(model: MLLM) -> MLLM:
    """The model with adapters and rows of new tokens folded into a copy of its language model,
    everything else shared; the model itself where it has none."""
    if not adapters_of(model.language) and model.rows is None:
        return model
    twin = copy.copy(model)
    twin._modules = dict(model._modules)
    twin.language = copy.deepcopy(model.language)
    merge_in(twin)
    return twin


def save(path: Path, model: MLLM, processor: Processor, config: MLLMConfig) -> None:
    """Merges the adapters into the matrices, unless the configuration keeps them apart: afterwards
    the model has none. Raises ConfigError for a projector that no configuration describes."""
    config = replace(config, projector=_described(model))
    files.write(path, SavedMLLM(config, model.vision.config), _ours(model))
    if not isinstance(model.vision, ViT):
        save_encoder(path / "vision", model.vision)
    if config.lora is not None and config.lora.apart:
        save_adapters(path / "adapter", model.language, config.language_model)
        if model.rows is not None:
            save_rows(path / "adapter" / ROWS, model.rows, _learnt(config, model))
        return
    merge_in(model)
    with quiet():
        model.language.save_pretrained(path / "language")
        processor.template.tokenizer.save_pretrained(path / "language")  # type: ignore[attr-defined]
    spell_language(path / "language")


def _described(model: MLLM) -> ProjectorConfig:
    """The configuration that a run's projector is built from again."""
    config = model.projector.config
    if not isinstance(config, ProjectorConfig):
        name = type(model.projector).__name__
        raise ConfigError(
            f"{name} cannot be saved, as no configuration says how it is built: set its `config` "
            "to a CustomProjector (CONTRIBUTING.md, 'Add a projector')"
        )
    return config


def merge_in(model: MLLM) -> None:
    """Fold adapters and rows of new tokens into the language model, which has none afterwards."""
    merge_adapters(model.language)
    if model.rows is not None:
        model.rows.merge(model.language)
        model.rows = None


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
    model, processor = assemble(saved.model, vision, language, tokenizer, 1.0)
    if saved.model.lora is not None and saved.model.lora.apart:
        model.rows = _new_rows(saved.model, model, tokenizer)
        if model.rows is not None:
            load_rows(path / "adapter" / ROWS, model.rows, _learnt(saved.model, model))
    files.read_weights(path, _ours(model))
    return model.eval(), processor


def replace_projector(model: MLLM, processor: Processor, projector: Projector) -> None:
    """Put another projector between encoder and language model, where the model is.

    Its tokens must have the language model's width, and as many must come out as it says. Raises
    ConfigError where they do not. The processor then leaves room for its tokens.
    """
    if not isinstance(projector, Projector):
        raise ConfigError(
            f"replace_projector: a {type(projector).__name__} is no projector; derive its class "
            "from chiasm.mllm.projectors.Projector (shape or tokens, and forward)"
        )
    if not hasattr(projector, "config"):
        projector.config = None  # it computes, and is refused when it is to be saved
    config = replace(model.config, projector=projector.config)
    tokenizer = processor.template.tokenizer  # type: ignore[attr-defined]
    add_image_parts(
        config.image_processing, model.vision.config, projector, model.language, tokenizer
    )
    model.use_projector(projector.to(next(model.parameters()).device))
    words, marker = partial(_ids, tokenizer), processor.template.marker
    codec = MLLMCodec(model.vision.config, projector, marker, config.image_processing, words)
    processor.codec, processor.clips = codec, Clips(config.video, codec.frames)
    processor.slots.clear()
    model.config = config


def _ours(model: MLLM) -> nn.ModuleDict:
    ours: dict[str, nn.Module] = {"projector": model.projector}
    return nn.ModuleDict(ours | {"vision": model.vision} if isinstance(model.vision, ViT) else ours)


def assemble(
    config: MLLMConfig,
    vision: Encoder,
    language: Any,
    tokenizer: Any,
    scale: float,
    template: ChatTemplate | None = None,
) -> tuple[MLLM, Processor]:
    """The parts together, with a fresh projector; template: if not the tokenizer's own."""
    if template is None:
        template = ChatTemplate(
            tokenizer,
            system=config.system,
            stop=stop_ids(language),
            spoken=config.extra_special_tokens,
        )
    levels = feature_levels(vision.config)
    if isinstance(config.projector, DeepStackConfig) and config.projector.levels != levels:
        raise ConfigError(
            f"model.projector.levels: {config.projector.levels}, but the features are of {levels} "
            "layers of one encoder; set model.vision.layer to as many layers"
        )
    width = language.config.hidden_size
    projector = build_projector(config.projector, feature_width(vision.config), width, scale)
    add_image_parts(config.image_processing, vision.config, projector, language, tokenizer)
    model = MLLM(vision, projector, language, template.marker)
    model.config = config
    words = partial(_ids, tokenizer)
    codec = MLLMCodec(vision.config, projector, template.marker, config.image_processing, words)
    # A learned table of positions has no row beyond its last.
    known = getattr(language.config, "max_position_embeddings", config.max_length)
    length = min(config.max_length, known)
    clips = Clips(config.video, codec.frames)
    prefix = config.attention == "prefix"
    return model, Processor(template, codec, length, prefix=prefix, clips=clips, boxes=config.boxes)


def stop_ids(language: Any) -> list[int]:
    """The ids that the model's generation_config says end a reply."""
    found = language.generation_config.eos_token_id
    return found if isinstance(found, list) else [] if found is None else [found]


def _ids(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]
