"""MLLMs on disk: encoder and projector in model.safetensors, the language model (adapters merged)
as a standard transformers checkpoint in `language/`, or its adapters alone in `adapter/`; an
encoder of transformers in `vision/`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from chiasm.core.device import model_device
from chiasm.core.errors import CheckpointError, ConfigError
from chiasm.core.quiet import quiet
from chiasm.data.chat import chat_template
from chiasm.data.clips import Clips
from chiasm.data.images import ImageProcessor
from chiasm.data.processor import Processor
from chiasm.data.template import ChatTemplate, Content, content_of, template_class
from chiasm.hub import folder as files
from chiasm.hub.versions import spell_language
from chiasm.mllm.adapter import (
    OVER_LANGUAGE,
    PARTS,
    adapted_parts,
    add_adapters,
    load_adapters,
    merge_adapters,
    quantisation,
    renamed,
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
    language, tokenizer = base_language(config)
    scale = embedding_scale(language)
    model, processor = assemble(config, vision, language, tokenizer, scale)
    make_trainable(model, tokenizer)
    return model, processor


@torch.no_grad()
def embedding_scale(language: Any) -> float:
    """Root mean square of the language model's input embeddings: what visual tokens should have."""
    words = language.get_input_embeddings()
    scale = words.weight.square().mean().sqrt().item()
    # Gemma's embedding multiplies by sqrt(width): images enter behind it, as large as words are.
    return scale * getattr(words, "scalar_embed_scale", 1.0)


def make_trainable(model: MLLM, tokenizer: Any, known: Collection[str] = ()) -> None:
    """Add the adapters, the frozen layers and the rows of new tokens of the model's configuration;
    the model computes as before. known: tokens that were learnt before."""
    config = model.config
    if config.lora is not None:
        add_adapters(model, config.lora)
    freeze(model, config.freeze_first_layers)
    model.rows = _new_rows(config, model, tokenizer, known)


def _new_rows(
    config: MLLMConfig, model: MLLM, tokenizer: Any, known: Collection[str] = ()
) -> TokenRows | None:
    """Rows of the special tokens to be learnt, where the tables that hold them are frozen."""
    if config.lora is None and not config.freeze_first_layers:
        return None
    names = [name for name in _learnt(config, model) if name not in known]
    ids = tokenizer.convert_tokens_to_ids(names)
    # freeze_first_layers leaves a head of its own to the stages; under adapters it is frozen.
    return TokenRows(model.language, ids, config.lora is not None) if ids else None


def _learnt(config: MLLMConfig, model: MLLM) -> list[str]:
    words = image_words(config.image_processing, model.vision.config, model.projector)
    return list(dict.fromkeys([*config.extra_special_tokens, *words]))


def base_language(config: MLLMConfig) -> tuple[Any, Any]:
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
    twin = _copied(model, {*adapted_parts(model), *(["language"] if model.rows else [])})
    if twin is not model:
        merge_in(twin)
    return twin


def _copied(model: MLLM, parts: Collection[str]) -> MLLM:
    """The model with these parts copied, everything else shared; itself where there are none."""
    if not parts:
        return model
    twin = copy.copy(model)
    twin._modules = dict(model._modules)
    for part in parts:
        setattr(twin, part, copy.deepcopy(getattr(model, part)))
    return twin


@dataclass(frozen=True)
class Base:
    """A published checkpoint under adapters that are kept apart: the model and its processor as
    loaded, and beginnings of names in our model -> in transformers' (hub/formats)."""

    load: Callable[[], tuple[MLLM, Processor]]
    names: Mapping[str, str]


def save(
    path: Path,
    model: MLLM,
    processor: Processor,
    config: MLLMConfig,
    base: Base | None = None,
) -> None:
    """Merges the adapters into the matrices, unless the configuration keeps them apart: afterwards
    the model has none. base: where adapters are kept apart over a published checkpoint, its names
    (Base). Raises ConfigError for a projector that no configuration describes."""
    config = replace(config, projector=_described(model))
    template = processor.template
    assert isinstance(template, ChatTemplate)
    saved = SavedMLLM(config, model.vision.config, template.content, template.image)
    apart = config.lora is not None and config.lora.apart
    alone = [part for part in adapted_parts(model) if apart and (base or part == "language")]
    if apart:
        save_adapters(
            path / "adapter",
            model,
            config.language_model,
            base.names if base else OVER_LANGUAGE,
            _whole_parts(model, base) if base else None,
        )
        if model.rows is not None:
            save_rows(path / "adapter" / ROWS, model.rows, _learnt(config, model))
        model = _copied(model, set(adapted_parts(model)) - set(alone))
        for part in set(adapted_parts(model)) - set(alone):
            merge_adapters(getattr(model, part))
    else:
        merge_in(model)
    files.write(path, saved, _ours(model, alone))
    if not isinstance(model.vision, ViT) and "vision" not in alone:
        save_encoder(path / "vision", model.vision)
    if apart:
        return
    with quiet():
        model.language.save_pretrained(path / "language")
        template.tokenizer.save_pretrained(path / "language")
    spell_language(path / "language")


def _whole_parts(model: MLLM, base: Base) -> dict[str, Tensor]:
    """Parameters of the parts that were trained whole, under their names at the base."""
    found = {}
    for part in model.trained_whole:
        for name, value in getattr(model, part).named_parameters():
            theirs = renamed(f"{part}.{name}", base.names)
            if theirs is not None and ".lora_" not in theirs:
                found[theirs] = value
    return found


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
    merge_adapters(model)
    if model.rows is not None:
        model.rows.merge(model.language)
        model.rows = None


def merge(path: Path, out: Path, base_of: Callable[[str], Base | None] = lambda _: None) -> None:
    """A run whose adapters were saved alone, as one whose language model holds them. Raises
    CheckpointError if they are merged already. Matrices of 4 bits are widened to what they stand
    for, so that adapters trained over them mean the same."""
    config = files.read_config(path, SavedMLLM).model
    if config.lora is None or not config.lora.apart:
        raise CheckpointError(f"{path}: its adapters are merged already, or it never had any")
    if (out / "model.json").exists():
        raise CheckpointError(f"{out}: holds a model already; choose another folder")
    model, processor = load(path, base_of)
    lora = replace(config.lora, merged=True, quantised=False)
    save(out, model, processor, replace(config, lora=lora))


def load(
    path: Path, base_of: Callable[[str], Base | None] = lambda _: None
) -> tuple[MLLM, Processor]:
    """The model of a run. base_of: the published checkpoint of a name in model.language_model,
    where that is one of a whole model."""
    saved = files.read_config(path, SavedMLLM)
    config = saved.model
    if config.lora is None or not config.lora.apart:
        language, tokenizer = load_language(str(path / "language"))
        model, processor = assemble_saved(saved, path, language, tokenizer)
        files.read_weights(path, _ours(model, ()))
        return model.eval(), processor
    base = base_of(config.language_model)
    known: Collection[str] = ()
    if base is None:
        language, tokenizer = base_language(config)
        if config.lora.quantised:
            language.dequantize()
        model, processor = assemble_saved(saved, path, language, tokenizer)
    else:
        stock, processor = base.load()
        tokenizer = processor.template.tokenizer  # type: ignore[attr-defined]
        known = set(tokenizer.get_vocab())
        add_tokens(stock.language, tokenizer, config.extra_special_tokens)
        model, processor = assemble_saved(saved, path, stock.language, tokenizer, stock)
    add_adapters(model, config.lora)
    names = base.names if base else OVER_LANGUAGE
    whole = load_adapters(path / "adapter", model, names)
    alone = [part for part in adapted_parts(model) if base or part == "language"]
    model.trained_whole = tuple(
        part for part in PARTS if any(n.startswith(_at(names, part)) for n in whole)
    )
    for part in set(adapted_parts(model)) - set(alone):  # saved with them folded in
        merge_adapters(getattr(model, part))
    model.rows = _new_rows(config, model, tokenizer, known)
    if model.rows is not None:
        load_rows(path / "adapter" / ROWS, model.rows, _learnt(config, model))
    files.read_weights(path, _ours(model, alone))
    return model.eval(), processor


def _at(names: Mapping[str, str], part: str) -> tuple[str, ...]:
    """How names of a part begin at the base."""
    return tuple(theirs for ours, theirs in names.items() if ours.startswith(part))


def assemble_saved(
    saved: SavedMLLM, path: Path, language: Any, tokenizer: Any, stock: MLLM | None = None
) -> tuple[MLLM, Processor]:
    """The parts of a run together; stock: whose encoder and projector stand where the run has none
    of its own."""
    if isinstance(saved.vision, ViTConfig):
        vision: Encoder = ViT(saved.vision)
    elif stock is not None and not (path / "vision").is_dir():
        vision = stock.vision
    else:
        vision = restore_encoder(path / "vision", saved.vision)
    template = template_for(tokenizer, language, saved.model, saved.image_token, saved.content)
    model, processor = assemble(saved.model, vision, language, tokenizer, 1.0, template)
    if stock is not None and stock.config.projector == saved.model.projector:
        model.projector.load_state_dict(stock.projector.state_dict())
    return model, processor


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
    model.use_projector(projector.to(model_device(model)))
    words, marker = partial(_ids, tokenizer), processor.template.marker
    codec = MLLMCodec(model.vision.config, projector, marker, config.image_processing, words)
    processor.codec, processor.clips = codec, Clips(config.video, codec.frames)
    processor.slots.clear()
    model.config = config


def _ours(model: MLLM, alone: Collection[str]) -> nn.ModuleDict:
    """What a run keeps in model.safetensors; alone: parts of which only adapters are kept."""
    ours: dict[str, nn.Module] = {}
    if "projector" not in alone:
        ours["projector"] = model.projector
    if isinstance(model.vision, ViT) and "vision" not in alone:
        ours["vision"] = model.vision
    return nn.ModuleDict(ours)


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
        template = template_for(tokenizer, language, config)
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


def template_for(
    tokenizer: Any,
    language: Any,
    config: MLLMConfig,
    image: str = "<image>",
    content: Content | None = None,
) -> ChatTemplate:
    """The template of a tokenizer's conversations. image: the token that stands for an image.
    content: what the chat template is told of a message; None finds out by asking it."""
    kind = template_class(content or content_of(tokenizer, image))
    return kind(tokenizer, image, config.system, stop_ids(language), config.extra_special_tokens)


def stop_ids(language: Any) -> list[int]:
    """The ids that the model's generation_config says end a reply."""
    found = language.generation_config.eos_token_id
    return found if isinstance(found, list) else [] if found is None else [found]


def _ids(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]
